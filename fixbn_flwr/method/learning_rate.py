"""A factor on an optimiser's learning rate that acts in its steps and nowhere else.

FixBN's calibration wants a smaller rate (``learning_rate_factor``), and training loops have many
ways to set theirs: before the loop, by hand inside it, by schedulers that multiply the current rate
and by schedulers that compute it anew from the one that they found at first. So the rate itself is
left to the loop, and the factor is put on when a step begins and taken off when it ends, by the
step hooks that every ``torch.optim.Optimizer`` has. They are called too where mixed precision, a
compiled step, Lightning or accelerate takes the step.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fixbn_flwr.errors import ConfigError

_logger = logging.getLogger("flwr.fixbn")

Arguments = tuple[Any, ...]
Keywords = dict[str, Any]


@contextmanager
def multiplied_learning_rate(optimizer: Optimizer, factor: float) -> Iterator[None]:
    """Take every step of a ``with`` block at ``factor`` times the learning rate.

    What the block reads and writes in ``param_groups`` is the rate without the factor, whether it
    is a number or a tensor; groups that the block adds are included. An optimiser that reads its
    rate only when it meets a parameter for the first time (Rprop) obeys the factor only then, and
    what a subclass of an optimiser does after ``super().step()`` is done at the full rate. A block
    in which this optimiser takes no step at all is warned about: another one may have taken them.

    Args:
        optimizer: any optimiser whose groups have an ``"lr"``.
        factor: on the learning rate; 1.0 leaves the optimiser alone.

    Raises:
        ConfigError: a parameter group has no learning rate to multiply.
    """
    if factor == 1.0:
        yield
        return
    for group in optimizer.param_groups:
        if not isinstance(group.get("lr"), int | float | Tensor):
            raise ConfigError(
                f"learning_rate_factor={factor:g} has no learning rate to multiply: a parameter "
                f"group of this {type(optimizer).__name__} has lr={group.get('lr')!r}. Give it a "
                "number, or leave the factor at 1.0."
            )
    steps = _Steps(factor)
    hooks = (
        optimizer.register_step_pre_hook(steps.begin),
        optimizer.register_step_post_hook(steps.end),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        steps.restore(optimizer)
    if not steps.taken:
        _logger.warning(
            "learning_rate_factor=%g had no step to act in: the %s that local_training got took "
            "none. Give it the optimiser whose step() is called; an optimiser around another one "
            "hands it on (as sharpness-aware ones do: give it the inner one).",
            factor, type(optimizer).__name__,
        )  # fmt: skip


class _Steps:
    """Puts the factor on as a step begins and takes it off as it ends."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.taken = False
        # By group, empty between steps. Rates are replaced, never changed in place: groups may
        # share one tensor.
        self.own: list[Any] = []
        self.multiplied: list[Any] = []

    def begin(
        self, optimizer: Optimizer, args: Arguments, kwargs: Keywords
    ) -> tuple[Arguments, Keywords]:
        self.taken = True
        self.multiply(optimizer)
        args = tuple(self._closure(optimizer, arg) for arg in args)
        return args, {name: self._closure(optimizer, arg) for name, arg in kwargs.items()}

    def end(self, optimizer: Optimizer, args: Arguments, kwargs: Keywords) -> None:
        self.restore(optimizer)

    def multiply(self, optimizer: Optimizer) -> None:
        # A step that raised has not ended, and one that calls its base class's begins twice.
        self.restore(optimizer)
        self.own = [group["lr"] for group in optimizer.param_groups]
        self.multiplied = [own * self.factor for own in self.own]
        for group, multiplied in zip(optimizer.param_groups, self.multiplied, strict=True):
            group["lr"] = multiplied

    def restore(self, optimizer: Optimizer) -> None:
        # Not strict: a closure may add groups.
        rates = zip(optimizer.param_groups, self.own, self.multiplied, strict=False)
        for group, own, multiplied in rates:
            if group["lr"] is multiplied:  # else it was set since, and that holds
                group["lr"] = own
        self.own, self.multiplied = [], []

    def _closure(self, optimizer: Optimizer, argument: Any) -> Any:
        """Return a step's closure without the factor: it is the loop's code, and it may raise."""
        if not callable(argument):
            return argument

        def closure() -> Any:
            self.restore(optimizer)
            loss = argument()
            self.multiply(optimizer)
            return loss

        return closure
