"""The Trainer of Hugging Face: the bits of a plain loop inside local_training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.utils.data import Dataset

from fixbn_flwr import Phase, local_training
from fixbn_flwr.method.batch_norm import statistics
from tests.support.rounds import client, round_config

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")
    accelerate = pytest.importorskip("accelerate")
    from fixbn_flwr.huggingface import FixBNCallback


@pytest.fixture(autouse=True)
def _own_accelerator() -> Iterator[None]:
    """The Trainer sets the accelerator of the whole process."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


RATE, ROUNDS = 0.01, [Phase.EXPLORATION, Phase.CALIBRATION, Phase.CALIBRATION]


class Network(nn.Module):
    """A model as the Trainer wants it: it returns a loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        # Before batch normalization a bias has no gradient, and Adam would step by its rounding.
        self.net = nn.Sequential(
            nn.Linear(4, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2)
        )

    def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {"loss": nn.functional.cross_entropy(self.net(images), labels)}


class Images(Dataset[Any]):
    def __init__(self) -> None:
        random = torch.Generator().manual_seed(1)
        self.images = torch.randn(12, 4, generator=random) + 1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"images": self.images[index], "labels": torch.tensor(index % 2)}


def fit(model: Network, callback: Any, folder: Path) -> None:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), num_train_epochs=2, per_device_train_batch_size=12,
        learning_rate=RATE, lr_scheduler_type="constant", max_grad_norm=0.0, report_to=[],
        save_strategy="no", logging_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    transformers.Trainer(model, arguments, train_dataset=Images(), callbacks=[callback]).train()


def plainly(model: Network, received: Any, context: Any) -> None:
    """The same training as a loop of one's own; a batch holds all images, so order is no matter."""
    optimizer = AdamW(model.parameters(), RATE, weight_decay=0.0)
    batch = torch.utils.data.default_collate([Images()[index] for index in range(12)])
    with local_training(model, optimizer, received, context):
        for _ in range(2):
            model.train()
            optimizer.zero_grad()
            model(**batch)["loss"].backward()
            optimizer.step()


@pytest.mark.filterwarnings("ignore")  # transformers' and accelerate's own
def test_three_rounds_end_like_a_plain_loop(tmp_path: Path) -> None:
    models = []
    for with_trainer in (True, False):
        model, context = Network(), client()
        for number, phase in enumerate(ROUNDS, 1):
            before = statistics(model)
            received = round_config(number, phase=phase, factor=0.3)
            if with_trainer:
                fit(model, FixBNCallback(received, context), tmp_path)
            else:
                plainly(model, received, context)
            frozen = all(torch.equal(before[name], v) for name, v in statistics(model).items())
            assert frozen is (phase is Phase.CALIBRATION)
        assert context.state  # the optimizer's buffers
        models.append(model)
    # The Trainer shuffles the batch, which changes the last digits of its means.
    for name, tensor in models[0].state_dict().items():
        torch.testing.assert_close(tensor, models[1].state_dict()[name], msg=name)
