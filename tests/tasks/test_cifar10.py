"""CIFAR-10: its real files, and the errors without them."""

import sys
from pathlib import Path

import pytest
import torch

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import get_task, load_splits, normalise
from fixbn_flwr.tasks.cifar10 import load


def test_cifar10_has_the_expected_splits(
    shared_data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    task = get_task("cifar10")
    train, test = load_splits(task, shared_data)
    assert train.images.shape == (50_000, 3, 32, 32)
    assert test.images.shape == (10_000, 3, 32, 32)
    assert train.images.dtype == torch.uint8
    assert train.images.is_contiguous()
    assert train.images[0, :, 0, 0].tolist() == [59, 62, 63]
    assert train.images[0, 0, :2, :3].tolist() == [[59, 43, 50], [16, 0, 18]]
    assert train.targets[:8].tolist() == [6, 9, 9, 4, 1, 1, 2, 7]
    assert train.targets.bincount().tolist() == [5_000] * 10
    assert test.targets.bincount().tolist() == [1_000] * 10
    assert capfd.readouterr() == ("", "")

    images = normalise(task, train.images[::50])
    assert images.mean((0, 2, 3)).abs().max() < 0.05
    assert (images.std((0, 2, 3)) - 1).abs().max() < 0.05
    assert task.models["resnet20"]("bn")(images[:2]).shape == (2, 10)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data-dir is .*/nowhere, which is not a folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("wrong checksum")])
def test_a_failed_download_fails_with_the_remedy(
    error: Exception,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    from torchvision.datasets import CIFAR10

    def download(_self: CIFAR10) -> None:
        print("9%")
        print("10%", file=sys.stderr)
        raise error

    monkeypatch.setattr(CIFAR10, "download", download)
    with pytest.raises(ConfigError, match=rf"{error}\): .*/cifar-10-batches-py exists"):
        load(tmp_path)
    assert capfd.readouterr() == ("", "")
