"""Insert classes above and below a user's strategy class, for both generations of Flower."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, SupportsIndex


class RunningCode:
    """Whose code of the strategy runs: the user's, which sees whole models, or Flower's.

    Attributes:
        is_users: Whether it is the user's.
    """

    def __init__(self) -> None:
        self.is_users = False

    @contextmanager
    def switched(self, *, users: bool) -> Iterator[None]:
        """Note whose code the block calls."""
        before, self.is_users = self.is_users, users
        try:
            yield
        finally:
            self.is_users = before


def put_classes_around(
    layers: Iterable[Any], above: Callable[[type], type], below: Callable[[type], type]
) -> None:
    """Put a class above each of the user's classes and one below it.

    Flower's classes stay as they are, but for a layer directly inside one of the user's.

    Args:
        layers: A strategy of either generation and those that it wraps in turn. Their classes
            change.
        above: Returns a subclass of the user's class.
        below: Returns a subclass of Flower's class that the user's class inherits from, or calls.
    """
    called_by_users = False
    for layer in layers:
        # A strategy that was inside another FixBN has the classes of that one around its own.
        own_class: type = getattr(type(layer), "class_before_fixbn", type(layer))
        flowers = next(c for c in own_class.__mro__ if _is_flowers(c))
        is_users = flowers is not own_class
        if is_users:
            layer.__class__ = _with_bases(own_class, above(own_class), below(flowers))
        else:
            layer.__class__ = _with_bases(own_class, below(flowers)) if called_by_users else flowers
        called_by_users = is_users


def _with_bases(own_class: type, *bases: type) -> type:
    """Return a class of these bases that has the name of a strategy's own class."""

    def reduce_as_own_class(self: object, protocol: SupportsIndex) -> Any:
        # Pickle finds the user's class by its name, but not the one made here.
        reduced: Any = object.__reduce_ex__(self, protocol)
        return (_new, (own_class,), *reduced[2:])

    members: dict[str, Any] = {"__module__": own_class.__module__, "class_before_fixbn": own_class}
    if "__reduce_ex__" not in {name for c in own_class.__mro__[:-1] for name in vars(c)}:
        members["__reduce_ex__"] = reduce_as_own_class
    return type(own_class.__name__, bases, members)


def is_users_own(strategy: object) -> bool:
    """Return whether a strategy's class is the user's, and not one of Flower's."""
    return not _is_flowers(type(strategy))


def _is_flowers(strategy_class: type) -> bool:
    return strategy_class.__module__.split(".")[0] == "flwr"


def _new(own_class: Any) -> Any:
    return own_class.__new__(own_class)
