"""The columns, splits and classes of a table of `datasets`: which ones the app uses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks.data_task import DataOptions, held_out

TRAIN, TEST = "train", "test"
_TESTS = ("test", "validation", "valid", "val")
_LABELS = ("label", "labels")


def image_column(name: str, images: Sequence[str]) -> str:
    """Return the column with the images.

    Raises:
        ConfigError: If there is none, or several without one of the name `image`.
    """
    if len(images) != 1 and "image" not in images:
        found = ", ".join(images) or "none"
        raise ConfigError(
            f"{name} needs one column with images, and has {found}: choose another data set, or"
            " write a task of your own."
        )
    return "image" if "image" in images else images[0]


def label_column(name: str, wanted: str, columns: Sequence[str], classes: Sequence[str]) -> str:
    """Return the column with the classes: the wanted one, `label`, or the only one of classes.

    Raises:
        ConfigError: If there is no such column, or several could be it.
    """
    if wanted:
        if wanted not in columns:
            raise no_column(name, "label-column", wanted, columns)
        return wanted
    for usual in _LABELS:
        if usual in columns:
            return usual
    if len(classes) == 1:
        return classes[0]
    raise ConfigError(
        f"label-column is empty, and {name} does not show which of its columns has the classes: set"
        f" label-column to one of {', '.join(columns)}."
    )


def no_column(name: str, key: str, wanted: str, columns: Sequence[str]) -> ConfigError:
    """Return the error for a key with the name of a column that is not there."""
    return ConfigError(
        f"{key} is {wanted!r}, which is no column of {name}: choose one of {', '.join(columns)}."
    )


def with_test_rows(found: Any, label: str, options: DataOptions) -> Any:
    """Return a data set with the splits "train" and "test", from the splits that it has.

    Args:
        found: The data set, a `DatasetDict`.
        label: The column with the classes.
        options: Whether test rows are chosen if there are none with known classes, and by which
            seed.
    """
    from datasets import DatasetDict

    train = found[TRAIN if TRAIN in found else next(iter(found))]
    for test in _TESTS:
        # The official test images of some data sets have the class -1.
        if test in found and found[test] is not train and _known(found[test], label):
            return DatasetDict({TRAIN: train, TEST: found[test]})
    numbers = np.unique([str(value) for value in train[label]], return_inverse=True)[1]
    out = np.zeros(len(numbers), bool)
    if options.choose_test:
        out = held_out(numbers, options.seed)
    return DatasetDict(
        {
            TRAIN: train.select(np.flatnonzero(~out)),
            TEST: train.select(np.flatnonzero(out)),
        }
    )


def _known(rows: Any, label: str) -> bool:
    return all(value is not None and value != -1 for value in rows[label])


def class_names_of(
    name: str, given: Sequence[str] | None, column: str, values: Sequence[list[Any]]
) -> tuple[str, ...]:
    """Return the names of the classes: those of the column's type, else its values in order.

    Raises:
        ConfigError: If a row has no class.
    """
    found = {value for of_split in values for value in of_split}
    if not all(isinstance(value, str | int) for value in found) or -1 in found:
        odd = next(v for v in found if not isinstance(v, str | int) or v == -1)
        raise ConfigError(
            f"the column {column} of {name} has the value {odd!r}: each row needs a class, which is"
            " text or a number from 0."
        )
    if given is not None:
        return tuple(given)
    if len({type(value) for value in found}) > 1:
        raise ConfigError(f"the column {column} of {name} has text and numbers: use one of them.")
    return tuple(map(str, sorted(found)))


def group_numbers(name: str, column: str, values: Sequence[Any]) -> npt.NDArray[np.int64]:
    """Return the number of the natural client of each row, in the order of the values, `[n]`.

    Args:
        name: The name of the data set.
        column: The column with the natural clients.
        values: Its values.

    Raises:
        ConfigError: If a row has no value, or the values cannot be compared.
    """
    types = {type(value): value for value in values}
    for value in values:
        is_nan = isinstance(value, float) and math.isnan(value)
        if value is None or is_nan or isinstance(value, list | dict):
            raise ConfigError(
                f"group-column is {column!r}, which has the value {value!r} in {name}: each row"
                " needs a client, which is text or a number. Remove the other rows, or choose"
                " another column."
            )
    if len(types) > 1:
        first, second = list(types.values())[:2]
        raise ConfigError(
            f"group-column is {column!r}, which has values of different types in {name}, such as"
            f" {first!r} and {second!r}: use one type."
        )
    numbers: npt.NDArray[np.int64] = np.unique(np.asarray(values), return_inverse=True)[1]
    return numbers
