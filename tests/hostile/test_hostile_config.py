"""Any run config results in settings, or in one ConfigError that names the keys."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.errors import ConfigError
from tests.support.hostile_records import FUZZ

KEYS = list(Settings().as_run_config())
# Text with a colon names a user's module, which would be imported.
TEXT = st.text(max_size=12).filter(lambda text: ":" not in text)
VALUES = st.one_of(
    st.sampled_from(
        ["", "digits", "camvid", "resnet20", "gn8", "gn0", "gn" + "9" * 50, "natural", "classes",
         "reset", "global", "cpu", "cuda:99999999999999999999", "..", "a b", "~nobody", "~\0", "\0",
         "\ud800", "x" * 5000, "-1", "1e9", 0, 1, -1, 1.0, 0.5, 10**400, 10**5000, 2**32]
    ),
    TEXT,
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.lists(st.integers(), max_size=2),
    st.binary(max_size=3),
)  # fmt: skip
CONFIGS = st.dictionaries(
    st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS), TEXT, st.integers(), st.none()),
    VALUES,
    max_size=3,
)


@settings(FUZZ, max_examples=1500)
@given(CONFIGS)
@example({"data-dir": "~\0"})
@example({"seed": 10**5000})
@example({"task": {1: 2}, "norm": {(1, 2): 3}})
def test_any_run_config_returns_settings_or_raises_a_config_error(
    config: Mapping[Any, Any],
) -> None:
    try:
        made = Settings.from_run_config(config)
    except ConfigError as error:
        text = str(error)
    else:
        assert Settings.from_run_config(made.as_run_config()) == made
        return
    assert text.startswith("the run config cannot be used:\n  ")
    assert len(text) < 5000 + 2000 * len(config)
