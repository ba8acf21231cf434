"""Turn the images that users have into the pixels that a model takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks.pictures import fitted, opened

if TYPE_CHECKING:
    from PIL import Image

    Picture = Image.Image | npt.NDArray[np.uint8] | str | os.PathLike[str]

_CHANNELS = (1, 3, 4)  # grey, RGB, RGBA


def pixels_of(picture: Picture, size: tuple[int, int, int], white: int) -> Tensor:
    """Return an image as a model takes it.

    The image is turned as its EXIF tag says, laid on white if it is transparent, and converted to
    grey or RGB. If its size differs, the largest part from its center that has the right
    proportions is scaled to the right size.

    Args:
        picture: A PIL image, the path of an image file, or a uint8 array: `[height, width]`, or
            with 1, 3 or 4 channels (grey, RGB, RGBA) as the last or the first axis.
        size: The channels, height and width of the result.
        white: The value of white in an array. In PIL images and files it is 255.

    Returns:
        float32 `[channels, height, width]` in [0, 1].

    Raises:
        ConfigError: If it cannot be read, or is something else.

    Examples:
        >>> pixels_of(np.full((4, 4), 255, np.uint8), (3, 2, 2), white=255).shape
        torch.Size([3, 2, 2])
    """
    from PIL import Image

    channels, height, width = size
    if isinstance(picture, str | os.PathLike):
        image, white = opened(Path(picture), os.fspath(picture)), 255
    elif isinstance(picture, Image.Image):
        image, white = picture, 255
    else:
        image = _of_array(np.asarray(picture), size, white)
    image = fitted(image, "L" if channels == 1 else "RGB", height, width)
    values = np.asarray(image, np.float32).reshape(height, width, channels) / np.float32(white)
    return torch.from_numpy(values.transpose(2, 0, 1).copy())


def _of_array(array: npt.NDArray[np.uint8], size: tuple[int, int, int], white: int) -> Image.Image:
    from PIL import Image

    found = f"an array of {array.dtype} with the shape {array.shape}"
    if array.dtype != np.uint8:
        raise ConfigError(
            f"An image is {found}: use a PIL image, a path, or a uint8 array with values from 0 to"
            f" {white}."
        )
    first = array.ndim == 3 and array.shape[0] in _CHANNELS and array.shape[2] not in _CHANNELS
    if first or array.shape == size:  # as the data set stores it
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if not array.size or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ConfigError(
            f"An image is {found}: use [height, width], [height, width, channels] or [channels,"
            " height, width] with 1, 3 or 4 channels, and pass several images as a list."
        )
    if int(array.max()) > white:
        raise ConfigError(
            f"An array has a pixel of {array.max()}, but the arrays of this model's data set have"
            f" values from 0 to {white}: pass a PIL image, whose white is 255, or scale the array."
        )
    return Image.fromarray(np.ascontiguousarray(array))
