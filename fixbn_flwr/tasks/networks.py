"""Build a network of a task: its own, or one of timm or torchvision."""

from __future__ import annotations

from torch import nn

from fixbn_flwr.models.libraries import is_library_model, library_model
from fixbn_flwr.tasks.task import Task


def network_of(task: Task, model: str, norm: str) -> nn.Module:
    """Build a network for a task. Its weights are drawn from torch's global generator.

    Args:
        task: The task.
        model: A name in `task.models`, or `timm:NAME` or `torchvision:NAME`.
        norm: The normalisation, see `fixbn_flwr.models.norm.normaliser`.

    Raises:
        ConfigError: If there is no such network of a library, or it does not support `norm`.
        KeyError: If the task has no such model.
    """
    if not is_library_model(model):
        return task.models[model](norm)
    return library_model(
        model,
        norm,
        classes=task.classes,
        channels=len(task.mean),
        per_pixel=task.masks is not None,
    )
