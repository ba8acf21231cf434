"""The run config of a supervised run: what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from fixbn_flwr.app.flower_app import write_app
from fixbn_flwr.app.supervision.supervised_config import supervised_config
from fixbn_flwr.errors import ConfigError
from tests.support.whole_app import run_app


def test_it_has_the_given_keys_with_absolute_paths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = supervised_config(tmp_path / "run", ["learning-rate=0.1", "data-dir=."], None)
    assert given == {"learning-rate": 0.1, "data-dir": str(tmp_path)}


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "run-name=other",
            r'run-name = "other": the supervised run.*; remove the key',
        ),
        ("resume=other", "resume = .*remove the key"),
        ("checkpoint-every=0", "checkpoint-every = 0: a supervised run resumes from its checkpoin"),
        ("local-stepz=2", "unknown key; did you mean local-steps"),
    ],
)
def test_a_key_that_cannot_work_is_refused(tmp_path: Path, word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        supervised_config(tmp_path / "run", [word], None)


def test_a_stopped_run_must_have_had_the_same_config(tmp_path: Path) -> None:
    folder = run_app(tmp_path, 2, {})
    (folder / "summary.json").unlink()  # as if it had been stopped after its last round
    with pytest.raises(ConfigError, match="num-server-rounds was 3 and is 12"):
        supervised_config(folder, ["num-server-rounds=12"], None)


def test_an_app_of_ones_own_has_its_defaults(tmp_path: Path) -> None:
    write_app(tmp_path / "app", "own", {"checkpoint-every": 0})
    with pytest.raises(ConfigError, match="checkpoint-every = 0"):
        supervised_config(tmp_path / "run", [], tmp_path / "app")
    given = supervised_config(tmp_path / "run", ["checkpoint-every=2"], tmp_path / "app")
    assert given == {"checkpoint-every": 2}
