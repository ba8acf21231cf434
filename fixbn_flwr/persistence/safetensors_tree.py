"""Convert numbers, strings and arrays in dictionaries and lists to one safetensors file, and back.

Arrays become the file's tensors, each named by its path in the tree. The rest is JSON in the
file's metadata, where ``{"$array": name}`` stands for an array. Nothing is pickled, so reading a
file never runs code.
"""

from __future__ import annotations

import json
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.numpy
from flwr.common import ArrayRecord, ConfigRecord, MetricRecord
from safetensors import SafetensorError

from fixbn_flwr.array_records import arrays_of, record_of
from fixbn_flwr.errors import CheckpointError
from fixbn_flwr.method.averaging import Array
from fixbn_flwr.persistence.atomic_files import safetensors_metadata

Tree = Any
"""None, bool, int, float, str, numpy array or number, or ArrayRecord; or a dict with string keys,
list or tuple of these; or an OrderedDict, MetricRecord, ConfigRecord, or defaultdict of a builtin
type. Other subclasses of these would come back as another type."""

_JSON = "tree"
_MAPPINGS: dict[str, Any] = {
    "$ordered": OrderedDict, "$metrics": MetricRecord, "$config": ConfigRecord
}  # fmt: skip
_FACTORIES: dict[str, Any] = {kind.__name__: kind for kind in (dict, float, int, list, str)}
_DTYPES = frozenset("?bBhHiIlLqQefd")  # dtype.char of the types that safetensors supports


def to_bytes(tree: Tree) -> bytes:
    """Return a tree as a file's content; the same tree gives the same bytes.

    Raises:
        CheckpointError: If the tree holds anything else. The message says where.
    """
    arrays: dict[str, Array] = {}
    text = json.dumps(_encoded(tree, "", arrays))
    return safetensors.numpy.save(arrays, metadata={_JSON: text})


def from_bytes(content: bytes) -> Tree:
    """Return the tree that ``to_bytes`` was given.

    Raises:
        CheckpointError: If the content is not such a file.
    """
    try:
        text = safetensors_metadata(content)[_JSON]
        return _decoded(json.loads(text), safetensors.numpy.load(content))
    except (
        AttributeError, KeyError, TypeError, ValueError, RecursionError, SafetensorError
    ) as error:  # fmt: skip
        raise CheckpointError(f"this file is not a checkpoint ({error})") from error


def can_be_kept(tree: Tree) -> bool:
    """Return whether ``to_bytes`` accepts a tree."""
    try:
        _encoded(tree, "", {})
    except (CheckpointError, RecursionError):  # a list that contains itself
        return False
    return True


def is_same(one: Tree, other: Tree) -> bool:
    """Return whether two trees are equal, bit for bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray | np.generic):
        a, b = np.asarray(one), np.asarray(other)
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(one, ArrayRecord):
        return is_same(arrays_of(one), arrays_of(other))
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(is_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(is_same, one, other))
    return bool(one == other)


def _encoded(tree: Tree, where: str, arrays: dict[str, Array]) -> Any:
    if tree is None or type(tree) in (bool, int, float, str):
        return tree
    if type(tree) is np.ndarray and tree.dtype.char in _DTYPES:
        return {"$array": _put(np.asarray(tree, order="C"), where, arrays)}
    if isinstance(tree, np.generic) and tree.dtype.char in _DTYPES:
        return {"$number": _put(np.asarray(tree), where, arrays)}
    if isinstance(tree, Mapping) and (encoded := _encoded_mapping(tree, where, arrays)) is not None:
        return encoded
    if type(tree) in (list, tuple):
        items = [
            _encoded(item, f"{where}/{place}".lstrip("/"), arrays)
            for place, item in enumerate(tree)
        ]
        return {"$tuple": items} if type(tree) is tuple else items
    dtype = f" of {tree.dtype}" if isinstance(tree, np.ndarray | np.generic) else ""
    raise CheckpointError(
        f"{where or 'it'} is a {type(tree).__name__}{dtype}, which a checkpoint cannot hold"
    )


def _encoded_mapping(tree: Mapping[Any, Any], where: str, arrays: dict[str, Array]) -> Any:
    """Return a mapping whose type ``_decoded`` restores, encoded; None if it is another one."""
    if type(tree) is ArrayRecord:
        return {"$record": _encoded(arrays_of(tree), where, arrays)}
    if type(tree) is dict and all(isinstance(k, str) and k[:1] != "$" for k in tree):
        return {key: _encoded(tree[key], f"{where}/{key}".lstrip("/"), arrays) for key in tree}
    for mark, kind in _MAPPINGS.items():
        if type(tree) is kind:
            return {mark: _encoded(dict(tree), where, arrays)}
    for name, factory in _FACTORIES.items():
        if type(tree) is defaultdict and tree.default_factory is factory:
            return {"$default": name, "$items": _encoded(dict(tree), where, arrays)}
    return None


def _put(array: Array, where: str, arrays: dict[str, Array]) -> str:
    """Store an array under a name of its own and return the name."""
    taken = not where or where in arrays or where == "__metadata__"  # used by safetensors
    name = f"{where}#{len(arrays)}" if taken else where
    arrays[name] = array
    return name


def _decoded(tree: Any, arrays: Mapping[str, Array]) -> Tree:
    match tree:
        case list():
            decoded: Tree = [_decoded(item, arrays) for item in tree]
        case {"$array": name}:
            decoded = arrays[name]
        case {"$number": name}:
            decoded = arrays[name][()]
        case {"$record": record}:
            decoded = record_of(_decoded(record, arrays))
        case {"$tuple": items}:
            decoded = tuple(_decoded(items, arrays))
        case {"$default": factory, "$items": items}:
            decoded = defaultdict(_FACTORIES[factory], _decoded(items, arrays))
        case dict() if len(tree) == 1 and (mark := next(iter(tree))) in _MAPPINGS:
            decoded = _MAPPINGS[mark](_decoded(tree[mark], arrays))
        case dict():
            decoded = {key: _decoded(value, arrays) for key, value in tree.items()}
        case _:
            decoded = tree
    return decoded
