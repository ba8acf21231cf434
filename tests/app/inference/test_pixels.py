"""Images of any mode, size and source become the pixels of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fixbn_flwr.app.inference.pixels import pixels_of
from fixbn_flwr.errors import ConfigError

GRAY, COLOR = (1, 4, 4), (3, 4, 4)


def square(mode: str, color: object) -> Image.Image:
    return Image.new(mode, (4, 4), color)  # type: ignore[arg-type]


@pytest.mark.parametrize("path_type", [str, Path])
def test_a_file_an_image_and_an_array_give_the_same_pixels(path_type: type, tmp_path: Path) -> None:
    array = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    image = Image.fromarray(array)
    image.save(tmp_path / "image.png")
    expected = torch.from_numpy(array).permute(2, 0, 1) / 255
    for picture in (array, image, path_type(tmp_path / "image.png"), array.transpose(2, 0, 1)):
        assert torch.equal(pixels_of(picture, COLOR, 255), expected)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (square("L", 51), (0.2, 0.2, 0.2)),
        (square("1", 1), (1, 1, 1)),
        (square("RGBA", (255, 0, 0, 255)), (1, 0, 0)),
        (square("RGBA", (255, 0, 0, 0)), (1, 1, 1)),  # nothing is seen of the red
        (square("LA", (0, 0)), (1, 1, 1)),
        (square("RGB", (0, 255, 0)).convert("P"), (0, 1, 0)),
        (square("CMYK", (0, 0, 0, 255)), (0, 0, 0)),
        (square("I;16", 257 * 51), (0.2, 0.2, 0.2)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_every_mode_becomes_rgb(image: Image.Image, expected: tuple[float, ...]) -> None:
    pixels = pixels_of(image, COLOR, 255)
    assert pixels.shape == COLOR
    torch.testing.assert_close(pixels[:, 0, 0], torch.tensor(expected, dtype=torch.float32))


def test_colour_becomes_grey_by_its_brightness() -> None:
    pixels = pixels_of(square("RGB", (255, 0, 0)), GRAY, 255)
    assert pixels.shape == GRAY
    assert pixels[0, 0, 0].item() == pytest.approx(76 / 255)


def test_arrays_have_the_white_of_the_data_set_and_images_255() -> None:
    array = np.full((4, 4), 8, np.uint8)
    assert pixels_of(array, GRAY, 16).unique().tolist() == [0.5]
    assert pixels_of(array[None], GRAY, 16).unique().tolist() == [0.5]
    assert pixels_of(array[:, :, None], GRAY, 16).unique().tolist() == [0.5]
    assert pixels_of(square("L", 255), GRAY, 16).unique().tolist() == [1]
    with pytest.raises(ConfigError, match=r"a pixel of 17, but .* from 0 to 16: pass a PIL image"):
        pixels_of(array + 9, GRAY, 16)


def test_another_size_keeps_proportions_and_the_center() -> None:
    wide = Image.new("L", (24, 8), 0)
    wide.paste(255, (8, 0, 16, 8))  # the middle third is white
    for size in ((24, 8), (6, 2)):  # smaller and larger
        assert pixels_of(wide.resize(size), GRAY, 255).mean() > 0.8


def test_a_photo_is_turned_upright(tmp_path: Path) -> None:
    image = Image.new("L", (4, 4), 0)
    image.paste(255, (0, 0, 4, 2))  # the upper half is white
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image.save(tmp_path / "photo.png", exif=exif)
    pixels = pixels_of(tmp_path / "photo.png", GRAY, 255)
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("picture", "problem"),
    [
        (np.zeros((4, 4)), "an array of float64 with the shape .* or a uint8 array with values"),
        (np.zeros(4, np.uint8), r"shape \(4,\): use \[height, width\].* several images as a list"),
        (np.zeros((5, 5, 2), np.uint8), r"shape \(5, 5, 2\)"),
        (np.zeros((0, 4), np.uint8), r"shape \(0, 4\)"),
        (Image.new("F", (4, 4)), "the mode F, whose white is not known: convert it to 8 bits"),
        (None, "an array of object"),
    ],
)
def test_anything_else_is_refused(picture: object, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        pixels_of(picture, COLOR, 255)  # type: ignore[arg-type]


def test_the_error_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("no image")
    for name in ("note.txt", "missing.png"):
        with pytest.raises(
            ConfigError, match=rf"{name} cannot be read as an image .*: replace the"
        ):
            pixels_of(tmp_path / name, COLOR, 255)
