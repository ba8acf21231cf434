"""The metrics of a run's rounds, its summary, and both as text for the console."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fixbn_flwr.method.schedule import Phase

# `fixbn list` reads metrics and must not wait for torch.
if TYPE_CHECKING:
    from fixbn_flwr.app.config.settings import Settings

_LONGEST_NAME = 12  # of a client, in a line of 80 columns


@dataclass(frozen=True)
class RoundMetrics:
    """The metrics of one round; a line of a run folder's metrics.jsonl.

    Attributes:
        round: The round, counted from 1.
        phase: Exploration or calibration.
        learning_rate: The clients' learning rate, with the calibration factor.
        train_loss: The mean training loss, a cross-entropy in nats; None without a usable reply.
        test_loss: The global model's test loss; None in a round without evaluation.
        test_accuracy: Its accuracy in [0, 1] (for segmentation, the mean intersection over union);
            None in a round without evaluation.
        bytes_sent: The arrays that the server sent, in bytes.
        bytes_received: The arrays that it received, in bytes.
        seconds: The duration of the round.
        clients: The number of averaged replies.
        dropped: The number of sampled clients without a usable reply.
        train_seconds: The slowest client's training time; None if no client reported it.
        retries: How often the run has gone back to the end of round T*.
        signals: How far the clients are apart, see :mod:`fixbn_flwr.method.signals`, by the names
            of the strategy's metrics.
        disagreement_by_layer: The disagreement of their running variances, by layer.
        validation_loss: The mean loss over the images that the clients hold out; None in a round
            without validation, or if it is not finite at any client.
        validation_accuracy: The mean accuracy over these images. It chooses the best model.
        validation_worst: The lowest accuracy of a client.
        validation_spread: The standard deviation between the clients' accuracies.
        validation_by_client: The accuracy of each client that has replied, by its partition; with
            its own data by its name, or Flower's id of its node.
    """

    round: int
    phase: Phase
    learning_rate: float
    train_loss: float | None
    test_loss: float | None
    test_accuracy: float | None
    bytes_sent: int
    bytes_received: int
    seconds: float
    clients: int
    dropped: int
    train_seconds: float | None = None
    retries: int = 0
    signals: Mapping[str, float] = field(default_factory=dict)
    disagreement_by_layer: Mapping[str, float] = field(default_factory=dict)
    validation_loss: float | None = None
    validation_accuracy: float | None = None
    validation_worst: float | None = None
    validation_spread: float | None = None
    validation_by_client: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Summary:
    """The summary of a run. Accuracies are in [0, 1], and None if they were not measured.

    Attributes:
        accuracy_at_freeze: The test accuracy after round T*; None if nothing was frozen.
        final_accuracy: The test accuracy after the last round.
        best_accuracy: The test accuracy of the best model. The tests do not choose this model.
        best_validation: Its validation accuracy, the highest of the run.
        best_round: Its round; None without validation.
        seconds: The duration of all rounds.
        megabytes_sent: The arrays that the server sent, in units of 10^6 bytes.
        megabytes_received: The arrays that it received.
    """

    accuracy_at_freeze: float | None
    final_accuracy: float | None
    best_accuracy: float | None
    best_validation: float | None
    best_round: int | None
    seconds: float
    megabytes_sent: float
    megabytes_received: float


def freeze_round_of(metrics: Sequence[RoundMetrics]) -> int | None:
    """Return T*, the round before the first of calibration; None if nothing was frozen."""
    frozen = (m.round for m in metrics if m.phase is Phase.CALIBRATION)
    first = next(frozen, None)
    return None if first is None else first - 1


def summarize(metrics: Sequence[RoundMetrics], freeze_round: int | None) -> Summary:
    """Return the summary of a run's rounds so far.

    Args:
        metrics: The rounds.
        freeze_round: T*, or that of a run to compare with; None if nothing was frozen.
    """
    at_freeze = [m for m in metrics if m.round == freeze_round]
    best = best_round(metrics)
    return Summary(
        accuracy_at_freeze=at_freeze[0].test_accuracy if at_freeze else None,
        final_accuracy=metrics[-1].test_accuracy if metrics else None,
        best_accuracy=best.test_accuracy if best else None,
        best_validation=best.validation_accuracy if best else None,
        best_round=best.round if best else None,
        seconds=sum(m.seconds for m in metrics),
        megabytes_sent=sum(m.bytes_sent for m in metrics) / 1e6,
        megabytes_received=sum(m.bytes_received for m in metrics) / 1e6,
    )


def best_round(metrics: Sequence[RoundMetrics]) -> RoundMetrics | None:
    """Return the first round with the highest validation accuracy; None without validation."""
    validated = [m for m in metrics if m.validation_accuracy is not None]
    return max(validated, key=lambda m: m.validation_accuracy or 0.0, default=None)


def best_tested_round(metrics: Sequence[RoundMetrics]) -> RoundMetrics | None:
    """Return the round of the best model of a run of an older version, which tests chose."""
    tested = [m for m in metrics if m.test_accuracy is not None]
    return max(tested, key=lambda m: m.test_accuracy or 0.0, default=None)


def round_line(metrics: RoundMetrics, settings: Settings) -> str:
    """Return a round as a line for the console, at most 80 columns wide in most runs.

    A second line has the clients' validations.
    """
    rounds = settings.num_server_rounds
    parts = [f"round {metrics.round:>{len(str(rounds))}}/{rounds}"]
    if settings.may_freeze:  # plain BN has no phases
        parts.append(f"{metrics.phase:<11}")
    parts.append(f"lr {metrics.learning_rate:<7.4g}")
    train = metrics.train_loss
    parts.append("no client  " if train is None else f"train {train:.3f}")
    score_of_task = score_name(settings)
    if metrics.test_accuracy is not None:
        score = f"{score_of_task} {metrics.test_accuracy:.1%}"
        parts.append(f"test {metrics.test_loss:.3f} {score}")
    parts.append(f"{metrics.seconds:.1f} s")
    line = " ".join(parts)
    if metrics.validation_accuracy is None:
        return line
    name = f"mean {score_of_task.removeprefix('mean ')}"
    by_client = metrics.validation_by_client
    worst = min(by_client, key=by_client.__getitem__)
    client = worst if len(worst) <= _LONGEST_NAME else f"{worst[: _LONGEST_NAME - 3]}..."
    return (
        f"{line}\n  clients: {name} {metrics.validation_accuracy:.1%}, "
        f"worst {by_client[worst]:.1%} (client {client}), "
        f"spread {100 * (metrics.validation_spread or 0.0):.1f}"
    )


def score_name(settings: Settings) -> str:
    """Return what a run's accuracy is: accuracy, or mean IoU of a segmentation."""
    from fixbn_flwr.tasks import find_task

    return "accuracy" if find_task(settings.task).masks is None else "mean IoU"


def summary_table(summaries: Mapping[str, Summary]) -> str:
    """Return a table in ASCII, at most 80 columns wide, with one row per run.

    The columns of the best model are left out if no run has one: its test accuracy, its validation
    accuracy at the clients, and its round.

    Args:
        summaries: The summaries by label.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.ASCII)
    table.add_column("run", overflow="fold")
    columns: dict[str, Callable[[Summary], str]] = {
        "at T*\n%": lambda s: _percent(s.accuracy_at_freeze),
        "final\n%": lambda s: _percent(s.final_accuracy),
    }
    if any(summary.best_round is not None for summary in summaries.values()):
        columns |= {
            "best\n%": lambda s: _percent(s.best_accuracy),
            "valid.\n%": lambda s: _percent(s.best_validation),
            "best\nround": lambda s: "-" if s.best_round is None else str(s.best_round),
        }
    columns |= {
        "rounds\ns": lambda s: f"{s.seconds:.1f}",
        "sent\nMB": lambda s: f"{s.megabytes_sent:.1f}",
        "received\nMB": lambda s: f"{s.megabytes_received:.1f}",
    }
    for heading in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    for label, summary in summaries.items():
        table.add_row(label, *(cell(summary) for cell in columns.values()))
    text = io.StringIO()
    Console(file=text, width=80, color_system=None, markup=False, emoji=False).print(table)
    return text.getvalue().rstrip("\n")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"
