"""Export the model of a run to one file, with its config and a model card beside it.

The folder has the layout of a repository on the Hugging Face Hub:

    model.onnx, model.pt or model.safetensors
    config.json     class names, input size, normalisation and run config
    README.md       the model card
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

from fixbn_flwr.app.inference.formats import onnx_file, torchscript_file
from fixbn_flwr.app.inference.loading import EXPORTED, Which, default_model, load
from fixbn_flwr.app.inference.model_card import model_card
from fixbn_flwr.app.inference.trained_model import TrainedModel
from fixbn_flwr.app.runs.reader import CONFIG, METRICS, read_config, read_metrics
from fixbn_flwr.app.runs.writer import json_bytes
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.log import logger
from fixbn_flwr.persistence.atomic_files import write_atomically

Format = Literal["onnx", "torchscript", "safetensors"]
FILES: dict[Format, str] = {
    "onnx": "model.onnx",
    "torchscript": "model.pt",
    "safetensors": EXPORTED,
}
CARD = "README.md"

# Paths of this machine, and what concerns the run alone.
_PRIVATE = {
    "data-dir",
    "pretrained",
    "output-dir",
    "state-dir",
    "run-name",
    "resume",
    "may-change",
    "device",
}
_KEPT = ("method", "freeze_round", "clients", "own_data", "run", "versions")


def export(
    run_folder: str | os.PathLike[str],
    file_format: Format,
    which: Which | None = None,
    output: Path | None = None,
) -> Path:
    """Write the model of a run to one file, with a config.json and a model card.

    The file's output is compared with the model's before it is written. A model card that differs
    from the one that this function writes was edited, and is kept.

    Args:
        run_folder: The folder of a run.
        file_format: "onnx" and "torchscript" map images in [0, 1], float32 `[n, channels, height,
            width]` with any `n`, to logits. "safetensors" holds the weights of the network alone.
        which: "best" or "final", see :func:`fixbn_flwr.load`. Default: "best" if the run has one,
            else "final".
        output: The folder to write to. Default: `export-best` or `export-final` in the run folder.

    Returns:
        The path of the file.

    Raises:
        ConfigError: If there is no such model, the format cannot represent it, a package is
            missing, or the folder cannot be written.

    Examples:
        >>> import tempfile
        >>> from contextlib import redirect_stdout
        >>> from fixbn_flwr.app.centralised import train_centrally
        >>> from fixbn_flwr.app.overrides import read_settings
        >>> with tempfile.TemporaryDirectory() as runs, redirect_stdout(None):
        ...     settings = read_settings([f"output-dir={runs}", "num-server-rounds=2"])
        ...     path = export(train_centrally(settings, clients=10), "torchscript")
        >>> path.parent.name, path.name
        ('export-final', 'model.pt')
    """
    if file_format not in get_args(Format):
        raise ConfigError(
            f"format is {file_format!r}, which does not exist: use {', '.join(get_args(Format))}."
        )
    folder = Path(run_folder).expanduser()
    metrics = read_metrics(folder)  # not in an exported folder
    config = _without_path(read_config(folder))
    which = which or default_model(folder)
    target = output.expanduser() if output else folder / f"export-{which}"
    if (target / METRICS).exists():
        raise ConfigError(
            f"{target} is the folder of a run, whose config.json would be lost: choose another "
            "folder with --output."
        )
    model = load(folder, which)
    card = model_card(folder.resolve().name, config, metrics, model, which)
    match file_format:
        case "onnx":
            content = onnx_file(model)
        case "torchscript":
            content = torchscript_file(model)
        case "safetensors":
            content = (folder / f"{which}.safetensors").read_bytes()
    path = target / FILES[file_format]
    try:
        write_atomically(path, content)
        write_atomically(target / CONFIG, json_bytes(_public(config, model, which)))
        _write_card(target / CARD, card)
    except OSError as error:
        raise ConfigError(
            f"{target} cannot be written ({error}): choose another folder with --output."
        ) from error
    return path


def _without_path(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a config in which a data set on this machine is named, but not its folder."""
    task = str(config["run_config"].get("task"))
    if not re.match(r"hf:[~/.]", task):
        return config
    return {**config, "run_config": {**config["run_config"], "task": f"hf:{Path(task).name}"}}


def _public(config: Mapping[str, Any], model: TrainedModel, which: Which) -> dict[str, Any]:
    """Return what a run's config.json says about the model, without paths of the machine."""
    return {
        "run_config": {k: v for k, v in config["run_config"].items() if k not in _PRIVATE},
        **{key: config[key] for key in _KEPT if key in config},
        "signature": dataclasses.asdict(model.signature),
        "which": which,
    }


def _write_card(path: Path, card: str) -> None:
    if not path.exists():
        write_atomically(path, card.encode())
    elif path.read_text(encoding="utf-8") != card:
        logger.warning(
            "%s differs from the new model card and is kept. Delete it to get a new one.", path
        )
