"""FixBNCallback: the bits of a plain loop inside local_training, for both package names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flwr.app import Context
from torch import Tensor, nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from fixbn_flwr import Phase, local_training
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.batch_norm import statistics
from tests.support.rounds import client, round_config

PACKAGES = [pytest.importorskip(name) for name in ("lightning.pytorch", "pytorch_lightning")]

from fixbn_flwr.lightning import FixBNCallback, _callbacks  # noqa: E402 -- after the skip

pytestmark = pytest.mark.filterwarnings(
    "ignore:The '(train|val)_dataloader' does not have many workers",
    "ignore:The number of training batches",
    "ignore:Found . module.s. in eval mode at the start of training",
    r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated:FutureWarning",
)

RATE = 0.05
ROUNDS = [Phase.EXPLORATION, Phase.CALIBRATION, Phase.CALIBRATION]


class Steps:
    """As in a quickstart: the module makes its own optimizer and scheduler."""

    net: nn.Module
    parameters: Any

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

    def training_step(self, batch: list[Tensor], _: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor], _: int) -> None:
        assert not self.net.training

    def configure_optimizers(self) -> Any:
        optimizer = SGD(self.parameters(), RATE, momentum=0.9)
        scheduler = LambdaLR(optimizer, lambda epoch: 0.5**epoch)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class Module(Steps, PACKAGES[0].LightningModule):  # type: ignore[misc, name-defined]
    """A module of the package `lightning`."""


class ModuleOfOtherName(Steps, PACKAGES[1].LightningModule):  # type: ignore[misc, name-defined]
    """A module of the package `pytorch_lightning`."""


def loader() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(12, 4, generator=generator) + 1
    return DataLoader(TensorDataset(images, torch.arange(12) % 2), batch_size=4)


def fit(module: Any, callback: Any, **options: Any) -> None:
    package = PACKAGES[isinstance(module, PACKAGES[1].LightningModule)]
    trainer = package.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[callback], **options,
    )  # fmt: skip
    module.train()
    trainer.fit(module, loader(), loader())


def with_lightning(model: Module, received: Any, context: Context) -> None:
    fit(model, FixBNCallback(received, context))


def plainly(model: Module, received: Any, context: Context) -> None:
    """The same training as a loop of one's own."""
    configured = model.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]
    with local_training(model, optimizer, received, context):
        for _ in range(2):
            model.train()
            for batch in loader():
                optimizer.zero_grad()
                model.training_step(batch, 0).backward()
                optimizer.step()
            scheduler.step()


@pytest.mark.parametrize("module", [Module, ModuleOfOtherName])
def test_three_rounds_have_the_bits_of_a_plain_loop(module: Any) -> None:
    models = []
    for train in (with_lightning, plainly):
        model, context = module(), client()
        for number, phase in enumerate(ROUNDS, 1):
            before = statistics(model)
            received = round_config(phase=phase, server_round=number, factor=0.3)
            train(model, received, context)
            frozen = all(torch.equal(before[name], v) for name, v in statistics(model).items())
            assert frozen is (phase is Phase.CALIBRATION)
        models.append(model)
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name]), name


@pytest.mark.parametrize(
    "options",
    [{"accumulate_grad_batches": 3, "gradient_clip_val": 0.5}, {"precision": "bf16-mixed"}],
)
def test_statistics_stay_frozen_with_accumulation_and_mixed_precision(
    options: dict[str, Any],
) -> None:
    model, context = Module(), client()
    before, weight = statistics(model), model.net[0].weight.detach().clone()
    fit(model, FixBNCallback(round_config(phase=Phase.CALIBRATION), context), **options)
    assert all(torch.equal(before[name], value) for name, value in statistics(model).items())
    assert not torch.equal(weight, model.net[0].weight)
    assert context.state  # the momentum buffers


def test_the_records_hold_the_global_momentum() -> None:
    callback = FixBNCallback(round_config(momentum="global"), client())
    assert callback.records == {}
    fit(Module(), callback)
    assert callback.records or callback.metrics


def test_several_optimizers_are_refused() -> None:
    class Two(Module):
        def configure_optimizers(self) -> Any:
            return [SGD(self.net[0].parameters(), 0.1), SGD(self.net[3].parameters(), 0.1)]

        def training_step(self, batch: list[Tensor], _: int) -> None:
            raise AssertionError("training must not begin")

        automatic_optimization = False

    with pytest.raises(ConfigError, match="Two has 2 optimizers, and FixBN keeps the momentum of"):
        fit(Two(), FixBNCallback(round_config(), client()))


def test_an_exception_thaws_the_statistics_and_saves_nothing() -> None:
    class Failing(Module):
        def training_step(self, batch: list[Tensor], number: int) -> Tensor:
            raise RuntimeError("no memory")

    model, context = Failing(), client()
    with pytest.raises(RuntimeError, match="no memory") as raised:
        fit(model, FixBNCallback(round_config(phase=Phase.CALIBRATION), context))
    assert raised.traceback[-1].name == "training_step"
    assert type(model.net[1]) is nn.BatchNorm1d
    assert not context.state


def test_the_callback_is_one_of_each_package_in_use() -> None:
    assert _callbacks() == [package.Callback for package in PACKAGES]
    assert all(issubclass(FixBNCallback, callback) for callback in _callbacks())
