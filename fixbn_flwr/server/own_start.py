"""Run a strategy's own ``start()`` with FixBN's methods of a round in it.

A strategy may override ``start()`` with a loop of its own, to log or to save the best model. That
loop calls ``self.configure_train`` and the other methods of a round. So ``self`` must be the user's
strategy in everything but these methods.
"""

from __future__ import annotations

from typing import Any, cast

from flwr.serverapp.strategy import Strategy

_OF_A_ROUND = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")


def has_own_start(strategy: Strategy) -> bool:
    """Return whether a strategy's class overrides ``start()``."""
    return type(strategy).start is not Strategy.start


def with_rounds_of(strategy: Strategy, other: Strategy) -> Strategy:
    """Return a strategy with another one's methods of a round.

    It is an instance of the strategy's class and shares its attributes: what ``start()`` sets on
    ``self``, the strategy has.

    Args:
        strategy: The user's strategy.
        other: The strategy whose methods of a round are called instead.
    """
    own_class: Any = type(strategy)
    members = {name: getattr(other, name) for name in _OF_A_ROUND}
    driven: Any = object.__new__(type(own_class.__name__, (own_class,), members))
    driven.__dict__ = strategy.__dict__
    return cast(Strategy, driven)
