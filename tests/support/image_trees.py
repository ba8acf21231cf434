"""Write folders of images from PACS and CamVid, as users have them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from pyarrow import parquet

PACS = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
DOMAINS = ("art", "cartoon", "photo", "sketch")
CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip


def write_images(
    shared_data: Path, folder: Path, part: str, domain: int, per_class: int, *, classes: int = 7
) -> None:
    """Write the first images of each class of a domain as `<folder>/<class>/<row>.jpg`."""
    table = parquet.read_table(shared_data / "pacs-64" / f"{part}.parquet").to_pydict()
    taken = dict.fromkeys(range(classes), 0)
    for row, (image, label, of) in enumerate(
        zip(table["image"], table["label"], table["domain"], strict=True)
    ):
        if of == domain and label < classes and taken[label] < per_class:
            taken[label] += 1
            path = folder / PACS[label] / f"{row:04}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image["bytes"])


def vary(paths: Sequence[Path]) -> None:
    """Make every second image grey, and every third one larger and not square."""
    for number, path in enumerate(paths):
        image = Image.open(path)
        if number % 2 == 0:
            image = image.convert("L")
        if number % 3 == 0:
            image = image.resize((120, 80))
        image.save(path)


def write_scenes(shared_data: Path, folder: Path, part: str, number: int) -> None:
    """Write the first scenes as `<folder>/images/<row>.jpg` and `<folder>/masks/<row>.png`."""
    columns = parquet.read_table(shared_data / "camvid-240x180" / f"{part}.parquet").to_pydict()
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for row in range(number):
        (folder / "images" / f"{row}.jpg").write_bytes(columns["image"][row]["bytes"])
        mask = Image.open(io.BytesIO(columns["mask"][row]["bytes"]))
        mask.save(folder / "masks" / f"{row}.png")
