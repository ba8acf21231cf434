"""An optimiser's buffers by parameter name: read them, write them, start from zero.

FixBN's second proposal (arXiv 2303.06530, section 5): a client goes on from the momentum with which
its last local training ended. torch keeps buffers by parameter object and saves them by position;
names survive a new process, a new optimiser and another order of the parameters.

A buffer's key is its parameter's name for SGD's momentum, and ``name.slot`` for whatever else an
optimiser keeps (Adam's ``exp_avg``, ``exp_avg_sq`` and ``step``). All of torch's optimisers are
served but LBFGS, whose history belongs to no single parameter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adagrad, Muon, Optimizer

from fixbn_flwr.errors import MomentumError

Buffers = dict[str, Tensor]

_SGD_SLOT = "momentum_buffer"
_STEP_SLOT = "step"
# Single numbers that torch's optimisers keep for a parameter, which may be a single number itself.
_NUMBERS = (_STEP_SLOT, "mu_product", "mu", "eta")
_REMEDY = 'use momentum="reset", or an optimiser that keeps its buffers by parameter (SGD, Adam)'


def check_optimizer(optimizer: Optimizer, *, averaged: bool) -> None:
    """Refuse, before any training, one of torch's optimisers whose buffers could not be kept.

    Args:
        optimizer: the optimiser.
        averaged: whether the server is to average the buffers; it can average SGD's and Muon's.

    Raises:
        MomentumError: LBFGS; if ``averaged``, any of torch's others that keeps more than momentum.
    """
    if isinstance(optimizer, LBFGS):
        raise MomentumError(
            f"LBFGS keeps one history for all parameters together, not by their names: {_REMEDY}."
        )
    torchs_own = type(optimizer).__module__.startswith("torch.optim")
    if averaged and torchs_own and not isinstance(optimizer, SGD | Muon):
        raise _only_momentum(optimizer, "more than momentum")


def read_buffers(model: nn.Module, optimizer: Optimizer) -> Buffers:
    """Return a copy on the CPU of every buffer that ``optimizer`` holds, in the model's order.

    A parameter that has no buffer yet (no step was taken, or it got no gradient) is left out. A
    step count that is a Python number (SparseAdam's) is returned as a 0-d int64 tensor.

    Raises:
        MomentumError: the optimiser trains a parameter that is not the model's, or keeps something
            that is neither a number nor a buffer of its parameter's shape (or that shape's rows and
            columns, as Adafactor does).
    """
    parameters = _trained_parameters(model, optimizer)
    if foreign := [key for key in optimizer.state if not isinstance(key, Tensor)]:
        raise MomentumError(
            f"{type(optimizer).__name__} keeps {foreign[0]!r} for all parameters together, not by "
            f"their names: {_REMEDY}."
        )
    buffers: Buffers = {}
    for name, parameter in parameters.items():
        kept = {
            # Python's int is torch's int64 and back: torch's own counts are floats.
            slot: torch.tensor(value) if type(value) is int else value
            for slot, value in optimizer.state.get(parameter, {}).items()
            if value is not None  # SGD's, while its momentum is 0
        }
        for slot, value in kept.items():
            if not isinstance(value, Tensor):
                raise MomentumError(
                    f"{type(optimizer).__name__} keeps {slot!r} for {name!r}, a "
                    f"{type(value).__name__} and no tensor: {_REMEDY}."
                )
        if not _fit(kept, parameter):
            raise MomentumError(
                f"{type(optimizer).__name__} keeps buffers of shapes {_shapes(kept)} for {name!r}, "
                f"which has {tuple(parameter.shape)}: {_REMEDY}."
            )
        for slot, value in kept.items():
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
        raise _only_momentum(optimizer, repr(foreign[0]))
    return {
        name: buffers[name] if name in buffers else torch.zeros_like(parameter, device="cpu")
        for name, parameter in parameters.items()
    }


def write_buffers(model: nn.Module, optimizer: Optimizer, buffers: Mapping[str, Tensor]) -> None:
    """Put ``buffers`` into ``optimizer`` in place of all that it holds.

    Parameters without a buffer start as in a new optimiser; ``write_buffers(model, optimizer, {})``
    resets all. Values are copied to each parameter's device, type and memory format (single numbers
    keep their type; a step count stays on the CPU unless the optimiser is fused or capturable).
    Buffers of the model's parameters that this optimiser does not train are passed over.

    Raises:
        MomentumError: a buffer's name or shape fits no parameter of the model. The optimiser is
            then unchanged.
    """
    parameters, of_model = _trained_parameters(model, optimizer), _named_parameters(model)
    steps_on_device = {
        parameter
        for group in optimizer.param_groups
        if group.get("fused") or group.get("capturable")
        for parameter in group["params"]
    }
    kept: dict[str, dict[str, Tensor]] = {}
    for key, buffer in buffers.items():
        name, slot = (key, _SGD_SLOT) if key in of_model else (*key.rsplit(".", 1), "")[:2]
        if name not in of_model:
            raise MomentumError(
                f"the kept momentum has a buffer {key!r}, and the model has no parameter of that "
                'name. If the model changed on purpose, use momentum="reset" or a new run.'
            )
        if name in parameters:
            kept.setdefault(name, {})[slot] = buffer
    state = _state_when_built(optimizer)
    for name, slots in kept.items():
        parameter = parameters[name]
        if not _fit(slots, parameter):
            raise MomentumError(
                f"the kept momentum of {name!r} has shape {_shapes(slots)}, the parameter has "
                f'{tuple(parameter.shape)}. If the model changed on purpose, use momentum="reset" '
                "or start a new run."
            )
        state[parameter] = {
            slot: _placed(slot, buffer, parameter, parameter in steps_on_device)
            for slot, buffer in slots.items()
        }
    optimizer.state.clear()
    optimizer.state.update(state)


def _placed(slot: str, buffer: Tensor, parameter: Tensor, step_on_device: bool) -> Tensor | int:
    """Return a copy of a kept buffer as the optimiser itself would hold it."""
    if buffer.dim() == 0 and buffer.dtype == torch.int64:
        return int(buffer)
    if slot == _STEP_SLOT:
        return buffer.clone().to(parameter.device if step_on_device else "cpu")
    if slot in _NUMBERS:
        return buffer.clone().to(parameter.device)
    if buffer.shape == parameter.shape:
        return torch.empty_like(parameter, requires_grad=False).copy_(buffer)
    return buffer.clone().to(parameter)  # Adafactor's rows and columns


def _fit(slots: Mapping[str, Tensor], parameter: Tensor) -> bool:
    """Whether a parameter's buffers have its shape, or are the rows and columns that span it."""
    shapes = [buffer.shape for slot, buffer in slots.items() if slot not in _NUMBERS]
    if all(shape == parameter.shape for shape in shapes):  # spares SGD the slow function below
        return True
    try:
        spanned: torch.Size = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False
    return spanned == parameter.shape


def _shapes(slots: Mapping[str, Tensor]) -> str:
    distinct = {tuple(buffer.shape) for slot, buffer in slots.items() if slot not in _NUMBERS}
    return ", ".join(str(shape) for shape in sorted(distinct))


def _state_when_built(optimizer: Optimizer) -> dict[Tensor, dict[str, Any]]:
    """Return the state of a new optimiser like this one, which is empty for all but Adagrad."""
    if not isinstance(optimizer, Adagrad):
        return {}
    groups = [dict(group) for group in optimizer.param_groups]
    first_sum = optimizer.defaults["initial_accumulator_value"]
    return dict(Adagrad(groups, initial_accumulator_value=first_sum).state)


def _only_momentum(optimizer: Optimizer, what: str) -> MomentumError:
    return MomentumError(
        f"{type(optimizer).__name__} keeps {what}, and only SGD's momentum can be averaged by the "
        'server: use torch.optim.SGD, or momentum="local" or "reset".'
    )


def fingerprint(model: nn.Module) -> str:
    """Return what names, shapes and types of a model's parameters come down to, 16 hex digits."""
    named = _named_parameters(model).items()
    parameters = [(name, list(value.shape), str(value.dtype)) for name, value in named]
    return hashlib.sha256(json.dumps(parameters).encode()).hexdigest()[:16]


def _trained_parameters(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's parameters by their name in the model, in the model's order."""
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    named = {name: p for name, p in _named_parameters(model).items() if p in trained}
    if len(named) < len(trained):
        raise MomentumError(
            f"the optimiser trains {len(trained)} parameters and only {len(named)} of them belong "
            f"to {type(model).__name__}: build it from this model's parameters()."
        )
    return named


def _named_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters by the name that they have in the bare model."""
    # torch.compile and data parallelism put these into the names; the model is still the same.
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    prefix = "module." if isinstance(getattr(model, "_orig_mod", model), parallel) else ""
    return {
        name.replace("_orig_mod.", "").removeprefix(prefix): parameter
        for name, parameter in model.named_parameters()
    }
