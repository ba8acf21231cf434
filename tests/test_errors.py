from __future__ import annotations

import inspect
import re

import pytest

from fixbn_flwr import errors


def _all() -> dict[str, type[Exception]]:
    return {
        name: value
        for name, value in vars(errors).items()
        if inspect.isclass(value) and issubclass(value, Exception)
    }


def test_every_error_is_in_the_class_tree_of_the_docstring() -> None:
    drawn = re.findall(r"^    (?:│   )?(?:[├└]── )?(\w+)", errors.__doc__ or "", flags=re.MULTILINE)
    assert sorted(drawn) == sorted(_all())
    assert all(issubclass(error, errors.FixBNError) for error in _all().values())


def test_config_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="no such"):
        raise errors.ConfigError("no such")
