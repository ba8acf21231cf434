"""The state of a wrapped strategy is found, saved and restored."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from fixbn_flwr.errors import CheckpointError
from fixbn_flwr.persistence.safetensors_tree import from_bytes, to_bytes
from fixbn_flwr.server.inner_strategy_state import InnerStrategyState, attributes_of, put_back


class Holder:
    """A stand-in for a strategy with its own attributes."""

    def __init__(self) -> None:
        self.rate = 0.1
        self.counts = [1, 2]
        self.moments: dict[str, Any] | None = None
        self.vector = np.zeros(2)
        self.function = len


def test_only_changed_attributes_are_saved_including_those_changed_in_place() -> None:
    holder = Holder()
    state = InnerStrategyState([holder])
    assert state.changes() == [{}]
    holder.rate = 0.2
    holder.counts.append(3)
    holder.moments = {"w": np.ones(2)}
    holder.vector[0] = 1.0
    holder.later = "new"  # type: ignore[attr-defined]
    (changes,) = state.changes()
    assert set(changes) == {"rate", "counts", "moments", "vector", "later"}
    other = Holder()
    InnerStrategyState([other]).restore(from_bytes(to_bytes([changes])))
    assert (other.rate, other.counts, other.later) == (0.2, [1, 2, 3], "new")  # type: ignore[attr-defined]
    assert np.array_equal(other.vector, [1.0, 0.0])
    assert other.moments is not None
    assert np.array_equal(other.moments["w"], np.ones(2))


def test_an_attribute_that_cannot_be_saved_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    holder = Holder()
    state = InnerStrategyState([holder])
    holder.function = print  # type: ignore[assignment]
    assert state.changes() == state.changes() == [{}]
    assert caplog.text.count("Holder.function has changed and is a builtin_function") == 1


class Accountant:
    """A stand-in for an object with internal state, such as a privacy accountant."""

    def __init__(self) -> None:
        self.releases: set[int] = set()


class Wrapper:
    """A stand-in for a strategy around another one."""

    def __init__(self, strategy: Holder) -> None:
        self.strategy = strategy
        self.accountant = Accountant()
        self.shapes = {1: [2]}
        self.generator = np.random.default_rng(0)
        self.endless: list[Any] = []
        self.endless.append(self.endless)
        self.lock = threading.Lock()
        self.large = {1: np.zeros(2**25)}


def test_a_change_inside_an_object_that_cannot_be_saved_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    holder = Holder()
    wrapper = Wrapper(holder)
    state = InnerStrategyState([wrapper, holder])
    holder.rate = 0.2  # the inner strategy is compared separately
    assert state.changes() == [{}, {"rate": 0.2}]
    assert caplog.text == ""
    wrapper.accountant.releases.add(1)
    wrapper.shapes[1].append(3)
    wrapper.generator.random()
    assert state.changes() == state.changes() == [{}, {"rate": 0.2}]
    for name in ("accountant", "shapes", "generator"):
        assert caplog.text.count(f"Wrapper.{name} has changed and is a") == 1, name
    assert caplog.text.count("has changed") == 3


def test_attributes_can_be_restored() -> None:
    holder = Holder()
    before = attributes_of([holder])
    holder.rate = 0.2
    holder.later = "new"  # type: ignore[attr-defined]
    put_back([holder], before)
    assert vars(holder) == before[0]
    assert holder.rate == 0.1


def test_another_number_of_strategies_is_refused() -> None:
    with pytest.raises(CheckpointError, match="of 2 nested strategies and this run has 1"):
        InnerStrategyState([Holder()]).restore([{}, {}])
