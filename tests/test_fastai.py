"""fastai's Learner: the bits of a plain loop inside local_training."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import TensorDataset

from fixbn_flwr import Phase, local_training
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.batch_norm import statistics
from tests.support.rounds import client, round_config

with warnings.catch_warnings():  # fastai uses parts of torch that are deprecated
    warnings.simplefilter("ignore")
    fastai = pytest.importorskip("fastai.basics", exc_type=ImportError)
    from fixbn_flwr.fastai import FixBNCallback

pytestmark = pytest.mark.filterwarnings("ignore")  # fastai's own
RATE, ROUNDS = 0.05, [Phase.EXPLORATION, Phase.CALIBRATION, Phase.CALIBRATION]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def images() -> TensorDataset:
    random = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(12, 4, generator=random) + 1, torch.arange(12) % 2)


def fit(model: nn.Module, callback: Any, **options: Any) -> None:
    loader = fastai.DataLoader(images(), batch_size=4, shuffle=False)
    learner = fastai.Learner(
        fastai.DataLoaders(loader, loader), model, loss_func=nn.functional.cross_entropy,
        **({"opt_func": partial(fastai.OptimWrapper, opt=partial(SGD, momentum=0.9))} | options),
    )  # fmt: skip
    with learner.no_logging():
        learner.fit(2, lr=RATE, wd=0.0, cbs=[callback])


def plainly(model: nn.Module, received: Any, context: Any) -> None:
    optimizer = SGD(model.parameters(), RATE, momentum=0.9)
    with local_training(model, optimizer, received, context):
        for _ in range(2):
            model.train()
            for batch in torch.utils.data.DataLoader(images(), batch_size=4):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
                optimizer.step()


def test_three_rounds_have_the_bits_of_a_plain_loop() -> None:
    models = []
    for with_fastai in (True, False):
        model, context = network(), client()
        for number, phase in enumerate(ROUNDS, 1):
            before = statistics(model)
            received = round_config(number, phase=phase, factor=0.3)
            if with_fastai:
                fit(model, FixBNCallback(received, context))
            else:
                plainly(model, received, context)
            frozen = all(torch.equal(before[name], v) for name, v in statistics(model).items())
            assert frozen is (phase is Phase.CALIBRATION)
        models.append(model)
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name]), name


def test_fastais_own_optimizer_is_refused_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match=r"fastai's own .*opt_func=partial\(OptimWrapper"):
        fit(network(), FixBNCallback(round_config(), client()), opt_func=fastai.SGD)
