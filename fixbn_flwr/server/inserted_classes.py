"""Insert a class above and one below a user's strategy class, for both generations of Flower."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsIndex


def put_classes_around(
    strategy: Any, above: Callable[[type], type], below: Callable[[type], type]
) -> None:
    """Put a class above the user's class and one below it; leave Flower's classes as they are.

    Args:
        strategy: A strategy of either generation. Its class changes.
        above: Returns a subclass of the user's class.
        below: Returns a subclass of the Flower class that the user's class inherits from.
    """
    # A strategy that was inside another FixBN has the classes of that one around its own.
    own_class: type = getattr(strategy, "class_of_the_user", type(strategy))
    flowers = next(c for c in own_class.__mro__ if c.__module__.split(".")[0] == "flwr")
    if flowers is own_class:
        return

    def reduce_as_own_class(self: object, protocol: SupportsIndex) -> Any:
        # Pickle finds the user's class by its name, but not the one made here.
        reduced: Any = object.__reduce_ex__(self, protocol)
        return (_new, (own_class,), *reduced[2:])

    members: dict[str, Any] = {"__module__": own_class.__module__, "class_of_the_user": own_class}
    if "__reduce_ex__" not in {name for c in own_class.__mro__[:-1] for name in vars(c)}:
        members["__reduce_ex__"] = reduce_as_own_class
    strategy.__class__ = type(own_class.__name__, (above(own_class), below(flowers)), members)


def is_users_own(strategy: object) -> bool:
    """Return whether a strategy's class is the user's, with classes put around it."""
    return hasattr(strategy, "class_of_the_user")


def _new(own_class: Any) -> Any:
    return own_class.__new__(own_class)
