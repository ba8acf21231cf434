"""The network that a run starts from, the same in a federation and in centralised training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.log import logger
from fixbn_flwr.method.averaging import Kind, kind_of
from fixbn_flwr.models.libraries import is_library_model
from fixbn_flwr.models.pretrained import load_pretrained
from fixbn_flwr.tasks import Task
from fixbn_flwr.tasks.networks import network_of
from fixbn_flwr.tasks.signature import Signature


def initial_network(task: Task, settings: Settings) -> nn.Module:
    """Build a network with the weights of `pretrained`, or with weights drawn by the seed.

    The weights of a resumed run are in its checkpoint, so `pretrained` is not read again.

    Raises:
        ConfigError: If the network cannot be built, has nothing to freeze, or the weights are not
            its.
    """
    torch.manual_seed(settings.seed)
    network = network_of(task, settings.model, settings.norm)
    names = network.state_dict()
    if settings.may_freeze and not any(kind_of(name) is Kind.STATISTIC for name in names):
        raise ConfigError(
            f"model is {settings.model!r}, which has no batch normalization, so there are no"
            " statistics to freeze: set freeze-after=1.0, or choose another model."
        )
    if settings.pretrained and not settings.resume:
        path = Path(settings.pretrained).expanduser()
        new = load_pretrained(network, path, task.classes)
        of_head = f", but for the classifier ({', '.join(new)}), which is new" if new else ""
        logger.info("the model starts from %s%s", path, of_head)
    return network


@torch.inference_mode()
def check_input(network: nn.Module, settings: Settings, signature: Signature) -> None:
    """Check that a network of a library takes images of the data's size.

    Raises:
        ConfigError: If it does not.
    """
    if not is_library_model(settings.model):
        return
    was_training = network.training
    network.eval()
    try:
        network(torch.zeros(1, *signature.input_size))
    except Exception as error:  # of any network
        height, width = signature.input_size[1:]
        raise ConfigError(
            f"model is {settings.model!r}, which does not take images of {height}x{width} pixels"
            f" ({error}): set image-size to a size that it takes, such as 224, or choose another"
            " model."
        ) from error
    network.train(was_training)
