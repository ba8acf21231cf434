"""The slots of buffers that torch's optimizers have at first, and need together.

An optimizer of torch makes all its slots when a parameter has none, and fails if only some of them
are there, as after a change from SGD to Adam.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adagrad, Optimizer, SparseAdam


def state_when_built(optimizer: Optimizer) -> dict[Tensor, dict[str, Any]]:
    """Return the state of a newly built optimizer of this kind: empty except for Adagrad."""
    if not isinstance(optimizer, Adagrad):
        return {}
    first_sum, groups = optimizer.defaults["initial_accumulator_value"], optimizer.param_groups
    return dict(Adagrad(map(dict, groups), initial_accumulator_value=first_sum).state)


def missing_slot(
    optimizer: Optimizer, slots_of: Mapping[Tensor, Collection[str]]
) -> tuple[Tensor, str] | None:
    """Return a parameter and a slot that one of torch's optimizers needs beside its others.

    What another optimizer needs is not known.

    Args:
        optimizer: The optimizer.
        slots_of: The slots of each parameter that has some.

    Returns:
        None if no slot is missing.
    """
    if not type(optimizer).__module__.startswith("torch.optim"):
        return None
    for group in optimizer.param_groups:
        needed: dict[tuple[Any, ...], set[str]] = {}
        for parameter in group["params"]:
            if parameter not in slots_of:
                continue
            kind = (parameter.dim(), parameter.dtype, parameter.device)
            if kind not in needed:
                needed[kind] = _slots_after_a_step(optimizer, group, parameter)
            if missing := needed[kind].difference(slots_of[parameter]):
                return parameter, min(missing)
    return None


def _slots_after_a_step(
    optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor
) -> set[str]:
    """Return the slots that an optimizer makes for a parameter of this kind."""
    value = torch.zeros((1,) * parameter.dim(), dtype=parameter.dtype, device=parameter.device)
    gradient = torch.zeros_like(value)
    value.grad = gradient.to_sparse() if isinstance(optimizer, SparseAdam) else gradient
    options = {name: option for name, option in group.items() if name != "param_names"}
    build: Any = type(optimizer)  # the options of the group are all that it is built with
    twin = build([{**options, "params": [value]}])
    twin.step()
    return {slot for slot, buffer in twin.state[value].items() if buffer is not None}
