"""One command resumes a real run whose server was killed, and the result has the same bits."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from fixbn_flwr.app.runs.reader import read_config, read_metrics
from tests.support.real_runs import PROGRAMS, home_until, processes_of, running_fixbn
from tests.support.waiting import TIMEOUT
from tests.support.whole_app import run_app

pytestmark = pytest.mark.slow

FIXBN = str(PROGRAMS / "fixbn")
ROUNDS = {"local": 100, "ray": 60}  # more than are done before the kill


def kill_server(run: subprocess.Popen[str], engine: str) -> None:
    """Kill the process with the ServerApp in round 5 or later."""
    if engine == "ray":
        home = home_until(run, "round  5/")
        processes = [p for p, c in processes_of(home).items() if "flwr-simulation" in c]
        assert processes
    else:
        assert any(line.startswith("round   5/") for line in run.stdout or ())
        processes = [run.pid]
    for process in processes:
        os.kill(process, signal.SIGKILL)


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_run_with_a_killed_server_resumes_to_the_same_bits(engine: str, tmp_path: Path) -> None:
    state, runs = tmp_path / "state", tmp_path / "runs"
    rounds = ROUNDS[engine]
    config = {
        "num-server-rounds": rounds, "freeze-after": rounds // 2, "local-steps": 2, "batch-size": 8,
        "validation-share": 0.1,
    }  # fmt: skip
    words = [f"{key}={value}" for key, value in config.items()]
    words += [f"state-dir={state}", f"output-dir={runs}", "run-name=killed", "fraction-train=0.5"]
    options = ["--clients=4", "--workers=1", f"--engine={engine}"]
    with running_fixbn("run", *words, *options, folder=tmp_path) as run:
        kill_server(run, engine)
        run.communicate()
    assert run.returncode == {"local": -signal.SIGKILL, "ray": 1}[engine]
    folder = runs / "killed"
    # A round is printed just before it is recorded.
    assert 4 <= len(read_metrics(folder)) < rounds
    assert not (folder / "summary.json").exists()

    resumed = subprocess.run(
        [FIXBN, "run", f"resume={folder}", "--workers=1", f"--engine={engine}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert f"Run folder: {folder}" in resumed.stdout
    assert "Momentum of 4 clients" in resumed.stdout
    assert read_config(folder)["clients"] == 4
    uninterrupted = run_app(tmp_path / "uninterrupted", 4, {**config, "learning-rate": 0.05})
    for model in ("final", "best"):
        name = f"{model}.safetensors"
        assert (folder / name).read_bytes() == (uninterrupted / name).read_bytes()
    assert [line.test_loss for line in read_metrics(folder)] == [
        line.test_loss for line in read_metrics(uninterrupted)
    ]

    deleted = subprocess.run(
        [FIXBN, "delete", str(folder), "--yes"], capture_output=True, text=True, check=True
    )
    assert deleted.stdout.count("Deleted") == 2
    assert list(state.iterdir()) == list(runs.iterdir()) == []
