"""Networks of timm and torchvision, by name: `timm:resnet18`, `torchvision:resnet18`.

Their weights are drawn at random; nothing is downloaded. Batch normalisation is found by class, so
that `norm` can replace it in any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.models.norm import NORMS, Normaliser, normaliser

# Their training mode also returns the outputs of auxiliary classifiers.
_AUXILIARY = {"googlenet", "inception_v3"}


def is_library_model(model: str) -> bool:
    """Return whether `model` has the form `LIBRARY:NAME`."""
    return ":" in model


def check_library_model(model: str, *, per_pixel: bool) -> None:
    """Check that a network exists, without building it.

    Args:
        model: `timm:NAME` or `torchvision:NAME`.
        per_pixel: Whether the network is for segmentation.

    Raises:
        ConfigError: If there is no such library or network, or the package is not installed.
    """
    _builder(model, per_pixel=per_pixel)


def library_model(
    model: str, norm: str, *, classes: int, channels: int, per_pixel: bool
) -> nn.Module:
    """Build a network. Its weights are drawn from torch's global generator.

    Args:
        model: `timm:NAME` or `torchvision:NAME`.
        norm: The normalisation, see `fixbn_flwr.models.norm.normaliser`. "bn" changes nothing;
            another replaces each batch normalisation of the network. "none" is not possible.
        classes: The number of outputs.
        channels: The channels of an image. A network of torchvision takes 3.
        per_pixel: Whether the network returns the class of each pixel.

    Raises:
        ConfigError: If there is no such network, it does not take such images, or `norm` cannot
            replace its normalisation.

    Examples:
        >>> model = library_model("timm:resnet10t", "bn", classes=4, channels=3, per_pixel=False)
        >>> model(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 4])
    """
    build = _builder(model, per_pixel=per_pixel)
    if model.startswith("torchvision:") and channels != 3:
        raise ConfigError(
            f"model is {model!r}, which takes RGB images, but those of this task have {channels}"
            " channel: use a model of timm, which takes any number."
        )
    network = build(classes, channels)
    if norm != "bn":
        _replace_batch_norm(network, model, norm)
    return network


def _builder(model: str, *, per_pixel: bool) -> Callable[[int, int], nn.Module]:
    library, _, name = model.partition(":")
    if library == "timm" and not per_pixel:
        return _of_timm(name)
    if library == "torchvision":
        return _of_torchvision(name, per_pixel=per_pixel)
    if library == "timm":
        raise ConfigError(
            f"model is {model!r}, which classifies whole images, but this task has a class for each"
            " pixel: use deeplabv3plus or torchvision:deeplabv3_resnet50."
        )
    raise ConfigError(
        f"model is {model!r}, but there is no library {library!r}: use timm:NAME or"
        " torchvision:NAME."
    )


def _of_timm(name: str) -> Callable[[int, int], nn.Module]:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"model is 'timm:{name}', which needs the package timm ({error}): install it with"
            ' pip install "fixbn-flwr[timm]".'
        ) from error
    if not timm.is_model(name):
        similar = timm.list_models(f"*{name}*")[:5]
        raise ConfigError(
            f"model is 'timm:{name}', which timm {timm.__version__} does not have:"
            f" {'use ' + ', '.join(similar) if similar else 'timm.list_models() names all'}."
        )

    def build(classes: int, channels: int) -> nn.Module:
        network: nn.Module = timm.create_model(
            name, pretrained=False, num_classes=classes, in_chans=channels
        )
        return network

    return build


def _of_torchvision(name: str, *, per_pixel: bool) -> Callable[[int, int], nn.Module]:
    try:
        import torchvision
        from torchvision import models
    except ImportError as error:
        raise ConfigError(
            f"model is 'torchvision:{name}', which needs the package torchvision ({error}): install"
            ' it with pip install "fixbn-flwr[app]".'
        ) from error
    known = models.list_models(module=models.segmentation if per_pixel else models)
    if name not in known:
        kind = "segmentation" if per_pixel else "classification"
        similar = [other for other in known if name.lower() in other][:5] or known[:5]
        raise ConfigError(
            f"model is 'torchvision:{name}', which is no {kind} network of torchvision"
            f" {torchvision.__version__}: use a name such as {', '.join(similar)}."
        )
    others: dict[str, Any] = {"weights": None}
    if per_pixel:
        others["weights_backbone"] = None
    if name in _AUXILIARY:
        others |= {"aux_logits": False, "init_weights": True}

    def build(classes: int, _channels: int) -> nn.Module:
        network: nn.Module = models.get_model(name, num_classes=classes, **others)
        if per_pixel:
            network.register_forward_hook(_main_output)
        return network

    return build


def _main_output(_network: nn.Module, _inputs: object, output: Mapping[str, torch.Tensor]) -> Any:
    return output["out"]


def _replace_batch_norm(network: nn.Module, model: str, norm: str) -> None:
    make = normaliser(norm)
    if norm == "none":
        raise ConfigError(
            f"norm is 'none', which {model} does not support, because FixUp's initialisation is for"
            f" this package's residual networks: choose {', '.join(n for n in NORMS if n != norm)}."
        )
    found = [
        (module, name, layer)
        for module in list(network.modules())
        for name, layer in module.named_children()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]
    if not found:
        raise ConfigError(
            f"norm is {norm!r}, but {model} has no batch normalisation to replace: use norm=bn with"
            " freeze-after=1.0, which leaves the network as it is."
        )
    for module, name, layer in found:
        setattr(module, name, _instead_of(layer, make))


def _instead_of(layer: nn.modules.batchnorm._BatchNorm, make: Normaliser) -> nn.Module:
    norm = make(layer.num_features)
    # timm has layers that are a batch normalisation with an activation.
    rest = [getattr(layer, name) for name in ("drop", "act") if hasattr(layer, name)]
    return nn.Sequential(norm, *rest) if rest else norm
