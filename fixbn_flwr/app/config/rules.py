"""The rule of each run-config key: its meaning, type, words and bounds.

:mod:`fixbn_flwr.app.config.keys` names the keys and their defaults.
:mod:`fixbn_flwr.app.config.checks` has the checks that need more than a rule.
"""

import dataclasses
import difflib
import json
import math
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, get_args, get_origin

from fixbn_flwr.method.schedule import FreezeAfter
from fixbn_flwr.method.switch import LearningRateFactor
from fixbn_flwr.models.norm import counts_groups
from fixbn_flwr.tasks import find_task

Value = bool | float | int | str
_T = TypeVar("_T")
NUMBERS = (int, float, FreezeAfter, LearningRateFactor)
_MAX_LENGTH = 200  # characters of a value that an error message repeats


@dataclass(frozen=True)
class Pattern:
    """Values that a key allows in addition to its words.

    Attributes:
        example: An example of such a value.
        meaning: The meaning of the example.
        matches: Returns whether a value is one of them. Raises `ValueError` if it is one that
            cannot be used.
    """

    example: str
    meaning: str
    matches: Callable[[str], bool]


def _is_own_task(name: str) -> bool:
    if ":" not in name:
        return False
    find_task(name)  # raises if it cannot be imported
    return True


OWN_TASK = Pattern("package.module:NAME", "for your own", _is_own_task)
GROUPS = Pattern("gn8", "for 8 groups instead of 2, or another number of them", counts_groups)


@dataclass(frozen=True)
class Rule:
    """What one key means and allows.

    Attributes:
        meaning: One sentence.
        unit: The unit; empty if there is none.
        choices: The allowed words; empty if any text is allowed. Of a number, words that are
            allowed beside numbers.
        pattern: Other allowed values than the choices.
        at_least: Lower bound, included.
        above: Lower bound, excluded.
        at_most: Upper bound, included.
        below: Upper bound, excluded.
    """

    meaning: str
    unit: str = ""
    choices: tuple[str, ...] = ()
    pattern: Pattern | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    @property
    def bounds(self) -> str:
        """The bounds in words, such as "above 0 and at most 1"; empty if there are none."""
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
    """Return the run-config key of a field: `local-steps` for `local_steps`."""
    return name.replace("_", "-")


def choices_of(field: "dataclasses.Field[Any]") -> tuple[str, ...]:
    """Return the words that a field's rule or `Literal` type allows; empty if it allows any."""
    rule: Rule = field.metadata["rule"]
    return get_args(field.type) if get_origin(field.type) is Literal else rule.choices


def problem(key: str, value: object, text: str) -> str:
    """Return one line about a key: the key, its value as in TOML, and the text."""
    try:
        written = json.dumps(value, default=repr)
    except (TypeError, ValueError, RecursionError):  # odd keys, thousands of digits, a circle
        written = f"a value of type {type(value).__name__}"
    if len(written) > _MAX_LENGTH:
        written = f"{written[:_MAX_LENGTH]}... ({len(written):,} characters)"
    return f"{key} = {written}: {text}"


def did_you_mean(word: str, words: Iterable[str]) -> str:
    """Return the remedy for an unknown word: the nearest of `words`, if one is near, and all."""
    words = list(words)
    near = _nearest(word, words)
    others = ", ".join(other for other in words if other != near)
    if near is None:
        return f"use one of {others}"
    return f"did you mean {near}?" + (f" If not, use one of {others}" if others else "")


def unknown_key(key: str, keys: Sequence[str]) -> str:
    """Return what to say about an unknown key; `list_of_keys` comes once after all of them."""
    near = _nearest(key, keys)
    return f"did you mean {near}?" if near else "use one of the keys below"


def list_of_keys(keys: Iterable[str]) -> str:
    """Return all keys in lines of at most 80 columns, indented like the lines of an error."""
    text = f"The keys are {', '.join(keys)}."
    lines = textwrap.wrap(text, width=76, break_on_hyphens=False, subsequent_indent="  ")
    return "\n  ".join(lines)


def _nearest(word: str, words: Sequence[str]) -> str | None:
    found = difflib.get_close_matches(word.strip().lower().replace("_", "-"), words, n=1)
    return found[0] if found else None


def parse(field: "dataclasses.Field[Any]", value: object) -> Value:
    """Convert a value to the field's type: an int becomes a float where the field is a float.

    Raises:
        ValueError: If the type, the word or the bounds do not fit; "reason; remedy".
    """
    rule: Rule = field.metadata["rule"]
    if field.type is bool:
        if not isinstance(value, bool):
            raise ValueError("must be true or false; write it without quotes")
        return value
    if field.type not in NUMBERS:
        return _text(value, choices_of(field), rule.pattern)
    if isinstance(value, str) and value in rule.choices:
        return value
    number = _number(value, whole=field.type is int, words=rule.choices)
    if not (
        (rule.at_least is None or number >= rule.at_least)
        and (rule.above is None or number > rule.above)
        and (rule.at_most is None or number <= rule.at_most)
        and (rule.below is None or number < rule.below)
    ):
        raise ValueError(f"out of bounds; use a number {rule.bounds}")
    return float(number) if field.type in (float, LearningRateFactor) else number


def _text(value: object, choices: tuple[str, ...], pattern: Pattern | None) -> str:
    if not isinstance(value, str):
        remedy = f"use one of {', '.join(choices)}" if choices else "write it in quotes"
        raise ValueError(f"must be text; {remedy}")
    if choices and value not in choices and not (pattern and pattern.matches(value)):
        allowed = [*choices, f"{pattern.example} {pattern.meaning}"] if pattern else choices
        raise ValueError(f"unknown word; {did_you_mean(value, allowed)}")
    return value


def _number(value: object, *, whole: bool, words: Sequence[str]) -> int | float:
    noun = "a whole number" if whole else "a number"
    if isinstance(value, bool) or not isinstance(value, int | float):
        other = "".join(f', or "{word}"' for word in words)
        raise ValueError(f"must be {noun}{other}; write it in digits, without quotes")
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
