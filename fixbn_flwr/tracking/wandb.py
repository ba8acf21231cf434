"""Weights & Biases: its server, or offline in `wandb/` beside the run folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from fixbn_flwr.log import logger
from fixbn_flwr.tracking.tracker import TrackedRun

_PROJECT = "fixbn"


class WandB:
    """Logs to Weights & Biases; see :class:`fixbn_flwr.tracking.tracker.Tracker`.

    ``WANDB_PROJECT``, ``WANDB_MODE`` and so on have their usual meaning. Without an API key, the
    run is logged offline, instead of asking for the key.
    """

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        mode: Literal["offline"] | None = None
        if not os.environ.get("WANDB_MODE") and not wandb.login(prompt=False, verify=False):
            mode = "offline"
        self._name = run.folder.name
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or _PROJECT,
            name=self._name,
            id=run.identity,
            resume="allow",
            dir=run.folder.parent,
            config=dict(run.config),
            mode=mode,
            # It would write over the progress bar.
            settings=wandb.Settings(console="off", silent=True),
        )
        if mode == "offline":
            logger.warning(
                "wandb has no API key here, so the run is logged offline. Upload it with "
                "`wandb login` and `wandb sync %s`.",
                self._run.settings.sync_dir,
            )

    def log(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Log a round's metrics."""
        self._run.log(dict(metrics), step=server_round)

    def log_figure(self, path: Path) -> None:
        """Log a PNG file."""
        import wandb

        self._run.log({path.stem: wandb.Image(str(path))})

    def log_model(self, path: Path) -> None:
        """Log a model file."""
        import wandb

        artifact = wandb.Artifact(f"{self._name}-{path.stem}", type="model")
        artifact.add_file(str(path))
        self._run.log_artifact(artifact)

    def close(self, *, failed: bool) -> None:
        """End the run."""
        self._run.finish(exit_code=int(failed))
