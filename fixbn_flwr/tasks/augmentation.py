"""Random crops and flips of a whole batch of images, for tasks with a class for every image.

The augmentation is that of K. He, X. Zhang, S. Ren and J. Sun, "Deep Residual Learning for Image
Recognition", CVPR 2016, https://arxiv.org/abs/1512.03385, section 4.2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

PADDING = 4  # pixels on every side, before a crop of the original size


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift every image by up to 4 pixels each way, filling with zeros, and mirror every other one.

    Zero is the mean colour, because the batch is normalised already.

    Args:
        images: a batch, float `[n, channels, height, width]`.
        generator: where the shifts and mirrorings are drawn from.

    Returns:
        A batch of the same shape, on the device of `images`.
    """
    number, channels, height, width = images.shape
    here, there = images.device, generator.device
    shifts = torch.randint(2 * PADDING + 1, (2, number, 1), generator=generator, device=there)
    mirrored = torch.randint(2, (number, 1), generator=generator, device=there)
    top, left = shifts.to(here)
    columns = torch.arange(width, device=here)
    columns = left + torch.where(mirrored.to(here) == 1, columns.flip(0), columns)  # [n, width]
    rows = top + torch.arange(height, device=here)  # [n, height]
    image = torch.arange(number, device=here).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=here).view(1, -1, 1, 1)
    padded = pad(images, (PADDING, PADDING, PADDING, PADDING))
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
