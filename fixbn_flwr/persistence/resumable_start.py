"""Start a run so that it can be resumed: the one call that replaces ``strategy.start``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result

from fixbn_flwr.errors import CheckpointError
from fixbn_flwr.log import logger
from fixbn_flwr.persistence.checkpoint_writer import CheckpointWriter
from fixbn_flwr.persistence.checkpoints import Checkpoints

EvaluateFn = Callable[[int, ArrayRecord], MetricRecord | None]


class ResumableStrategy(Protocol):
    """What a strategy must have to be resumed; ``fixbn_flwr.FixBN`` has it."""

    checkpoints: Sequence[int]

    def start(self, *args: Any, **kwargs: Any) -> Result:
        """Run the rounds from ``first_round`` on."""

    def state(self) -> dict[str, Any]:
        """Return what the strategy needs, beside the model, to resume."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take what ``state`` returned."""


def start_or_resume(
    strategy: ResumableStrategy,
    folder: str | Path,
    grid: Grid,
    initial_arrays: ArrayRecord,
    num_rounds: int = 3,
    *,
    evaluate_fn: EvaluateFn | None = None,
    keep: int = 2,
    **options: Any,
) -> Result:
    """Run a strategy with a checkpoint after every round; resume if there is one already.

    A resumed run continues as if it had never stopped, except that clients' own momentum buffers
    survive only in files (``state-dir``).

    Examples:
        >>> from fixbn_flwr import FixBN
        >>> from flwr.serverapp.strategy import FedAvg
        >>> strategy = FixBN(FedAvg(), freeze_after=0.5)
        >>> def main(grid, arrays):
        ...     return start_or_resume(strategy, "checkpoints", grid, arrays, num_rounds=100)

    Args:
        strategy: The strategy, built as in the first run.
        folder: Where the checkpoints are. One folder per run.
        grid: The grid that Flower gave to the app.
        initial_arrays: The initial model, ``ArrayRecord(model.state_dict())``.
        num_rounds: The number of the last round. Default: 3.
        evaluate_fn: As for ``strategy.start``. Default: None.
        keep: The number of newest checkpoints to keep. Default: 2.
        options: Further arguments of ``strategy.start``.

    Returns:
        The run's result. Its metrics are those of the rounds that this call ran.

    Raises:
        CheckpointError: If a checkpoint cannot be written, none of the existing ones is intact, or
            they are of another model.
    """
    checkpoints = Checkpoints(Path(folder), keep)
    arrays, done = initial_arrays, 0
    if checkpoints.rounds():
        done, tree = checkpoints.newest()
        arrays = tree["model"]
        _check_same_model(arrays, initial_arrays, Path(folder))
        if done >= num_rounds:
            logger.warning("all %s rounds are done already, see %s", num_rounds, folder)
            return Result(arrays=arrays)
        strategy.restore(tree["strategy"])
        logger.info("resuming after round %s from %s", done, folder)
    writer = CheckpointWriter(checkpoints)
    strategy.checkpoints = writer.rounds

    def evaluate(server_round: int, model: ArrayRecord) -> MetricRecord | None:
        metrics = evaluate_fn(server_round, model) if evaluate_fn else None
        if server_round > done:
            writer.save(server_round, {"model": model, "strategy": strategy.state()})
            strategy.checkpoints = writer.rounds
        return metrics

    try:
        result = strategy.start(
            grid, arrays, num_rounds, evaluate_fn=evaluate, first_round=done + 1, **options
        )
    finally:
        writer.wait()
    if max(checkpoints.rounds(), default=0) <= done:
        logger.warning(
            "no checkpoint was written to %s, so this run could not have been resumed: the "
            "strategy's own start() must call evaluate_fn(round, arrays) after each round",
            folder,
        )
    return result


def _check_same_model(kept: ArrayRecord, initial: ArrayRecord, folder: Path) -> None:
    """Refuse the checkpoint of another model.

    Raises:
        CheckpointError: If names, shapes or types differ.
    """
    forms = (
        {name: (array.dtype, array.shape) for name, array in record.items()}
        for record in (kept, initial)
    )
    if next(forms) != next(forms):
        raise CheckpointError(
            f"the checkpoints in {folder} are of another model than initial_arrays: use another "
            "folder for every run, or remove the old one."
        )
