"""Read, write and reset an optimizer's buffers by parameter name.

FixBN's second proposal (arXiv 2303.06530) is that a client resumes with the momentum at the end of
its last local training. torch keys buffers by parameter object and saves them by position. Names
also work with a new process, a new optimizer or another order of the parameters.

The key of SGD's momentum is the parameter's name. All other buffers have the key ``name.slot``, for
example Adam's ``exp_avg``, ``exp_avg_sq`` and ``step``. All of torch's optimizers are supported
except LBFGS, whose history belongs to no single parameter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from fixbn_flwr.errors import MomentumError
from fixbn_flwr.method.optimizer_slots import missing_slot, state_when_built

Buffers = dict[str, Tensor]
_SGD_SLOT = "momentum_buffer"
_STEP_SLOT = "step"
# Slots with one number per parameter. A shape does not tell: parameters can be 0-d too.
_NUMBERS = (_STEP_SLOT, "mu_product", "mu", "eta")
_REMEDY = 'use momentum="reset", or an optimizer that keeps its buffers by parameter (SGD, Adam)'
_AVERAGED = tuple(getattr(torch.optim, n) for n in ("SGD", "Muon") if hasattr(torch.optim, n))


def check_optimizer(optimizer: Optimizer, *, averaged: bool) -> None:
    """Raise an error, before training, if an optimizer's buffers cannot be kept.

    Args:
        optimizer: The optimizer.
        averaged: Whether the server averages the buffers, which works for SGD and Muon.

    Raises:
        MomentumError: If it is LBFGS or, if ``averaged``, another of torch's optimizers that keeps
            more than momentum.
    """
    if isinstance(optimizer, LBFGS):
        raise MomentumError(
            f"LBFGS keeps one history for all parameters together, not by their names: {_REMEDY}."
        )
    from_torch = type(optimizer).__module__.startswith("torch.optim")
    if averaged and from_torch and not isinstance(optimizer, _AVERAGED):
        raise _only_momentum(optimizer, "more than momentum")


def read_buffers(model: nn.Module, optimizer: Optimizer) -> Buffers:
    """Return copies on the CPU of all buffers of ``optimizer``, in the model's order.

    Args:
        model: The model whose parameters the optimizer trains.
        optimizer: The optimizer.

    Returns:
        The buffers by key. Parameters without a buffer are left out. Step counts that are Python
        ints, as SparseAdam's are, become 0-d int64 tensors.

    Raises:
        MomentumError: If the optimizer trains a parameter that the model does not have, or keeps
            something other than numbers, buffers of the parameter's shape, or rows and columns of
            that shape (as Adafactor does).
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
            # Python ints become int64 tensors. torch's own step tensors are floats.
            slot: torch.tensor(value) if type(value) is int else value
            for slot, value in optimizer.state.get(parameter, {}).items()
            if value is not None  # SGD's buffer with momentum 0
        }
        for slot, value in kept.items():
            if not isinstance(value, Tensor):
                raise MomentumError(
                    f"{type(optimizer).__name__} keeps {slot!r} for {name!r}, which is a "
                    f"{type(value).__name__}, not a tensor: {_REMEDY}."
                )
        if not _fit(kept, parameter):
            raise MomentumError(
                f"{type(optimizer).__name__} keeps buffers of shapes {_shapes(kept)} for {name!r}, "
                f"which has {tuple(parameter.shape)}: {_REMEDY}."
            )
        for slot, value in kept.items():
            key = name if slot == _SGD_SLOT else f"{name}.{slot}"
            # Contiguous, because files and messages do not keep the memory format.
            # Dense, because a sparse gradient makes sparse momentum, which files cannot hold.
            dense = value.detach().cpu()
            dense = dense.to_dense() if dense.layout != torch.strided else dense
            buffers[key] = dense.clone(memory_format=torch.contiguous_format)
    return buffers


def read_momentum(model: nn.Module, optimizer: Optimizer) -> Buffers:
    """Return SGD's momentum of every trained parameter, or zeros where there is none yet.

    All clients return the same names and shapes, so the server can average them.

    Raises:
        MomentumError: If the optimizer keeps buffers other than SGD's momentum.
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
    """Replace all state of ``optimizer`` with ``buffers``.

    Parameters without a buffer start as in a new optimizer, so ``write_buffers(model, optimizer,
    {})`` resets everything. Values are copied to each parameter's device and memory format, and
    keep their type. Step counts stay on the CPU unless the optimizer is fused or capturable.
    Buffers of parameters that this optimizer does not train are ignored.

    Args:
        model: The model whose parameters the optimizer trains.
        optimizer: The optimizer.
        buffers: The buffers, as ``read_buffers`` or ``read_momentum`` returns them.

    Raises:
        MomentumError: If a buffer's name or shape matches no parameter of the model, or one of
            torch's optimizers needs more slots. The optimizer is then unchanged.
    """
    of_model = named_parameters(model)
    parameters = _trained_parameters(model, optimizer, of_model)
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
                f"the momentum has a buffer {key!r}, but the model has no parameter of that name. "
                'If the model changed on purpose, use momentum="reset" or start a new run.'
            )
        if name in parameters:
            kept.setdefault(name, {})[slot] = buffer
    state = state_when_built(optimizer)
    for name, slots in kept.items():
        parameter = parameters[name]
        if not _fit(slots, parameter):
            raise MomentumError(
                f"the momentum of {name!r} has shape {_shapes(slots)}, but the parameter has "
                f'{tuple(parameter.shape)}. If the model changed on purpose, use momentum="reset" '
                "or start a new run."
            )
        state[parameter] = {
            slot: _placed(slot, buffer, parameter, parameter in steps_on_device)
            for slot, buffer in slots.items()
        }
    if missing := missing_slot(optimizer, {parameters[name]: kept[name] for name in kept}):
        raise MomentumError(
            f"the momentum is not that of {type(optimizer).__name__} with these options: it has no "
            f'{missing[1]!r}. If the optimizer changed on purpose, use momentum="reset" or start '
            "a new run."
        )
    optimizer.state.clear()
    optimizer.state.update(state)


def _placed(slot: str, buffer: Tensor, parameter: Tensor, step_on_device: bool) -> Tensor | int:
    """Return a copy of a buffer with the device and format that the optimizer uses."""
    if buffer.dim() == 0 and buffer.dtype == torch.int64:
        return int(buffer)
    if slot == _STEP_SLOT:
        return buffer.clone().to(parameter.device if step_on_device else "cpu")
    if buffer.shape == parameter.shape and slot not in _NUMBERS:
        return torch.empty_like(parameter, dtype=buffer.dtype, requires_grad=False).copy_(buffer)
    return buffer.clone().to(parameter.device)  # a number, or Adafactor's rows and columns


def _fit(slots: Mapping[str, Tensor], parameter: Tensor) -> bool:
    """Return whether the buffers have the parameter's shape, or rows and columns spanning it."""
    shapes = [buffer.shape for slot, buffer in slots.items() if slot not in _NUMBERS]
    if all(shape == parameter.shape for shape in shapes):  # fast path: broadcast_shapes is slow
        return True
    try:
        spanned: torch.Size = torch.broadcast_shapes(*shapes)  # type: ignore[no-untyped-call]
    except RuntimeError:
        return False
    return spanned == parameter.shape


def _shapes(slots: Mapping[str, Tensor]) -> str:
    distinct = {tuple(buffer.shape) for slot, buffer in slots.items() if slot not in _NUMBERS}
    return ", ".join(str(shape) for shape in sorted(distinct))


def _only_momentum(optimizer: Optimizer, what: str) -> MomentumError:
    return MomentumError(
        f"{type(optimizer).__name__} keeps {what}, but the server can average only SGD's momentum: "
        'use torch.optim.SGD, or momentum="local" or "reset".'
    )


def fingerprint(model: nn.Module) -> str:
    """Return a hash of the names, shapes and types of a model's parameters, 16 hex digits."""
    parameters = named_parameters(model).items()
    described = [(name, list(value.shape), str(value.dtype)) for name, value in parameters]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:16]


def _trained_parameters(
    model: nn.Module, optimizer: Optimizer, of_model: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return the optimizer's parameters by name, in the model's order."""
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    of_model = named_parameters(model) if of_model is None else of_model
    named = {name: p for name, p in of_model.items() if p in trained}
    if len(named) < len(trained):
        raise MomentumError(
            f"the optimizer trains {len(trained)} parameters, but only {len(named)} of them belong "
            f"to {type(model).__name__}: build it from this model's parameters()."
        )
    return named


def named_parameters(model: nn.Module) -> dict[str, Tensor]:
    """Return all parameters by their name in the unwrapped model."""
    # torch.compile and data parallelism add prefixes to the names.
    parallel = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    prefix = "module." if isinstance(getattr(model, "_orig_mod", model), parallel) else ""
    return {
        name.replace("_orig_mod.", "").removeprefix(prefix): parameter
        for name, parameter in model.named_parameters()
    }
