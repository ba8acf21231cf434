"""Start a network from weights in a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fixbn_flwr.errors import ConfigError

_SHOWN = 5  # names in an error message


def load_pretrained(network: nn.Module, path: Path, classes: int) -> list[str]:
    """Load weights into a network, except those of a classifier with other classes.

    Args:
        network: The network.
        path: A `.safetensors` file, or a state dict that `torch.save` wrote, which may be the entry
            `state_dict` or `model` of a dict. Nothing in the file is executed.
        classes: The number of the network's outputs.

    Returns:
        The names of the parameters that keep their initial values, because the file has them for
        another number of classes.

    Raises:
        ConfigError: If the file cannot be read, or is of another network.
    """
    weights, own = _read(path), network.state_dict()
    weights = {name: value for name, value in weights.items() if not _is_auxiliary(name, own)}
    missing = [
        name for name in own if name not in weights and not name.endswith("num_batches_tracked")
    ]
    unknown = [name for name in weights if name not in own]
    differing = {
        name: value
        for name, value in weights.items()
        if name in own and value.shape != own[name].shape
    }
    head = [name for name, value in differing.items() if _is_head(value, own[name], classes)]
    wrong = [
        f"{name} is {list(value.shape)} in the file and {list(own[name].shape)} in the network"
        for name, value in differing.items()
        if name not in head
    ]
    problems = [
        f"{len(found)} {what}: {', '.join(found[:_SHOWN])}{' ...' if found[_SHOWN:] else ''}"
        for found, what in (
            (missing, "missing in the file"),
            (unknown, "unknown to the network"),
            (wrong, "of another shape"),
        )
        if found
    ]
    if problems:
        raise ConfigError(
            f"pretrained is {path}, whose weights are not those of the model ({'; '.join(problems)}"
            "): use weights of the same network, or choose the model that the weights are of."
        )
    network.load_state_dict({n: v for n, v in weights.items() if n not in head}, strict=False)
    return head


def _read(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:  # damaged files raise many types
        raise ConfigError(
            f"pretrained is {path}, which cannot be read ({e}): name a .safetensors file, or a"
            " state dict that torch.save wrote."
        ) from e
    for entry in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(entry), Mapping):
            content = content[entry]
    if not isinstance(content, Mapping) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ConfigError(
            f"pretrained is {path}, which holds a {type(content).__name__} and no state dict: save"
            " model.state_dict() in it."
        )
    return {str(name): value for name, value in content.items()}


def _is_auxiliary(name: str, own: Mapping[str, Tensor]) -> bool:
    """Return whether a weight is of an auxiliary classifier, which the app builds without."""
    return name not in own and name.lower().startswith("aux")


def _is_head(value: Tensor, own: Tensor, classes: int) -> bool:
    """Return whether two tensors differ only in the number of classes."""
    return value.ndim == own.ndim > 0 and len(own) == classes and value.shape[1:] == own.shape[1:]
