"""A trained model with what belongs to it: class names, input size and normalisation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fixbn_flwr.app.inference.pixels import pixels_of
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks.signature import Signature

if TYPE_CHECKING:
    from fixbn_flwr.app.inference.pixels import Picture

_BATCH = 100  # images; affects memory, not the result


@dataclass(frozen=True)
class Prediction:
    """What a model says about one image.

    Attributes:
        classes: All class names with their probabilities, the most probable first.
    """

    classes: tuple[tuple[str, float], ...]

    @property
    def label(self) -> str:
        """The name of the most probable class."""
        return self.classes[0][0]

    @property
    def probability(self) -> float:
        """Its probability, in [0, 1]."""
        return self.classes[0][1]


class TrainedModel(nn.Module):
    """A network in evaluation mode that takes images in [0, 1].

    It is what :func:`fixbn_flwr.load` returns. The normalisation is a part of `forward`.

    Args:
        network: The network, with its weights.
        signature: What it takes and returns.
        per_pixel: Whether it returns the class of each pixel. Default: of each image.

    Attributes:
        network: The network alone. It takes normalised images.
        signature: What it takes and returns, as the run recorded it.
        class_names: The name of each class.
        input_size: The channels, height and width of an image, in pixels.
        mean: The mean that is subtracted, per channel, for images in [0, 1].
        std: The standard deviation that is divided by.
        white: The largest value of a pixel in uint8 arrays, which is 1 after scaling.
        per_pixel: Whether it returns the class of each pixel.

    Examples:
        >>> from PIL import Image
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        >>> signature = Signature(("no", "yes"), (1, 8, 8), mean=(127.0,), std=(60.0,), white=255)
        >>> model = TrainedModel(network, signature)
        >>> model(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 2])
        >>> (prediction,) = model.predict([Image.new("L", (28, 28))])
        >>> prediction.label in model.class_names
        True
    """

    _mean: Tensor
    _std: Tensor

    def __init__(
        self, network: nn.Module, signature: Signature, *, per_pixel: bool = False
    ) -> None:
        super().__init__()
        self.network = network
        self.signature = signature
        self.class_names = signature.class_names
        self.input_size = signature.input_size
        self.white = signature.white
        self.mean = tuple(value / signature.white for value in signature.mean)
        self.std = tuple(value / signature.white for value in signature.std)
        self.per_pixel = per_pixel
        for name, values in (("_mean", signature.mean), ("_std", signature.std)):
            self.register_buffer(name, torch.tensor(values).view(-1, 1, 1), persistent=False)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Map images in [0, 1], float `[n, channels, height, width]`, to logits `[n, classes]`."""
        # In units of stored pixels, so that the bits are those of the tests during the run.
        logits: Tensor = self.network((images * self.white - self._mean) / self._std)
        return logits

    def predict(self, images: Iterable[Picture]) -> list[Prediction]:
        """Classify images.

        They are converted to the model's size and to grey or RGB. If the proportions differ, their
        center is used. Transparent pixels are white.

        Args:
            images: PIL images, paths of image files, or uint8 arrays `[height, width]`, with
                channels as the last or first axis if there are any. Arrays hold pixels as the data
                set does: from 0 to 255, but to 16 for `digits` (see `white`).

        Returns:
            One prediction per image. The model is in evaluation mode afterwards.

        Raises:
            ConfigError: If an image cannot be read or has another type, or the model returns the
                class of each pixel.
        """
        if self.per_pixel:
            raise ConfigError(
                "predict classifies whole images, and this model returns the class of each pixel:"
                " call model(images).argmax(1) with float images in [0, 1], [n, channels, height,"
                " width], whose height and width are multiples of 16."
            )
        if isinstance(images, str) or not isinstance(images, Iterable):
            raise ConfigError(
                f"predict takes several images, not {images!r:.60}: write predict([image])."
            )
        self.eval()
        pixels = [pixels_of(image, self.input_size, self.white) for image in images]
        return [
            prediction
            for start in range(0, len(pixels), _BATCH)
            for prediction in self._classify(pixels[start : start + _BATCH])
        ]

    @torch.inference_mode()
    def _classify(self, pixels: Sequence[Tensor]) -> list[Prediction]:
        images = torch.stack(list(pixels)).to(self._mean)  # its device and type
        probabilities = self(images).float().softmax(1).tolist()
        return [
            Prediction(
                tuple(
                    sorted(zip(self.class_names, row, strict=True), key=itemgetter(1), reverse=True)
                )
            )
            for row in probabilities
        ]
