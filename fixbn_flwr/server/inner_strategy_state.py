"""What the inner strategy changed in itself since the run began, for checkpoints.

Strategies keep what they need from round to round in attributes: FedAdam its moments, FedAvgM its
momentum, adaptive clipping its norm. Flower has no method that returns them. So every attribute
that is a number, a string or arrays, and differs from its first value, is part of the state.

A checkpoint cannot hold other objects, such as the accountant of a privacy budget. A change inside
such an object is noticed by the digest of its pickle, which is neither stored nor read.
"""

from __future__ import annotations

import copy
import hashlib
import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flwr.common import Array

from fixbn_flwr.errors import CheckpointError
from fixbn_flwr.log import logger
from fixbn_flwr.persistence.safetensors_tree import can_be_kept, is_same

Attributes = Sequence[dict[str, Any]]
"""Attributes of a strategy and those that it wraps in turn, by name."""

_LARGEST = 2**26  # bytes of an object's pickle that are read


class InnerStrategyState:
    """Tracks the attributes of strategies from now on.

    Args:
        layers: A strategy and those that it wraps in turn.
    """

    def __init__(self, layers: Sequence[object]) -> None:
        self._layers = layers
        self._before = [
            {name: copy.deepcopy(v) if can_be_kept(v) else v for name, v in vars(layer).items()}
            for layer in layers
        ]
        self._digests = [{name: _digest(v) for name, v in self._others(layer)} for layer in layers]
        self._named: set[str] = set()

    def changes(self) -> Attributes:
        """Return each layer's changed attributes, not copied.

        A changed object that :mod:`fixbn_flwr.persistence.safetensors_tree` cannot hold is left
        out with a warning.
        """
        for layer, before, digests in zip(self._layers, self._before, self._digests, strict=True):
            for name, value in self._others(layer):
                digest = _digest(value)
                known = name in before and (
                    value is before[name] if digest is None else digest == digests.get(name)
                )
                if not known:
                    self._warn(f"{type(layer).__name__}.{name}", value)
        return self.changes_in(attributes_of(self._layers))

    def changes_in(self, attributes: Attributes) -> Attributes:
        """Return what ``changes`` does, of earlier attributes and without warnings."""
        return [
            {
                name: value
                for name, value in of_layer.items()
                if can_be_kept(value) and not (name in before and is_same(value, before[name]))
            }
            for of_layer, before in zip(attributes, self._before, strict=True)
        ]

    def restore(self, changes: Attributes) -> None:
        """Set the changed attributes, and give the others that are data their first values.

        Raises:
            CheckpointError: If the number of nested strategies differs.
        """
        if len(changes) != len(self._layers):
            raise CheckpointError(
                f"the checkpoint is of {len(changes)} nested strategies and this run has "
                f"{len(self._layers)}: build the strategy as it was."
            )
        for layer, before, changed in zip(self._layers, self._before, changes, strict=True):
            others = dict(self._others(layer))
            for name in list(vars(layer)):
                if name not in others and name not in before:
                    delattr(layer, name)
            first = {n: v for n, v in before.items() if n not in others and can_be_kept(v)}
            for name, value in {**copy.deepcopy(first), **changed}.items():
                setattr(layer, name, value)

    def _others(self, layer: object) -> Iterator[tuple[str, object]]:
        """Yield the attributes that a checkpoint cannot hold, except the inner strategies."""
        for name, value in vars(layer).items():
            if not can_be_kept(value) and not any(value is inner for inner in self._layers):
                yield name, value

    def _warn(self, name: str, value: object) -> None:
        if name not in self._named:
            self._named.add(name)
            logger.warning(
                "%s has changed and is a %s, which a checkpoint cannot hold: a resumed run starts "
                "with a new one. Use numbers, strings, arrays, or lists of them and dictionaries "
                "with string keys.",
                name, type(value).__name__,
            )  # fmt: skip


def attributes_of(layers: Sequence[object]) -> Attributes:
    """Return the current attributes of strategies, for ``put_back``."""
    return [dict(vars(layer)) for layer in layers]


def copied(attributes: Attributes) -> Attributes:
    """Return copies of attributes that are data, beside other objects as they are."""
    return [{name: _copied(value) for name, value in of_layer.items()} for of_layer in attributes]


def _copied(value: object) -> object:
    if not _is_data(value):
        return value
    try:
        return copy.deepcopy(value)
    except Exception:  # a subclass of a dictionary may hold anything, such as a lock
        return value


def _is_data(value: Any) -> bool:
    """Return whether a value consists of data alone, also of kinds that no checkpoint can hold."""
    try:
        match value:
            case Mapping():
                return all(map(_is_data, (*value, *value.values())))
            case list() | tuple() | set() | frozenset():
                return all(map(_is_data, value))
            case _:  # torch is not imported here
                is_tensor = type(value).__name__ == "Tensor" and value.grad_fn is None
                # An Array of Flower is in every ArrayRecord.
                return is_tensor or isinstance(value, Array) or can_be_kept(value)
    except RecursionError:  # a list that contains itself
        return False


def put_back(layers: Sequence[object], attributes: Attributes) -> None:
    """Restore the attributes of strategies; changes inside a value stay."""
    for layer, before in zip(layers, attributes, strict=True):
        vars(layer).clear()
        vars(layer).update(before)


def _digest(value: object) -> bytes | None:
    """Return the digest of an object's pickle; None if it has none, or a very large one."""
    digest = _Digest()
    try:
        pickle.Pickler(digest).dump(value)
    except Exception:  # pickling may raise anything
        return None
    return digest.of.digest()


class _Digest:
    """A file that keeps only the digest of its content."""

    def __init__(self) -> None:
        self.of = hashlib.sha256()
        self._left = _LARGEST

    def write(self, content: Any) -> int:
        """Add what pickle writes: bytes, or the buffer of a large array."""
        size = memoryview(content).nbytes
        self._left -= size
        if self._left < 0:
            raise OverflowError
        self.of.update(content)
        return size
