"""Tell weights that an optimizer keeps in its state from momentum.

Lookahead keeps slow weights and schedule-free optimizers keep the sequence ``z``. They have the
shape of the parameters, but they belong to the model that was trained, not to the client's
momentum. Restored in the next round, they would pull the new global model back to the client's old
one.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_KNOWN = {"lookahead_slow_buff", "slow_buffer", "slow_param", "slow_params", "slow_weights", "z"}
_NEAR = 0.5  # distance from the parameters, as a share of their length


def without_weights(
    buffers: Mapping[str, Tensor], parameters: Mapping[str, Tensor], *, by_values: bool = True
) -> tuple[dict[str, Tensor], set[str]]:
    """Return an optimizer's buffers without those that are weights, and the slots of these.

    A slot is known by its name, or by its values: over all parameters they lie close to the
    parameters. Momentum does not. If only the values tell, all buffers are left out, because an
    unknown optimizer may expect the slots together.

    Examples:
        >>> import torch
        >>> weight = torch.tensor([1.0, -2.0])
        >>> without_weights({"w": weight / 10, "w.z": weight * 1.01}, {"w": weight})
        ({'w': tensor([ 0.1000, -0.2000])}, {'z'})

    Args:
        buffers: Buffers by key, as ``read_buffers`` returns them.
        parameters: The parameters by name, at the end of the training.
        by_values: Whether values may tell too. Default: True.
    """
    distance: dict[str, float] = {}
    length: dict[str, float] = {}
    slot_of: dict[str, str] = {}
    for key, buffer in buffers.items():
        name, _, slot = key.rpartition(".")
        if key in parameters or name not in parameters or buffer.shape != parameters[name].shape:
            continue
        slot_of[key] = slot
        own = parameters[name].detach().to(buffer)
        distance[slot] = distance.get(slot, 0.0) + float(
            (buffer.detach() - own).double().square().sum()
        )
        length[slot] = length.get(slot, 0.0) + float(own.double().square().sum())
    weights = {
        slot
        for slot in distance
        if slot in _KNOWN
        or (by_values and length[slot] > 0 and distance[slot] <= _NEAR**2 * length[slot])
    }
    kept = {key: buffer for key, buffer in buffers.items() if slot_of.get(key) not in weights}
    return (kept if weights <= _KNOWN else {}), weights
