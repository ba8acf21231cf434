"""MLflow's own database, read by its own client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fixbn_flwr.tracking.tracker import TrackedRun
from tests.support.tracked import logged_values, tracked_run

pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
pytestmark = pytest.mark.slow


def runs_of(folder: Path) -> tuple[Any, list[Any]]:
    """Return the client of the database beside a run folder, and its runs."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fixbn")
    assert experiment is not None
    return client, list(client.search_runs([experiment.experiment_id]))


def history(client: Any, run: Any, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]


def test_a_clients_name_may_have_characters_that_mlflow_refuses(tmp_path: Path) -> None:
    from fixbn_flwr.tracking.mlflow import MLflow

    folder = tmp_path / "run"
    tracker = MLflow(TrackedRun(folder, {}, 1, "identity"))
    tracker.log(1, {"validation-by-client/Köln, Nord (42)": 0.5})
    client, (run,) = runs_of(folder)
    assert history(client, run, "validation-by-client/Köln_ Nord _42_") == [(1, 0.5)]


def test_a_run_and_what_it_adds_when_resumed_are_one_run(tmp_path: Path) -> None:
    folder = tracked_run(tmp_path, "mlflow")
    client, (run,) = runs_of(folder)
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert run.data.params["learning-rate"] == "0.05"
    assert run.data.params["method"] == "FixBN"
    expected = logged_values(folder)
    for name in {name for values in expected for name in values}:
        assert history(client, run, name) == [
            (n, values[name]) for n, values in enumerate(expected, 1) if name in values
        ]
    files = [item.path for item in client.list_artifacts(run.info.run_id)]
    assert files == ["curves.png", "model"]
    copy = client.download_artifacts(run.info.run_id, "model/final.safetensors", str(tmp_path))
    assert Path(copy).read_bytes() == (folder / "final.safetensors").read_bytes()

    more = {"resume": str(folder), "num_server_rounds": 4, "may_change": "num-server-rounds"}
    tracked_run(tmp_path, "mlflow", **more, freeze_after=2)
    client, (run,) = runs_of(folder)
    assert run.info.status == "FINISHED"
    assert [step for step, _ in history(client, run, "train-loss")] == [1, 2, 3, 4]
