"""Random crops and flips of a batch of images, for classification tasks.

The augmentation follows K. He, X. Zhang, S. Ren and J. Sun, "Deep Residual Learning for Image
Recognition", CVPR 2016, https://arxiv.org/abs/1512.03385, section 4.2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

PADDING = 4  # pixels on every side, before a crop of the original size


def crop_and_flip(images: Tensor, generator: torch.Generator, padding: int = PADDING) -> Tensor:
    """Shift each image by some pixels in each direction and mirror it with probability 1/2.

    Pixels from outside the image are 0, which is the mean colour of a normalised batch.

    Args:
        images: A normalised batch, float `[n, channels, height, width]`.
        generator: The source of the random shifts and flips.
        padding: The largest shift, in pixels. Default: 4.

    Returns:
        A batch of the same shape on the same device.
    """
    return _changed(images, generator, padding, mirror=True)


def crop(images: Tensor, generator: torch.Generator, padding: int = PADDING) -> Tensor:
    """Shift each image like `crop_and_flip`, and mirror none."""
    return _changed(images, generator, padding, mirror=False)


def _changed(images: Tensor, generator: torch.Generator, padding: int, *, mirror: bool) -> Tensor:
    number, channels, height, width = images.shape
    here, there = images.device, generator.device
    shifts = torch.randint(2 * padding + 1, (2, number, 1), generator=generator, device=there)
    top, left = shifts.to(here)
    columns = torch.arange(width, device=here)
    if mirror:
        mirrored = torch.randint(2, (number, 1), generator=generator, device=there)
        columns = torch.where(mirrored.to(here) == 1, columns.flip(0), columns)
    columns = left + columns  # [n, width]
    rows = top + torch.arange(height, device=here)  # [n, height]
    image = torch.arange(number, device=here).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=here).view(1, -1, 1, 1)
    padded = pad(images, (padding, padding, padding, padding))
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
