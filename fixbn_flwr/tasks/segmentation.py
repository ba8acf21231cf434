"""What segmentation tasks share: masks cut together with their images, loss and score by pixel.

The score is the mean over classes of intersection over union, computed once from the confusion
matrix of all evaluated pixels: M. Everingham et al., "The PASCAL Visual Object Classes (VOC)
Challenge", IJCV 2010, https://doi.org/10.1007/s11263-009-0275-4, section 4.4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from fixbn_flwr.models.deeplab import STRIDE

if TYPE_CHECKING:
    from torchmetrics import Metric

IGNORED = 255
"""The value of a mask's pixels that have no class: they count neither in loss nor in score."""


@dataclass(frozen=True)
class Masks:
    """How images `[n, channels, h, w]` and their masks `[n, h, w]` are cut into what a model sees.

    Sizes are (height, width) in pixels and multiples of 16. Where an image is smaller, the size is
    the image's, rounded up to a multiple of 16. What lies outside the image is filled with zeros,
    the mean colour of normalised images, and with `IGNORED` in the mask.

    Attributes:
        crop: size of the random crops of training.
        window: size of the windows of evaluation.
        evaluation_batch: from how many images windows are evaluated together: memory depends on it,
            the result does not.
    """

    crop: tuple[int, int]
    window: tuple[int, int]
    evaluation_batch: int

    def augment(
        self, images: Tensor, masks: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Cut a random crop out of every image and its mask, and mirror every other pair.

        Args:
            images: a normalised batch.
            masks: the class of each pixel.
            generator: where the places and mirrorings are drawn from.
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

    def windows(self, images: Tensor, masks: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through the images in windows side by side, each pixel in exactly one of them.

        Whoever adds up pixels over the windows evaluates images of any size in the memory of one
        window of each. The model sees no further than the window.

        Args:
            images: a normalised batch.
            masks: the class of each pixel.
        """
        height, width = _at_most(self.window, images)
        for top in range(0, images.shape[2], height):
            for left in range(0, images.shape[3], width):
                here = (..., slice(top, top + height), slice(left, left + width))
                yield _fill(images[here], masks[here], height, width)

    @staticmethod
    def counted(masks: Tensor) -> int:
        """How many pixels have a class: the weight of a batch's mean loss."""
        return int((masks != IGNORED).sum())


def _at_most(size: tuple[int, int], images: Tensor) -> tuple[int, int]:
    height, width = (-(-side // STRIDE) * STRIDE for side in images.shape[2:])
    return min(size[0], height), min(size[1], width)


def _fill(images: Tensor, masks: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Append rows and columns where there are fewer than `height` and `width`."""
    missing = (0, max(0, width - images.shape[3]), 0, max(0, height - images.shape[2]))
    return pad(images, missing), pad(masks, missing, value=IGNORED)


def pixel_cross_entropy(outputs: Tensor, masks: Tensor) -> Tensor:
    """The mean cross-entropy of the pixels that have a class, in nats; 0 when none has.

    Args:
        outputs: logits, `[n, classes, h, w]`.
        masks: the class of each pixel or `IGNORED`, uint8 `[n, h, w]`.
    """
    total = cross_entropy(outputs, masks.long(), ignore_index=IGNORED, reduction="sum")
    # torch's own mean of no pixel at all is nan, which a crop of unlabelled pixels must not bring.
    return total / (masks != IGNORED).sum().clamp(min=1)


def mean_iou(classes: int) -> Metric:
    """A fresh mean intersection over union in [0, 1], over the classes that masks or outputs hold.

    It keeps a confusion matrix, so how pixels are spread over batches makes no difference.
    """
    from torchmetrics.classification import MulticlassJaccardIndex

    # Its checks sort all pixels of every batch; the tasks check what they read.
    return MulticlassJaccardIndex(classes, ignore_index=IGNORED, validate_args=False)
