"""What a run-config value may be: the rule of one key, and the rules that tie keys together.

`config.py` names the keys and their defaults; this file says what is wrong with a value, why, and
what to write instead. A check of one value raises `ValueError` with "reason; remedy"; a check of
several together returns the whole line, or None.
"""

import dataclasses
import difflib
import json
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin

from fixbn_flwr.method import schedule
from fixbn_flwr.models.norm import counts_groups
from fixbn_flwr.tasks import get_task

Value = bool | float | int | str
_T = TypeVar("_T")
_RUN_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_DEVICE = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")
_LONGEST = 200  # characters of a value, or of a name, that a message repeats or a disk takes


@dataclass(frozen=True)
class Form:
    """Values that are allowed beside a key's words because they are written alike.

    Attributes:
        example: how they are written.
        meaning: what the example means.
        fits: whether a value is one of them; raises `ValueError` when it is, but cannot be used.
    """

    example: str
    meaning: str
    fits: Callable[[str], bool]


def _is_own_task(name: str) -> bool:
    if ":" not in name:
        return False
    get_task(name)  # raises when it cannot be had
    return True


OWN_TASK = Form("package.module:NAME", "for your own", _is_own_task)
GROUPS = Form("gn8", "for 8 groups instead of 2, or another number of them", counts_groups)


@dataclass(frozen=True)
class Rule:
    """What one key means and allows: one sentence, a unit, words to choose from, or bounds.

    With `beside`, other values than the words are allowed, too.
    """

    meaning: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    beside: Form | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    @property
    def bounds(self) -> str:
        """The bounds in words, such as "above 0 and at most 1"; empty when there are none."""
        pairs = [
            ("at least", self.at_least),
            ("above", self.above),
            ("at most", self.at_most),
            ("below", self.below),
        ]
        return " and ".join(f"{words} {bound:.10g}" for words, bound in pairs if bound is not None)


def setting(default: _T, meaning: str, unit: str = "", **limits: object) -> _T:
    """Return a dataclass field with its `Rule` as metadata; typed as its default, like `field`."""
    rule = Rule(meaning, unit, **limits)  # type: ignore[arg-type]
    return dataclasses.field(default=default, metadata={"rule": rule})


def key_of(name: str) -> str:
    """The run-config key of a field: `local_steps` is `local-steps`."""
    return name.replace("_", "-")


def choices_of(field: "dataclasses.Field[Any]") -> tuple[str, ...]:
    """The words a field may hold, by its rule or its `Literal` type; none when it takes any."""
    rule: Rule = field.metadata["rule"]
    return get_args(field.type) if get_origin(field.type) is Literal else rule.choices


def problem(key: str, value: object, text: str) -> str:
    """One line about one key, its value written as in TOML."""
    try:
        written = json.dumps(value, default=repr)
    except (TypeError, ValueError, RecursionError):  # odd keys, thousands of digits, a circle
        written = f"a value of type {type(value).__name__}"
    if len(written) > _LONGEST:
        written = f"{written[:_LONGEST]}... ({len(written):,} characters)"
    return f"{key} = {written}: {text}"


def did_you_mean(word: str, words: Iterable[str], otherwise: str = "") -> str:
    """The remedy for an unknown word: the nearest of `words`, or `otherwise`, or all of them."""
    words = list(words)
    near = difflib.get_close_matches(word.strip().lower().replace("_", "-"), words, n=1)
    if near:
        return f"did you mean {near[0]}?"
    return otherwise or f"use one of {', '.join(words)}"


def parse(field: "dataclasses.Field[Any]", value: object) -> Value:
    """`value` as the field's own type (an int becomes a float where a float is meant).

    Raises `ValueError` with the reason and the remedy when the type, the word or the bounds do
    not fit.
    """
    rule: Rule = field.metadata["rule"]
    if field.type not in (int, float, int | float):
        choices = choices_of(field)
        if not isinstance(value, str):
            remedy = f"use one of {', '.join(choices)}" if choices else "write it in quotes"
            raise ValueError(f"must be text; {remedy}")
        beside = rule.beside
        if choices and value not in choices and not (beside and beside.fits(value)):
            allowed = [*choices, f"{beside.example} {beside.meaning}"] if beside else choices
            raise ValueError(f"unknown word; {did_you_mean(value, allowed)}")
        return value
    number = _number(value, whole=field.type is int)
    if not (
        (rule.at_least is None or number >= rule.at_least)
        and (rule.above is None or number > rule.above)
        and (rule.at_most is None or number <= rule.at_most)
        and (rule.below is None or number < rule.below)
    ):
        raise ValueError(f"out of bounds; use a number {rule.bounds}")
    return float(number) if field.type is float else number


def _number(value: object, *, whole: bool) -> int | float:
    noun = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"must be {noun}; write it in digits, without quotes")
    try:
        finite = math.isfinite(value)
    except OverflowError:  # an int beyond the largest float
        finite = False
    if not finite:
        raise ValueError(f"must be finite; use {noun} of ordinary size")
    if whole and isinstance(value, float):
        remedy = f"write {int(value)}" if value.is_integer() else "round it"
        raise ValueError(f"must be a whole number; {remedy}")
    return value


def _model(task: str, model: str) -> str | None:
    models = get_task(task).models
    if not model or model in models:
        return None
    return problem("model", model, f"no model of task {task}; {did_you_mean(model, models)}")


def _norm(norm: str, freeze_after: int | float) -> str | None:
    if norm == "bn" or (isinstance(freeze_after, float) and freeze_after == 1.0):
        return None
    text = f"norm {norm} has no running statistics to freeze; write freeze-after=1.0"
    return problem("freeze-after", freeze_after, text)


def _freeze_after(freeze_after: int | float, rounds: int) -> str | None:
    if freeze_after == 0:
        text = (
            "T* = 0 would freeze the statistics of an untrained model; "
            "use 1 round or more, or a share such as 0.5"
        )
    elif isinstance(freeze_after, int):
        if freeze_after <= rounds:
            return None
        text = (
            f"T* is beyond the last of {rounds} rounds; use at most {rounds}, "
            "more num-server-rounds, or 1.0 for plain BN"
        )
    elif freeze_after > 1.0:
        text = (
            "a share of the rounds is at most 1.0; write a whole number without a point for rounds"
        )
    elif freeze_after < 1.0 and schedule.freeze_round(freeze_after, rounds) >= rounds:
        text = (
            f"this share leaves none of {rounds} rounds to calibrate in; "
            "use a smaller share, more num-server-rounds, or 1.0 for plain BN"
        )
    else:
        return None
    return problem("freeze-after", freeze_after, text)


def _partition(task: str, partition: str) -> str | None:
    if get_task(task).masks is None or partition not in ("dirichlet", "classes"):
        return None
    text = f"an image of task {task} has a class for every pixel, not one; use natural or iid"
    return problem("partition", partition, text)


def _classes(task: str, partition: str, classes: int) -> str | None:
    there_are = get_task(task).classes
    if partition != "classes" or classes <= there_are:
        return None
    text = f"task {task} has {there_are} classes; use at most {there_are}"
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


def _data_dir(data_dir: str) -> str | None:
    if problem_of_path := _path("data-dir", data_dir):
        return problem_of_path
    path = os.path.abspath(os.path.expanduser(data_dir))
    if not data_dir or os.path.isdir(path):
        return None
    text = f"there is no directory {path}; create it, or name one that exists, absolute"
    return problem("data-dir", data_dir, text)


def _output_dir(output_dir: str) -> str | None:
    return _path("output-dir", output_dir)


def _state_dir(state_dir: str) -> str | None:
    if problem_of_path := _path("state-dir", state_dir):
        return problem_of_path
    path = os.path.expanduser(state_dir)
    if state_dir and not os.path.isabs(path):
        text = "every client would look from where it happens to run; write the whole path"
        return problem("state-dir", state_dir, text)
    if not state_dir or os.path.isdir(path) or not os.path.exists(path):
        return None
    text = f"{path} is a file; name a directory, which is made if it is not there"
    return problem("state-dir", state_dir, text)


def _resume(resume: str) -> str | None:
    return _path("resume", resume)


def _path(key: str, path: str) -> str | None:
    try:
        os.fsencode(path)
    except ValueError:
        return problem(key, path, "no file can be called so; use ordinary letters")
    if "\0" in path:
        return problem(key, path, "no path holds a character of code 0; leave it out")
    if os.path.expanduser(path).startswith("~"):
        text = "there is no such user here; write the whole path, or ~/ for your own home"
        return problem(key, path, text)
    return None


def _run_name(run_name: str) -> str | None:
    if len(run_name) > _LONGEST:
        text = f"has {len(run_name)} characters, too many for a folder; use at most {_LONGEST}"
        return problem("run-name", run_name, text)
    if not run_name or (_RUN_NAME.fullmatch(run_name) and ".." not in run_name):
        return None
    text = (
        "names a folder; use letters, digits, '.', '_' and '-' only, with no '.' in front "
        "and no '..'"
    )
    return problem("run-name", run_name, text)


def _device(device: str) -> str | None:
    if _DEVICE.fullmatch(device):
        return None
    return problem("device", device, "unknown device; use auto, cpu, cuda, or such as cuda:1")


# The fields that a check reads, in the order of its arguments: it is left out when one of them is
# already known to be wrong, so that one mistake makes one line.
TOGETHER: tuple[tuple[tuple[str, ...], Callable[..., str | None]], ...] = (
    (("task", "model"), _model),
    (("data_dir",), _data_dir),
    (("output_dir",), _output_dir),
    (("state_dir",), _state_dir),
    (("resume",), _resume),
    (("task", "partition"), _partition),
    (("task", "partition", "partition_classes"), _classes),
    (("norm", "freeze_after"), _norm),
    (("freeze_after", "num_server_rounds"), _freeze_after),
    (("momentum", "momentum_coefficient"), _momentum),
    (("local_steps", "local_epochs"), _local_work),
    (("device",), _device),
    (("run_name",), _run_name),
)
