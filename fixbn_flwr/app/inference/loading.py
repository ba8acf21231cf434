"""Load the model of a run folder, or of a folder that `fixbn export` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from fixbn_flwr.app.inference.trained_model import TrainedModel
from fixbn_flwr.app.runs.reader import CONFIG, read_config
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.models.libraries import is_library_model
from fixbn_flwr.tasks import DataOptions, DataTask, Task, find_task, load_splits
from fixbn_flwr.tasks.networks import network_of
from fixbn_flwr.tasks.signature import Signature

Which = Literal["best", "final"]
EXPORTED = "model.safetensors"


def load(run_folder: str | PathLike[str], which: Which | None = None) -> TrainedModel:
    """Load the model of a run, ready for predictions.

    The data set is not needed. A task of your own must be importable.

    Args:
        run_folder: The folder of a run, or one that `fixbn export --format safetensors` wrote.
        which: "best" is the model with the best validation accuracy, which a run with
            `validation-share` has. "final" is the one after the last round. An exported folder has
            one model, whatever `which` says. Default: "best" if the run has one, else "final".

    Returns:
        A torch module in evaluation mode, on the CPU. It maps images in [0, 1] to logits, and has
        the method `predict` and the attributes `class_names`, `input_size`, `mean` and `std`.

    Raises:
        ConfigError: If there is no such folder or model, or it does not fit the task's network.

    Examples:
        >>> import tempfile
        >>> from contextlib import redirect_stdout
        >>> import fixbn_flwr
        >>> from fixbn_flwr.app.centralised import train_centrally
        >>> from fixbn_flwr.app.overrides import read_settings
        >>> with tempfile.TemporaryDirectory() as runs, redirect_stdout(None):
        ...     settings = read_settings([f"output-dir={runs}", "num-server-rounds=2"])
        ...     model = fixbn_flwr.load(train_centrally(settings, clients=10))
        >>> model.input_size
        (1, 8, 8)
        >>> model(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    folder = Path(run_folder).expanduser()
    which = which or default_model(folder)
    if which not in get_args(Which):
        raise ConfigError(f"which is {which!r}, which does not exist: use best or final.")
    config = read_config(folder)
    weights = _read_weights(folder, which)
    task = _task_of(folder, config)
    return _with_weights(folder, config, task, weights)


def default_model(folder: Path) -> Which:
    """Return which model of a run folder to use unless the user says: the best if it has one."""
    return "best" if (folder / "best.safetensors").is_file() else "final"


def _read_weights(folder: Path, which: Which) -> dict[str, Tensor]:
    exported = folder / EXPORTED
    path = exported if exported.is_file() else folder / f"{which}.safetensors"
    try:
        return load_file(path)
    except FileNotFoundError as error:
        present = sorted(file.name for file in folder.glob("*.safetensors"))
        reason = "the run has not got so far; resume it"
        if which == "best":
            reason = "only a run with validation-share chooses one, once clients have validated it"
        raise ConfigError(
            f"{folder} has no {path.name}: {reason}, or load another model. It has "
            f"{', '.join(present) or 'none'}."
        ) from error
    except (OSError, safetensors.SafetensorError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): restore the file.") from error


def _task_of(folder: Path, config: Mapping[str, Any]) -> Task:
    """Return the task of a run; of one for any data, with the classes that the run recorded."""
    task = find_task(str(config["run_config"].get("task")))
    if isinstance(task, DataTask):
        return task.of(DataOptions(), _recorded(folder, config).class_names)
    return task


def _with_weights(
    folder: Path, config: Mapping[str, Any], task: Task, weights: Mapping[str, Tensor]
) -> TrainedModel:
    model, norm = (str(config["run_config"].get(key)) for key in ("model", "norm"))
    if model not in task.models and not is_library_model(model):
        raise ConfigError(
            f"{folder} has a model {model!r}, which task {task.name} does not have: it has"
            f" {', '.join(task.models)}. Use the version of the task that the run used."
        )
    with torch.random.fork_rng(devices=[]):  # drawing weights changes nothing for the caller
        network = network_of(task, model, norm)
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise ConfigError(
            f"the weights in {folder} do not fit the network {model!r} of task {task.name}: use"
            f" the version of the task that the run used. {error}"
        ) from error
    signature = _signature(folder, config, task)
    return TrainedModel(network, signature, per_pixel=task.masks is not None)


def _signature(folder: Path, config: Mapping[str, Any], task: Task) -> Signature:
    """Return what the model takes and returns; runs of older versions did not record it."""
    if "signature" in config:
        return _recorded(folder, config)
    data_dir = config["run_config"].get("data-dir")
    try:
        _, test = load_splits(task, Path(data_dir) if data_dir else None)
    except ConfigError as error:
        raise ConfigError(
            f"{folder} is of an older version, which did not record the size of the images, and"
            f" the data set that tells it cannot be read: {error}"
        ) from error
    return Signature.of(task, test.images)


def _recorded(folder: Path, config: Mapping[str, Any]) -> Signature:
    try:
        return Signature.from_json(config["signature"])
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{folder / CONFIG}: its signature is damaged ({error!r}); restore the file."
        ) from error
