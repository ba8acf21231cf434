"""TensorBoard: event files in `<run folder>/tensorboard`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from fixbn_flwr.tracking.tracker import TrackedRun


class TensorBoard:
    """Writes event files; see :class:`fixbn_flwr.tracking.tracker.Tracker`.

    Event files hold no other files: of a model they get the path.
    """

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # Rounds that a resumed run repeats replace those before.
        self._writer = SummaryWriter(run.folder / "tensorboard", purge_step=run.first_round)
        rows = "".join(f"| {key} | {value} |\n" for key, value in run.config.items())
        self._writer.add_text("config", f"| key | value |\n| --- | --- |\n{rows}", 0)
        self._last_round = run.first_round - 1

    def log(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Log a round's metrics."""
        self._last_round = server_round
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, server_round)
        self._writer.flush()

    def log_figure(self, path: Path) -> None:
        """Log a PNG file."""
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
        self._writer.add_image(path.stem, pixels, self._last_round, dataformats="HWC")

    def log_model(self, path: Path) -> None:
        """Log a model file."""
        self._writer.add_text("model", str(path), self._last_round)

    def close(self, *, failed: bool) -> None:
        """End the run."""
        if failed:
            self._writer.add_text("status", "failed", self._last_round)
        self._writer.close()
