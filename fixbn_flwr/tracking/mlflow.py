"""MLflow: a server, or the database `mlflow.db` beside the run folders."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fixbn_flwr.tracking.tracker import TrackedRun

_EXPERIMENT = "fixbn"
_TAG = "fixbn.run"
_MOST = 100  # parameters that one call may log


class MLflow:
    """Logs to MLflow; see :class:`fixbn_flwr.tracking.tracker.Tracker`.

    ``MLFLOW_TRACKING_URI`` and ``MLFLOW_EXPERIMENT_NAME`` have their usual meaning.
    """

    def __init__(self, run: TrackedRun) -> None:
        from mlflow.entities import Param

        # A new database announces each of its tables.
        for chatty in ("mlflow.store.db.utils", "alembic"):
            logging.getLogger(chatty).setLevel(logging.WARNING)
        root = run.folder.parent
        # Two runs that create one database, or one experiment, at a time would fail.
        with (root / ".mlflow.lock").open("wb") as lock:
            with suppress(OSError):  # some network file systems do not support locks
                fcntl.flock(lock, fcntl.LOCK_EX)
            number = self._experiment(root)
        self._id = self._resumed(number, run)
        if self._id is None:
            new = self._client.create_run(
                number, run_name=run.folder.name, tags={_TAG: run.identity}
            )
            self._id = new.info.run_id
            params = [Param(key, str(value)) for key, value in run.config.items()]
            for start in range(0, len(params), _MOST):
                self._client.log_batch(self._id, params=params[start : start + _MOST])

    def _experiment(self, root: Path) -> str:
        """Open the database, and return the id of the experiment; create both if necessary."""
        from mlflow import MlflowClient

        uri = os.environ.get("MLFLOW_TRACKING_URI")
        # The client, unlike mlflow.log_metric, leaves the process's own active run alone.
        self._client = MlflowClient(tracking_uri=uri or f"sqlite:///{root / 'mlflow.db'}")
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _EXPERIMENT
        experiment = self._client.get_experiment_by_name(name)
        if experiment is not None:
            return str(experiment.experiment_id)
        artifacts = None if uri else (root / "mlflow-artifacts").as_uri()
        return str(self._client.create_experiment(name, artifact_location=artifacts))

    def _resumed(self, experiment: str, run: TrackedRun) -> Any:
        """Return the id that a resumed run has had before; None if it is new here."""
        if run.first_round == 1:
            return None
        found = self._client.search_runs([experiment], f"tags.`{_TAG}` = '{run.identity}'")
        if not found:
            return None
        self._client.update_run(found[0].info.run_id, status="RUNNING")
        return found[0].info.run_id

    def log(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Log a round's metrics."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        logged = [
            # MLflow refuses other characters, which the name of a client can have.
            Metric(re.sub(r"[^\w.\- /:]", "_", name), float(value), now, server_round)
            for name, value in metrics.items()
        ]
        self._client.log_batch(self._id, metrics=logged)

    def log_figure(self, path: Path) -> None:
        """Log a PNG file."""
        self._client.log_artifact(self._id, str(path))

    def log_model(self, path: Path) -> None:
        """Log a model file."""
        self._client.log_artifact(self._id, str(path), "model")

    def close(self, *, failed: bool) -> None:
        """End the run."""
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")
