"""Random crops and flips, checked against exact values."""

import torch

from fixbn_flwr.tasks.augmentation import crop_and_flip


def test_crop_and_flip_shifts_and_mirrors_each_image() -> None:
    # With this seed the first image moves up by 1 and left by 2. The second one moves down by 1 and
    # is mirrored.
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


def test_crop_and_flip_uses_only_the_generator() -> None:
    images = torch.rand(8, 3, 32, 32)
    torch.manual_seed(1)
    first = crop_and_flip(images, torch.Generator().manual_seed(0))
    torch.manual_seed(2)
    assert torch.equal(crop_and_flip(images, torch.Generator().manual_seed(0)), first)
    assert not torch.equal(crop_and_flip(images, torch.Generator().manual_seed(1)), first)


def test_crop_and_flip_reaches_every_offset_in_both_orientations() -> None:
    pixel = torch.zeros(4_000, 1, 9, 9)
    pixel[:, :, 4, 4] = 1.0  # in the middle, so that mirroring does not move it
    moved = crop_and_flip(pixel, torch.Generator().manual_seed(0))
    assert (moved.sum(0)[0] > 20).all()  # about 49 of 4,000 in each of 81 places

    left_half = torch.zeros(1_000, 1, 32, 32)
    left_half[:, :, :, :16] = 1.0
    moved = crop_and_flip(left_half, torch.Generator().manual_seed(0))
    mirrored = (moved[:, 0, 16, 27] > moved[:, 0, 16, 4]).float().mean().item()
    assert 0.45 < mirrored < 0.55
