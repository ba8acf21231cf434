"""Multiply an optimizer's learning rate by a factor, only while it takes a step.

FixBN's calibration can use a smaller learning rate (``learning_rate_factor``). Training loops set
their rate in many ways: before the loop, by hand inside it, or with schedulers that read the
current or the initial rate. Changing the rate itself would interfere with all of them. Instead, the
step hooks of ``torch.optim.Optimizer`` apply the factor when a step begins and remove it when the
step ends. Mixed precision, compiled steps, Lightning and accelerate call these hooks too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.log import logger

Arguments = tuple[Any, ...]
Keywords = dict[str, Any]


@contextmanager
def multiplied_learning_rate(
    optimizer: Optimizer, factor: float, model: nn.Module | None = None
) -> Iterator[None]:
    """Multiply the learning rate by ``factor`` in every step inside a ``with`` block.

    The block reads and writes the rate without the factor in ``param_groups``, as a number or a
    tensor. Groups that the block adds are included. A warning is logged if this optimizer takes no
    step inside the block, or if other parameters of the model are trained there, since another
    optimizer may have taken the steps.

    Two cases differ: Rprop reads its rate only at its first step, so the factor has no effect
    later; and whatever a subclass does after ``super().step()`` uses the full rate.

    Args:
        optimizer: An optimizer whose groups have an ``"lr"``.
        factor: The factor; 1.0 does nothing.
        model: The model. Default: None, only the optimizer's own parameters are watched.

    Raises:
        ConfigError: If a parameter group has no learning rate.
    """
    if factor == 1.0:
        yield
        return
    for group in optimizer.param_groups:
        if not isinstance(group.get("lr"), int | float | Tensor):
            raise ConfigError(
                f"learning_rate_factor={factor:g} has no learning rate to multiply: a parameter "
                f"group of this {type(optimizer).__name__} has lr={group.get('lr')!r}. Set lr to a "
                "number, or the factor to 1.0."
            )
    steps = _Steps(factor)
    before = _versions(optimizer)
    of_model = {} if model is None else {p: p._version for p in model.parameters()}
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
    # A client without examples takes no step, and changes no parameter.
    if not steps.taken and _versions(optimizer) != before:
        logger.warning(
            "learning_rate_factor=%g had no effect: the %s passed to local_training took no step. "
            "Pass the optimizer whose step() is called. If one optimizer wraps another, as for "
            "sharpness-aware minimization, pass the inner one.",
            factor, type(optimizer).__name__,
        )  # fmt: skip
    own = {p for group in optimizer.param_groups for p in group["params"]}
    changed = [
        p for p, version in of_model.items()
        if p not in own and p.requires_grad and p._version > version
    ]  # fmt: skip
    if changed:
        logger.warning(
            "learning_rate_factor=%g had no effect on %s parameters of the model, which the %s "
            "passed to local_training does not train. If a second optimizer does, multiply its "
            "learning rate by local.learning_rate_factor, or use one optimizer with a parameter "
            "group for each learning rate.",
            factor, len(changed), type(optimizer).__name__,
        )  # fmt: skip


def _versions(optimizer: Optimizer) -> list[int]:
    """Return how often each parameter has been changed in place, by torch's own count."""
    return [p._version for group in optimizer.param_groups for p in group["params"]]


class _Steps:
    """Step hooks that apply the factor when a step begins and remove it when the step ends."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.taken = False
        # One entry per group, empty between steps. Rates are replaced, never changed in place,
        # because groups may share one tensor.
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
        # A step that raised has no end, and a step that calls its base class's begins twice.
        self.restore(optimizer)
        self.own = [group["lr"] for group in optimizer.param_groups]
        self.multiplied = [own * self.factor for own in self.own]
        for group, multiplied in zip(optimizer.param_groups, self.multiplied, strict=True):
            group["lr"] = multiplied

    def restore(self, optimizer: Optimizer) -> None:
        # Not strict, because a closure may add groups.
        rates = zip(optimizer.param_groups, self.own, self.multiplied, strict=False)
        for group, own, multiplied in rates:
            if group["lr"] is multiplied:  # otherwise it was set during the step
                group["lr"] = own
        self.own, self.multiplied = [], []

    def _closure(self, optimizer: Optimizer, argument: Any) -> Any:
        """Wrap a step's closure so that it runs without the factor, like the rest of the loop."""
        if not callable(argument):
            return argument

        def closure() -> Any:
            self.restore(optimizer)
            loss = argument()
            self.multiply(optimizer)
            return loss

        return closure
