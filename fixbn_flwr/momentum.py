"""An optimiser's buffers by parameter name: read them, write them, start from zero.

FixBN's second proposal (arXiv 2303.06530, section 5): a client goes on from the momentum with which
its last local training ended. torch keeps buffers by parameter object and saves them by position;
names survive a new process, a new optimiser and another order of the parameters.

A buffer's key is its parameter's name for SGD's momentum, and ``name.slot`` for whatever else an
optimiser keeps (Adam's ``exp_avg``, ``exp_avg_sq`` and ``step``).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fixbn_flwr.errors import MomentumError

Buffers = dict[str, Tensor]

_SGD_SLOT = "momentum_buffer"
_STEP_SLOT = "step"


def read_buffers(model: nn.Module, optimizer: Optimizer) -> Buffers:
    """Return a copy on the CPU of every buffer that ``optimizer`` holds, in the model's order.

    A parameter that has no buffer yet (no step was taken, or it got no gradient) is left out.

    Raises:
        MomentumError: the optimiser trains a parameter that is not the model's.
    """
    buffers: Buffers = {}
    for name, parameter in _trained_parameters(model, optimizer).items():
        for slot, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                key = name if slot == _SGD_SLOT else f"{name}.{slot}"
                # Contiguous: files and messages hold plain arrays whatever the memory format is.
                buffers[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
    return buffers


def read_momentum(model: nn.Module, optimizer: Optimizer) -> Buffers:
    """Return SGD's momentum of every trained parameter, zeros where there is none yet.

    Always the same names and shapes, so that a server can average what several clients return.

    Raises:
        MomentumError: the optimiser keeps other buffers than SGD's momentum.
    """
    parameters = _trained_parameters(model, optimizer)
    buffers = read_buffers(model, optimizer)
    if foreign := [key for key in buffers if key not in parameters]:
        raise MomentumError(
            f"{type(optimizer).__name__} keeps {foreign[0]!r}, and only SGD's momentum can be "
            'averaged by the server: use torch.optim.SGD, or momentum="local" or "reset".'
        )
    return {
        name: buffers[name] if name in buffers else torch.zeros_like(parameter, device="cpu")
        for name, parameter in parameters.items()
    }


def write_buffers(model: nn.Module, optimizer: Optimizer, buffers: Mapping[str, Tensor]) -> None:
    """Put ``buffers`` into ``optimizer`` in place of all that it holds.

    Parameters without a buffer start from zero; ``write_buffers(model, optimizer, {})`` resets
    all. Values are copied to each parameter's device, type and memory format (a step count, which
    is a single number, keeps its type and stays on the CPU unless the optimiser is fused).

    Raises:
        MomentumError: a buffer's name or shape fits no parameter. The optimiser is then unchanged.
    """
    parameters = _trained_parameters(model, optimizer)
    steps_on_device = {
        parameter
        for group in optimizer.param_groups
        if group.get("fused") or group.get("capturable")
        for parameter in group["params"]
    }
    state: dict[Tensor, dict[str, Tensor]] = {}
    for key, buffer in buffers.items():
        name, slot = (key, _SGD_SLOT) if key in parameters else (*key.rsplit(".", 1), "")[:2]
        if name not in parameters:
            raise MomentumError(
                f"the kept momentum has a buffer {key!r}, and the optimiser trains no parameter of "
                'that name. If the model changed on purpose, use momentum="reset" or a new run.'
            )
        parameter = parameters[name]
        if buffer.shape == parameter.shape and slot != _STEP_SLOT:
            value = torch.empty_like(parameter, requires_grad=False).copy_(buffer)
        elif buffer.dim() == 0:
            value = buffer.clone()
            if slot == _STEP_SLOT and parameter in steps_on_device:
                value = value.to(parameter.device)
        else:
            raise MomentumError(
                f"the kept momentum of {name!r} has shape {tuple(buffer.shape)}, the parameter has "
                f'{tuple(parameter.shape)}. If the model changed on purpose, use momentum="reset" '
                "or start a new run."
            )
        state.setdefault(parameter, {})[slot] = value
    optimizer.state.clear()
    optimizer.state.update(state)


def _trained_parameters(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's parameters by their name in the model, in the model's order."""
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    named: dict[str, Tensor] = {
        # torch.compile puts this into the names; a compiled model is still the same model.
        name.replace("_orig_mod.", ""): parameter
        for name, parameter in model.named_parameters()
        if parameter in trained
    }
    if len(named) < len(trained):
        raise MomentumError(
            f"the optimiser trains {len(trained)} parameters and only {len(named)} of them belong "
            f"to {type(model).__name__}: build it from this model's parameters()."
        )
    return named
