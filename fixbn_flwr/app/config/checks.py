"""Checks of run-config values that a key's rule cannot express: paths, names, combinations of keys.

A check takes the values of some keys and returns a line with the value, the reason and the remedy,
or None if they are valid.
"""

import inspect
import os
import re
from collections.abc import Callable
from functools import partial

from fixbn_flwr.app.config.rules import did_you_mean, problem
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method import schedule
from fixbn_flwr.method.schedule import FreezeAfter
from fixbn_flwr.models.libraries import check_library_model, is_library_model
from fixbn_flwr.tasks import DataTask, Task, find_task
from fixbn_flwr.tracking.tracking import tracker_names

_RUN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_MAX_RUN_NAME = 200  # characters; file systems allow 255, and a suffix may follow
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")


def _model(task: str, model: str) -> str | None:
    found = find_task(task)
    models = found.models
    if not model or model in models:
        return None
    if is_library_model(model):
        try:
            check_library_model(model, per_pixel=found.masks is not None)
        except ConfigError as error:
            return problem("model", model, str(error).removeprefix(f"model is {model!r}, "))
        return None
    return problem("model", model, f"no model of task {task}; {did_you_mean(model, models)}")


def _only_for_any_data(task: str, image_size: int, augmentation: str) -> str | None:
    if isinstance(find_task(task), DataTask):
        return None
    text = f"task {task} has its own; leave it out, or use task folder or hf:NAME"
    if image_size:
        return problem("image-size", image_size, text)
    return None if augmentation == "crop-and-flip" else problem("augmentation", augmentation, text)


def _only_for_tables(task: str, label_column: str, group_column: str) -> str | None:
    if task.startswith("hf:") or not (label_column or group_column):
        return None
    key = "label-column" if label_column else "group-column"
    text = f"task {task} has no columns to choose; leave it out, or use task hf:NAME"
    return problem(key, label_column or group_column, text)


def _class_weights(task: str, class_weights: str) -> str | None:
    found = find_task(task)
    if class_weights == "none" or isinstance(found, DataTask):
        return None
    if "weight" in inspect.signature(found.loss).parameters:
        return None
    text = (
        f"the loss of task {task} takes no class weights; give it an argument weight, as torch's "
        "cross_entropy has, or leave it out"
    )
    return problem("class-weights", class_weights, text)


def _norm(norm: str, freeze_after: FreezeAfter) -> str | None:
    if norm == "bn" or (isinstance(freeze_after, float) and freeze_after == 1.0):
        return None
    text = f"norm {norm} has no running statistics to freeze; write freeze-after=1.0"
    return problem("freeze-after", freeze_after, text)


def _freeze_after(freeze_after: FreezeAfter, rounds: int) -> str | None:
    if isinstance(freeze_after, str):
        return None
    if isinstance(freeze_after, int):
        if freeze_after <= rounds:
            return None
        text = (
            f"T* is beyond the last of {rounds} rounds; use at most {rounds}, "
            "more num-server-rounds, or 1.0 for plain BN"
        )
    elif freeze_after > 1.0:
        text = (
            "a share of the rounds is at most 1.0; for a number of rounds, write a whole number "
            "without a decimal point"
        )
    elif freeze_after < 1.0 and schedule.freeze_round(freeze_after, rounds) >= rounds:
        text = (
            f"this share leaves none of {rounds} rounds for calibration; "
            "use a smaller share, more num-server-rounds, or 1.0 for plain BN"
        )
    else:
        return None
    return problem("freeze-after", freeze_after, text)


def _partition(task: str, partition: str) -> str | None:
    if find_task(task).masks is None or partition not in ("dirichlet", "classes"):
        return None
    text = f"an image of task {task} has a class for every pixel, not one; use natural or iid"
    return problem("partition", partition, text)


def _classes(task: str, partition: str, classes: int) -> str | None:
    found = find_task(task)
    if partition != "classes" or not isinstance(found, Task) or classes <= found.classes:
        return None
    available = found.classes
    text = f"task {task} has {available} classes; use at most {available}"
    return problem("partition-classes", classes, text)


def _local_work(local_steps: int, local_epochs: int) -> str | None:
    if (local_steps > 0) != (local_epochs > 0):
        return None
    if local_steps > 0:
        text = f"local-epochs = {local_epochs} is set as well; set one of the two to 0"
    else:
        text = "local-epochs is 0 as well, so nothing trains; set one of the two above 0"
    return problem("local-steps", local_steps, text)


def _momentum(momentum: str, coefficient: float) -> str | None:
    if coefficient > 0 or momentum == "reset":
        return None
    text = (
        "momentum-coefficient = 0 leaves no buffers to keep; "
        'write momentum="reset", or a coefficient such as 0.9'
    )
    return problem("momentum", momentum, text)


def _validation(share: float, every: int, patience: int) -> str | None:
    if share > 0:
        return None
    remedy = "but no client holds out images to validate on; set validation-share, such as 0.1"
    if patience > 0:
        return problem("patience", patience, f"ends a run by its validation accuracy, {remedy}")
    if every > 1:
        return problem("evaluate-clients-every", every, f"is an interval of validations, {remedy}")
    return None


def _data_dir(data_dir: str) -> str | None:
    if problem_of_path := _path("data-dir", data_dir):
        return problem_of_path
    path = os.path.abspath(os.path.expanduser(data_dir))
    if not data_dir or os.path.isdir(path):
        return None
    text = f"there is no directory {path}; create it, or write the absolute path of an existing one"
    return problem("data-dir", data_dir, text)


def _state_dir(state_dir: str) -> str | None:
    if problem_of_path := _path("state-dir", state_dir):
        return problem_of_path
    path = os.path.expanduser(state_dir)
    if state_dir and not os.path.isabs(path):
        text = "clients run in other working directories; write an absolute path"
        return problem("state-dir", state_dir, text)
    if not state_dir or os.path.isdir(path) or not os.path.exists(path):
        return None
    text = f"{path} is a file; name a directory, which is created if it does not exist"
    return problem("state-dir", state_dir, text)


def _path(key: str, path: str) -> str | None:
    try:
        os.fsencode(path)
    except ValueError:
        return problem(key, path, "no file can have this name; use ordinary letters")
    if "\0" in path:
        return problem(key, path, "a path cannot contain the character of code 0; remove it")
    if os.path.expanduser(path).startswith("~"):
        text = "there is no such user here; write an absolute path, or ~/ for your own home"
        return problem(key, path, text)
    return None


def _run_name(run_name: str) -> str | None:
    if len(run_name) > _MAX_RUN_NAME:
        text = f"has {len(run_name)} characters, too many for a folder; use at most {_MAX_RUN_NAME}"
        return problem("run-name", run_name, text)
    if not run_name or (_RUN_NAME.fullmatch(run_name) and ".." not in run_name):
        return None
    text = "is not a folder name; use letters, digits, '.', '_' and '-', no leading '.' and no '..'"
    return problem("run-name", run_name, text)


def _track(track: str) -> str | None:
    try:
        tracker_names(track)
    except ConfigError as error:
        return problem("track", track, str(error))
    return None


def _device(device: str) -> str | None:
    if _DEVICE.fullmatch(device):
        return None
    return problem("device", device, "unknown device; use auto, cpu, cuda, or such as cuda:1")


# Each check, with the fields that it takes. It is skipped if one of them is already known to be
# wrong, so that each mistake is reported once.
CHECKS: tuple[tuple[tuple[str, ...], Callable[..., str | None]], ...] = (
    (("task", "model"), _model),
    (("task", "image_size", "augmentation"), _only_for_any_data),
    (("task", "label_column", "group_column"), _only_for_tables),
    (("task", "class_weights"), _class_weights),
    (("pretrained",), partial(_path, "pretrained")),
    (("data_dir",), _data_dir),
    (("output_dir",), partial(_path, "output-dir")),
    (("state_dir",), _state_dir),
    (("resume",), partial(_path, "resume")),
    (("task", "partition"), _partition),
    (("task", "partition", "partition_classes"), _classes),
    (("norm", "freeze_after"), _norm),
    (("freeze_after", "num_server_rounds"), _freeze_after),
    (("momentum", "momentum_coefficient"), _momentum),
    (("local_steps", "local_epochs"), _local_work),
    (("validation_share", "evaluate_clients_every", "patience"), _validation),
    (("device",), _device),
    (("run_name",), _run_name),
    (("track",), _track),
)
