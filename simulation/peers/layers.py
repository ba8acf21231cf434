"""Replace the layers of a network."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn


def replace_layers(model: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> nn.Module:
    """Replace layers anywhere inside a model, and return the model.

    Args:
        model: The model, which is changed.
        make: Returns the layer in place of another one; None keeps that one.
    """
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            new = make(layer)
            if new is not None:
                setattr(parent, name, new)
    return model
