"""CIFAR-10: the real files, the errors without them, and the augmentation number by number."""

import sys
from pathlib import Path

import pytest
import torch

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import get_task, load_splits, normalise
from fixbn_flwr.tasks.cifar10 import crop_and_flip, load


def test_splits(shared_data: Path, capfd: pytest.CaptureFixture[str]) -> None:
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


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data-dir is .*/nowhere, which is not a folder"):
        load(tmp_path / "nowhere")


@pytest.mark.parametrize("error", [OSError("no route"), RuntimeError("wrong checksum")])
def test_failed_download(
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
    with pytest.raises(ConfigError, match=rf"{error}\): put .* cifar-10-batches-py of"):
        load(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_crop_and_flip_shifts_and_mirrors_each_image() -> None:
    # This seed moves the first image up by 1 and left by 2, the second down by 1, and mirrors it.
    one_channel = torch.arange(1.0, 19.0).view(2, 1, 3, 3)
    images = torch.cat([one_channel, -one_channel], dim=1)
    result = crop_and_flip(images, torch.Generator().manual_seed(10))
    expected = torch.tensor(
        [
            [[[6.0, 0.0, 0.0], [9.0, 0.0, 0.0], [0.0, 0.0, 0.0]]],
            [[[0.0, 0.0, 0.0], [12.0, 11.0, 10.0], [15.0, 14.0, 13.0]]],
        ]
    )
    assert torch.equal(result, torch.cat([expected, -expected], dim=1))


def test_crop_and_flip_draws_from_the_generator_only() -> None:
    images = torch.rand(8, 3, 32, 32)
    torch.manual_seed(1)
    first = crop_and_flip(images, torch.Generator().manual_seed(0))
    torch.manual_seed(2)
    assert torch.equal(crop_and_flip(images, torch.Generator().manual_seed(0)), first)
    assert not torch.equal(crop_and_flip(images, torch.Generator().manual_seed(1)), first)


def test_crop_and_flip_reaches_every_place_in_both_orientations() -> None:
    pixel = torch.zeros(4_000, 1, 9, 9)
    pixel[:, :, 4, 4] = 1.0  # in the middle, where mirroring does not move it
    moved = crop_and_flip(pixel, torch.Generator().manual_seed(0))
    assert (moved.sum(0)[0] > 20).all()  # about 49 of 4,000 in each of 81 places

    left_half = torch.zeros(1_000, 1, 32, 32)
    left_half[:, :, :, :16] = 1.0
    moved = crop_and_flip(left_half, torch.Generator().manual_seed(0))
    mirrored = (moved[:, 0, 16, 27] > moved[:, 0, 16, 4]).float().mean().item()
    assert 0.45 < mirrored < 0.55
