"""Trackers that fail, wait or do not exist, and the use in one's own ServerApp."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.schedule import Phase
from fixbn_flwr.testing import SerializingGrid
from fixbn_flwr.tracking import Tracking
from fixbn_flwr.tracking.background import BackgroundTracker
from tests.support.clients import initial_arrays, training_app
from tests.support.pages import page
from tests.support.small_federation import CLIENTS, batches, fedavg, network
from tests.support.tracked import tracked_run

pytest.importorskip("tensorboard", reason="the extra tensorboard is not installed")


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return {
        name: [(event.step, event.value) for event in events.Scalars(name)]
        for name in events.Tags()["scalars"]
    }


def test_a_tracker_that_fails_does_not_stop_a_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object) -> None:
        raise SystemExit("no disk")

    monkeypatch.setattr("fixbn_flwr.tracking.tensorboard.TensorBoard.log", opened)
    folder = tracked_run(tmp_path, "tensorboard")
    assert (folder / "summary.json").is_file()
    said = [message for message in caplog.messages if "goes on without it" in message]
    assert said == ["tensorboard failed, and the run goes on without it: SystemExit: no disk"]


def test_a_server_that_is_not_there_does_not_stop_a_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with Tracking("mlflow", tmp_path / "run") as tracking:
        tracking.log(1, {"loss": 1.0})
    (said,) = (message for message in caplog.messages if "goes on without it" in message)
    assert said.startswith("mlflow failed, and the run goes on without it: MlflowException: ")


def test_a_tracker_that_waits_is_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    free, waited = threading.Event(), threading.Event()

    def wait(_: Any) -> None:
        free.wait()
        waited.set()

    tracker = BackgroundTracker("slow", lambda: None)  # type: ignore[arg-type, return-value]
    tracker.put(wait)
    tracker.close(0.0)
    assert caplog.messages == [
        "slow has not taken everything in time: what it has not taken by the end of the process "
        "is lost to it. The run folder has all of it."
    ]
    free.set()
    waited.wait()


@pytest.mark.parametrize("trackers", ["tensorbord", "mlflow, nothing"])
def test_an_unknown_tracker_is_refused_before_any_work(trackers: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a tracker: use tensorboard, mlflow, wandb"):
        Tracking(trackers, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"track = .*: .* is not a tracker: use"):
        tracked_run(tmp_path, trackers)
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_that_is_not_installed_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fixbn_flwr.tracking.tracking.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r'pip install "fixbn-flwr\[wandb\]"'):
        tracked_run(tmp_path, "wandb")
    assert list(tmp_path.iterdir()) == []


def test_without_trackers_nothing_is_written(tmp_path: Path) -> None:
    folder = tracked_run(tmp_path, "")
    names = {path.name for path in folder.iterdir()}
    assert "tracking-id" not in names
    with Tracking("", tmp_path / "other") as tracking:
        tracking.log(1, {"loss": 1.0})
    assert not (tmp_path / "other").exists()


class Frozen:
    """A strategy in calibration, without signals."""

    phase = Phase.CALIBRATION
    signals = None


def test_it_is_an_evaluate_fn_of_either_generation(tmp_path: Path) -> None:
    arrays, metrics = ArrayRecord(), MetricRecord({"accuracy": 0.5, "by-class": [0.1, 0.2]})
    with Tracking("tensorboard", tmp_path / "run") as tracking:
        newer = tracking.evaluate_fn(lambda server_round, _: metrics, Frozen())
        assert newer(1, arrays) is metrics
        older = tracking.evaluate_fn(lambda server_round, parameters, config: (0.25, {"f1": 0.75}))
        assert older(2, [], {}) == (0.25, {"f1": 0.75})
        assert tracking.evaluate_fn(strategy=Frozen())(3, arrays) is None
        assert tracking.evaluate_fn(lambda server_round, _: None)(4, arrays) is None
    assert scalars(tmp_path / "run") == {
        "accuracy": [(1, 0.5)],
        "calibration": [(1, 1.0), (3, 1.0)],
        "loss": [(2, 0.25)],
        "f1": [(2, 0.75)],
    }


def test_a_run_that_fails_says_so(tmp_path: Path) -> None:
    def fail() -> None:
        with Tracking("tensorboard", tmp_path / "run"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert "status/text_summary" in events.Tags()["tensors"]


def test_the_example_of_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", page("see-a-run.md"), re.DOTALL)
    names: dict[str, Any] = {
        "torch": torch,
        "FedAvg": fedavg,
        "grid": SerializingGrid(training_app(network, batches), CLIENTS),
        "arrays": initial_arrays(network()),
        "evaluate": lambda server_round, _: MetricRecord({"accuracy": server_round / 100}),
    }
    exec(compile(code, "see-a-run.md", "exec"), names)
    logged = scalars(tmp_path / "runs" / "mine")
    assert logged["accuracy"] == [(n, pytest.approx(n / 100)) for n in range(101)]
    assert [value for _, value in logged["calibration"]] == [0.0] * 51 + [1.0] * 50
    assert [step for step, _ in logged["fixbn-variance-disagreement"]] == list(range(1, 51))


def test_all_trackers_share_one_minute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    waits, clock = list[float](), [0.0]

    class Slow:
        def put(self, job: Any) -> None:
            pass

        def close(self, timeout: float) -> None:
            waits.append(timeout)
            clock[0] += 50.0

    now = SimpleNamespace(monotonic=lambda: clock[0])
    monkeypatch.setattr("fixbn_flwr.tracking.tracking.time", now)
    with Tracking("", tmp_path) as tracking:
        tracking._trackers = [Slow() for _ in range(3)]  # type: ignore[misc]
    assert waits == [60.0, 10.0, 0.0]
