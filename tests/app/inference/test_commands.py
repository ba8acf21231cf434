"""`fixbn predict` and `fixbn export`, as a user types them."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from fixbn_flwr.app.cli import cli
from fixbn_flwr.app.inference.loading import load
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import get_task, load_splits


def invoke(*words: object) -> str:
    result = CliRunner().invoke(cli, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def digits(tmp_path: Path) -> list[Path]:
    _, test = load_splits(get_task("digits"))
    files = [tmp_path / f"{number}.png" for number in range(3)]
    for number, file in enumerate(files):
        Image.fromarray((test.images[:][number, 0].numpy() * 15).astype(np.uint8)).save(file)
    return files


def test_predict_prints_a_line_per_image_with_the_most_probable_classes(
    run_folder: Path, digits: list[Path]
) -> None:
    lines = invoke("predict", run_folder, *digits).splitlines()
    predictions = load(run_folder).predict(digits)
    assert len(lines) == 3
    for line, file, prediction in zip(lines, digits, predictions, strict=True):
        assert line.startswith(f"{file}: {prediction.label} {prediction.probability:.1%}, ")
        assert len(re.findall(r"\d+\.\d%", line)) == 3


def test_which_chooses_the_model(run_folder: Path, digits: list[Path], tmp_path: Path) -> None:
    final = invoke("predict", run_folder, digits[0], "--which", "final")
    exported = invoke(
        "export", run_folder, "--format=safetensors", "--which=final", "--output", tmp_path / "out"
    )
    assert exported.splitlines() == [
        f"Wrote {tmp_path / 'out' / 'model.safetensors'}",
        f"Model card, licence to be chosen: {tmp_path / 'out' / 'README.md'}",
    ]
    assert invoke("predict", tmp_path / "out", digits[0]) == final


def test_an_image_that_cannot_be_read_is_named(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.png cannot be read as an image"):
        invoke("predict", run_folder, tmp_path / "nothing.png")


@pytest.mark.parametrize("words", [["predict", "RUN"], ["export", "RUN"]])
def test_images_and_format_are_required(words: list[str]) -> None:
    assert CliRunner().invoke(cli, words).exit_code == 2
