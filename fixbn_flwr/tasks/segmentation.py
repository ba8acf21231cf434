"""Crops, loss and metric of segmentation tasks.

The metric is the mean intersection over union of the classes, computed from the confusion matrix of
all evaluated pixels: M. Everingham et al., "The PASCAL Visual Object Classes (VOC)
Challenge", IJCV 2010, https://doi.org/10.1007/s11263-009-0275-4, section 4.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from fixbn_flwr.models.deeplab import STRIDE
from fixbn_flwr.tasks.metrics import MeanIoU

IGNORED = 255
"""The mask value of pixels without a class. Loss and metric ignore them."""


@dataclass(frozen=True)
class Masks:
    """How images `[n, channels, h, w]` and masks `[n, h, w]` are cut to the size a model sees.

    Sizes are (height, width) in pixels and multiples of 16. For a smaller image, the size is that
    of the image, rounded up to a multiple of 16. Pixels outside the image are 0, the mean colour of
    normalised images, and `IGNORED` in the mask.

    Attributes:
        crop: The size of the random crops for training.
        window: The size of the windows for evaluation.
        evaluation_batch: The number of images evaluated together. It affects memory, not results.
    """

    crop: tuple[int, int]
    window: tuple[int, int]
    evaluation_batch: int

    def augment(
        self, images: Tensor, masks: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Crop each image and its mask at random, and mirror both with probability 1/2.

        Args:
            images: A normalised batch.
            masks: The class of each pixel.
            generator: The source of the random crops and flips.
        """
        height, width = _at_most(self.crop, images)
        images, masks = _fill(images, masks, height, width)
        ends = (images.shape[2] - height + 1, images.shape[3] - width + 1, 2)
        places = [
            torch.randint(end, (len(images),), generator=generator, device=generator.device)
            for end in ends
        ]
        crops = []
        for image, mask, top, left, mirrored in zip(
            images, masks, *(place.tolist() for place in places), strict=True
        ):
            here = (..., slice(top, top + height), slice(left, left + width))
            pair = image[here], mask[here]
            crops.append((pair[0].flip(-1), pair[1].flip(-1)) if mirrored else pair)
        return torch.stack([image for image, _ in crops]), torch.stack([mask for _, mask in crops])

    def window_of(self, images: Tensor) -> tuple[int, int]:
        """Return the height and width of the windows of images."""
        return _at_most(self.window, images)

    def windows(self, images: Tensor, masks: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Divide the images into adjacent windows; each pixel is in exactly one.

        Sums over the windows evaluate images of any size in the memory of one window. The model
        does not see beyond a window.

        Args:
            images: A normalised batch.
            masks: The class of each pixel.
        """
        height, width = self.window_of(images)
        for top in range(0, images.shape[2], height):
            for left in range(0, images.shape[3], width):
                here = (..., slice(top, top + height), slice(left, left + width))
                yield _fill(images[here], masks[here], height, width)

    @staticmethod
    def counted(masks: Tensor) -> int:
        """Return the number of pixels with a class, the weight of a batch's mean loss."""
        return int((masks != IGNORED).sum())


def _at_most(size: tuple[int, int], images: Tensor) -> tuple[int, int]:
    height, width = (-(-side // STRIDE) * STRIDE for side in images.shape[2:])
    return min(size[0], height), min(size[1], width)


def _fill(images: Tensor, masks: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Append rows and columns up to `height` and `width`."""
    missing = (0, max(0, width - images.shape[3]), 0, max(0, height - images.shape[2]))
    return pad(images, missing), pad(masks, missing, value=IGNORED)


def pixel_cross_entropy(outputs: Tensor, masks: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean cross-entropy of the pixels with a class, in nats; 0 if there are none.

    Args:
        outputs: Logits, `[n, classes, h, w]`.
        masks: The class of each pixel or `IGNORED`, uint8 `[n, h, w]`.
        weight: The weight of each class in the mean, `[classes]`. Default: 1 for each.
    """
    total = cross_entropy(outputs, masks.long(), weight, ignore_index=IGNORED, reduction="sum")
    # torch's own mean is NaN for a crop without labelled pixels.
    counted = masks != IGNORED
    if weight is None:
        return total / counted.sum().clamp(min=1)
    weights = torch.where(counted, weight[masks.long().clamp(max=len(weight) - 1)], 0).sum()
    return total / torch.where(weights > 0, weights, 1)


def mean_iou(classes: int) -> MeanIoU:
    """Return a new metric: mean intersection over union without the ignored pixels."""
    return MeanIoU(classes, IGNORED)
