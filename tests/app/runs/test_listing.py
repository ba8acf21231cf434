"""The list of runs: its columns, the four states, and what it says about folders without runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fixbn_flwr.app import client_app
from fixbn_flwr.app.cli import cli
from fixbn_flwr.app.runs.lock import is_locked, locked
from fixbn_flwr.errors import ConfigError, RoundsFailedError
from fixbn_flwr.testing import SerializingGrid
from tests.support.whole_app import SMALL, run_app, serve


def listed(*words: str) -> list[str]:
    """Return the lines that `fixbn list` prints."""
    result = CliRunner().invoke(cli, ["list", *words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def rows(lines: list[str]) -> list[list[str]]:
    """Return the cells of a table's rows."""
    return [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:2] == "| "]


def fail(output_dir: Path, **changes: object) -> None:
    """Run the app until all clients fail in round 2."""
    config = {**SMALL, "output-dir": str(output_dir), "run-name": "failed", **changes}

    def lost(message: object) -> bool:
        records = message.content.config_records  # type: ignore[attr-defined]
        return records.get("config", {}).get("server-round", 0) >= 2

    with pytest.raises(RoundsFailedError):
        serve(SerializingGrid(client_app.app, 3, lost=lost, run_config=config), config)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished, a failed and a stopped run."""
    folder = tmp_path_factory.mktemp("runs")
    run_app(folder, 3, {"run-name": "finished"})
    fail(folder, **{"num-server-rounds": 5})
    (folder / "the-oldest").mkdir()
    change(folder / "finished", folder / "the-oldest", method="BN", started="2020-01-01T00:00")
    change(folder / "failed", folder / "failed", started="2020-01-02T00:00")
    return folder


def change(source: Path, target: Path, **changes: str) -> None:
    """Write a run's config, with changes, to another folder."""
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | changes))


def test_every_run_has_its_row(runs: Path) -> None:
    last = json.loads((runs / "finished" / "metrics.jsonl").read_text().splitlines()[-1])
    third = json.loads((runs / "failed" / "metrics.jsonl").read_text().splitlines()[2])
    lines = listed(str(runs))
    head, *cells = rows(lines)
    assert head == ["run", "method", "task", "rounds", "accuracy %", "state"]
    percent = [f"{100 * line['test_accuracy']:.1f}" for line in (last, third)]
    assert cells == [
        ["the-oldest", "BN", "digits", "0/3", "-", "stopped"],
        ["failed", "FixBN", "digits", "3/5", percent[1], "failed"],
        ["finished", "FixBN", "digits", "3/3", percent[0], "finished"],
    ]
    reason = next(line for line in lines if line.startswith("failed failed: "))
    assert "no client returned a usable update" in reason


def test_without_tests_at_the_server_the_accuracy_is_the_clients(tmp_path: Path) -> None:
    changes = {"evaluate-every": 0, "validation-share": 0.25, "run-name": "own"}
    run_app(tmp_path, 3, changes)
    last = json.loads((tmp_path / "own" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["test_accuracy"] is None
    (_, (*_, accuracy, _)) = rows(listed(str(tmp_path)))
    assert accuracy == f"{100 * last['validation_accuracy']:.1f}"


def test_a_run_is_running_while_its_folder_is_locked(runs: Path) -> None:
    with locked(runs / "the-oldest"), locked(runs / "failed"):
        states = {row[0]: row[5] for row in rows(listed(str(runs)))[1:]}
    assert states == {"the-oldest": "running", "finished": "finished", "failed": "running"}
    assert not is_locked(runs / "the-oldest")


def test_a_folder_that_has_disappeared_is_not_running(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "deleted")


def test_a_resumed_run_has_not_failed(runs: Path, tmp_path: Path) -> None:
    fail(tmp_path, **{"num-server-rounds": 4})
    folder = tmp_path / "failed"
    assert "no client" in json.loads((folder / "config.json").read_text())["failure"]
    config = {**SMALL, "output-dir": str(tmp_path), "num-server-rounds": 4, "resume": str(folder)}
    serve(SerializingGrid(client_app.app, 3, run_config=config), config)
    assert "failure" not in json.loads((folder / "config.json").read_text())
    assert rows(listed(str(tmp_path)))[1][5] == "finished"


def test_a_damaged_run_is_named_beside_the_others(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    for name in ("good", "worse", "bad"):
        folder = tmp_path / "runs" / name
        folder.mkdir()
        (folder / "config.json").write_bytes((runs / "the-oldest" / "config.json").read_bytes())
    (folder / "metrics.jsonl").write_text("not json\n")
    (tmp_path / "runs" / "worse" / "metrics.jsonl").write_bytes(b"\xff\xfe")
    lines = listed(str(tmp_path / "runs"))
    assert [row[0] for row in rows(lines)[1:]] == ["good"]
    assert f"Not listed: {folder / 'metrics.jsonl'}, line 1: not a round's" in "\n".join(lines)
    assert "worse is not the folder of a run: cannot read metrics.jsonl ('utf-8'" in lines[-1]


def test_ctrl_c_leaves_a_stopped_run(tmp_path: Path) -> None:
    config = {**SMALL, "output-dir": str(tmp_path), "run-name": "interrupted"}

    def interrupt(message: object) -> bool:
        if "config" in message.content.config_records:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return False

    with pytest.raises(KeyboardInterrupt):
        serve(SerializingGrid(client_app.app, 3, lost=interrupt, run_config=config), config)
    assert rows(listed(str(tmp_path)))[1][3:] == ["0/3", "-", "stopped"]


def test_folders_without_runs_are_refused(runs: Path, tmp_path: Path) -> None:
    for folder, message in (
        (tmp_path / "nothing", r"there is no folder .*/nothing: name the folder that has the run"),
        (tmp_path, r"has no run folders: `fixbn run` creates them in ./runs"),
        (runs / "failed", rf"failed is a run: name the folder with the runs, {runs}\."),
    ):
        with pytest.raises(ConfigError, match=message):
            listed(str(folder))


def test_the_list_does_not_wait_for_torch() -> None:
    """Importing torch takes seconds."""
    code = "import fixbn_flwr.app.runs.listing, sys; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
