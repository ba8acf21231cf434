"""Bring pictures of any size and mode to the size and mode that a model takes.

Training and predictions share these functions, so that a model sees its images the same way.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fixbn_flwr.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

_ORIENTATION = 0x0112  # the EXIF tag
_SIDEWAYS = 5  # orientations from this one on exchange height and width


def fitted(image: Image.Image, mode: str, height: int, width: int) -> Image.Image:
    """Return a picture in a mode and a size.

    It is turned as its EXIF tag says, laid on white if it is transparent, and converted. If its
    size differs, the largest part from its center that has the right proportions is scaled.

    Args:
        image: The picture.
        mode: "L" or "RGB".
        height: The height of the result, in pixels.
        width: The width of the result.

    Raises:
        ConfigError: If the value of white is not known in its mode.
    """
    from PIL import Image, ImageOps

    image = _in_mode(ImageOps.exif_transpose(image), mode)
    if image.size != (width, height):
        image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    return image


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise ConfigError(
            f"An image has the mode {image.mode}, whose white is not known: convert it to 8 bits"
            " per channel."
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)


def opened(file: Path | BytesIO, name: str) -> Image.Image:
    """Return a decoded picture.

    Args:
        file: The encoded picture.
        name: Its name in error messages.

    Raises:
        ConfigError: If it is missing or damaged.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            image.load()
            return image
    # Pillow raises many types for a damaged file, even SyntaxError.
    except Exception as error:
        raise _unreadable(name, error) from error


def size_of(file: Path | BytesIO, name: str) -> tuple[int, int]:
    """Return the height and width of a picture without decoding it.

    Raises:
        ConfigError: If it is missing or damaged.
    """
    from PIL import Image

    try:
        with Image.open(file) as image:
            width, height = image.size
            turned = image.getexif().get(_ORIENTATION, 1) >= _SIDEWAYS
    except Exception as error:
        raise _unreadable(name, error) from error
    return (width, height) if turned else (height, width)


def rgb_pixels(file: Path | BytesIO, name: str, height: int, width: int) -> Tensor:
    """Return a picture as uint8 `[3, height, width]`, see `fitted`; grey becomes RGB.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        image = fitted(opened(file, name), "RGB", height, width)
    except ConfigError as error:
        raise error if name in str(error) else ConfigError(f"{name}: {error}") from error
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())


def _unreadable(name: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"{name} cannot be read as an image ({error}): replace the file with a PNG or JPEG, or"
        " remove it."
    )
