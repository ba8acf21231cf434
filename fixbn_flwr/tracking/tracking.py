"""Log a run to one or more trackers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, cast

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.schedule import Phase
from fixbn_flwr.method.signals import Signals
from fixbn_flwr.persistence.atomic_files import write_atomically
from fixbn_flwr.tracking.background import BackgroundTracker
from fixbn_flwr.tracking.tracker import Scalar, TrackedRun, Tracker

_CLASSES = {"tensorboard": "TensorBoard", "mlflow": "MLflow", "wandb": "WandB"}
_IDENTITY = "tracking-id"
_CLOSING, _CLOSING_FAILED = 60.0, 10.0  # seconds that the run's end waits for a tracker


def tracker_names(trackers: str) -> list[str]:
    """Split a comma-separated list of trackers.

    Raises:
        ConfigError: If one is unknown.
    """
    names = list(dict.fromkeys(name.strip() for name in trackers.split(",") if name.strip()))
    for name in names:
        if name not in _CLASSES:
            raise ConfigError(f"{name!r} is not a tracker: use {', '.join(_CLASSES)}.")
    return names


def check_installed(trackers: str) -> None:
    """Check that the libraries of trackers are installed.

    Raises:
        ConfigError: If one is unknown or not installed.
    """
    for name in tracker_names(trackers):
        if find_spec(name) is None:
            raise ConfigError(
                f"track = {trackers!r}: {name} is not installed. Install it with "
                f'`pip install "fixbn-flwr[{name}]"`, or leave it out.'
            )


class _Strategy(Protocol):
    """What is logged of FixBN, of either generation."""

    @property
    def phase(self) -> Phase: ...
    @property
    def signals(self) -> Signals | None: ...


class Tracking:
    """Logs the rounds, the config, the figure and the model of a run.

    A tracker works in the background. If it fails, the log says so and the run goes on without it.

    Examples:
        In a ServerApp, with your own ``evaluate(server_round, arrays)`` and a strategy::

            with Tracking("tensorboard,mlflow", "runs/first", {"batch size": 16}) as tracking:
                result = strategy.start(
                    grid, arrays, num_rounds=100,
                    evaluate_fn=tracking.evaluate_fn(evaluate, strategy),
                )
                tracking.log_model(path)

    Args:
        trackers: One or more of "tensorboard", "mlflow" and "wandb", separated by commas; empty
            for none.
        folder: The run's folder, which is created; its name is the run's. TensorBoard's files are
            in it. Without a server, those of MLflow and Weights & Biases are beside it.
        config: What is set in the run, by name. Default: nothing.
        first_round: The first round to log. After 1, the run is resumed, and continues what was
            logged from this folder. Default: 1.

    Raises:
        ConfigError: If a tracker is unknown or not installed, or the folder cannot be created.
    """

    def __init__(
        self,
        trackers: str,
        folder: str | Path,
        config: Mapping[str, Scalar] | None = None,
        *,
        first_round: int = 1,
    ) -> None:
        check_installed(trackers)
        names = tracker_names(trackers)
        self._trackers: list[BackgroundTracker] = []
        if not names:
            return
        path = Path(folder).expanduser().absolute()
        identity = _identity(path, new=first_round == 1)
        run = TrackedRun(path, dict(config or {}), first_round, identity)
        for name in names:
            self._trackers.append(BackgroundTracker(name, partial(_opened, name, run)))

    def evaluate_fn(
        self, evaluate: Callable[..., Any] | None = None, strategy: _Strategy | None = None
    ) -> Callable[..., Any]:
        """Return an ``evaluate_fn`` for a strategy's ``start`` that logs each round.

        Args:
            evaluate: Your own ``evaluate_fn``, of either generation of Flower, whose result is
                logged and returned. Default: none.
            strategy: FixBN, of either generation, whose phase and signals are logged. Default:
                none.
        """

        def evaluate_and_log(server_round: int, *arguments: Any) -> Any:
            result = evaluate(server_round, *arguments) if evaluate else None
            self.log(server_round, {**_state_of(strategy), **_metrics_of(result)})
            return result

        return evaluate_and_log

    def log(self, server_round: int, metrics: Mapping[str, float]) -> None:
        """Log metrics of a round, by name. Values that are no numbers are left out."""
        logged = {k: v for k, v in metrics.items() if isinstance(v, int | float)}
        if logged:
            self._do(lambda tracker: tracker.log(server_round, logged))

    def log_figure(self, path: str | Path) -> None:
        """Log a PNG file."""
        self._do(lambda tracker: tracker.log_figure(Path(path).absolute()))

    def log_model(self, path: str | Path) -> None:
        """Log a model file. TensorBoard gets its path."""
        self._do(lambda tracker: tracker.log_model(Path(path).absolute()))

    def close(self, *, failed: bool = False) -> None:
        """End the run, and wait up to a minute until the trackers have taken everything.

        Args:
            failed: Whether the run has failed. Default: False.
        """
        self._do(lambda tracker: tracker.close(failed=failed))
        end = time.monotonic() + (_CLOSING_FAILED if failed else _CLOSING)  # for all together
        for tracker in self._trackers:
            tracker.close(max(0.0, end - time.monotonic()))
        self._trackers = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(failed=kind is not None)

    def _do(self, job: Callable[[Tracker], None]) -> None:
        for tracker in self._trackers:
            tracker.put(job)


def _opened(name: str, run: TrackedRun) -> Tracker:
    module = import_module(f"fixbn_flwr.tracking.{name}")
    return cast(Tracker, getattr(module, _CLASSES[name])(run))


def _identity(folder: Path, *, new: bool) -> str:
    """Return the random name of a run, which its folder keeps."""
    file = folder / _IDENTITY
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if new or not file.exists():
            write_atomically(file, uuid.uuid4().hex.encode())
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{folder} cannot be the folder of a tracked run ({error}): name a writable folder."
        ) from error


def _state_of(strategy: _Strategy | None) -> dict[str, float]:
    if strategy is None:
        return {}
    signals = strategy.signals
    state: dict[str, float] = {"calibration": int(strategy.phase is Phase.CALIBRATION)}
    return state | (signals.as_metrics() if signals else {})


def _metrics_of(result: Any) -> dict[str, Any]:
    """Return the metrics that an ``evaluate_fn`` returned."""
    if isinstance(result, tuple):  # the older generation
        loss, metrics = result
        return {"loss": loss, **metrics}
    return dict(result or {})
