"""The recorded results of experiments, as JSON lines.

`results/<experiment>/<scale>.jsonl` has a line for each completed run, in order of completion, with
all that is needed to repeat it. Lines are appended and never change.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fixbn_flwr.app.runs.reader import without_nan
from fixbn_flwr.app.runs.summary import RoundMetrics
from fixbn_flwr.errors import ConfigError

RESULTS = Path(__file__).resolve().parents[1] / "results"
LAST = 0.8  # the last rounds start at this share of the run


@dataclass(frozen=True)
class Result:
    """The result of a run, federated or centralised.

    Attributes:
        id: The id of the run config; equal runs in different experiments have the same id.
        kind: "result", or "search" for a run of the search for a learning rate, which has its own
            seed and is tested on held-out training images.
        grid: The grid of the experiment.
        method: The method's name in the experiment, such as "FixBN".
        setting: The value on each axis of the grid, such as {"partition": "two classes"}.
        seed: The seed.
        clients: The number of clients.
        learning_rate: The learning rate in round 1.
        accuracy: The mean test accuracy of the last rounds (for segmentation, mean intersection
            over union), in [0, 1]; see `mean_of_last_rounds`. None if the run ended before them.
        accuracies: The test accuracy by round, for rounds with an evaluation.
        losses: The test loss by round; not finite if the run diverged.
        failure: The reason why the run failed, or why its last round had no update; None if it
            completed.
        dropped: The number of dropped replies in all rounds.
        seconds: The duration.
        bytes_sent: The mean size of the arrays sent to a client in a round.
        bytes_received: The mean size of the arrays received from a client in a round.
        client_state_bytes: The mean size of a client's state between rounds, over the clients that
            have one.
        run_config: The whole run config, without paths.
        started: The date and time of the start.
        hardware: The hardware; see `fixbn_flwr.app.runs.environment`.
        versions: The versions of packages.
        command: The command that started the run.
        extra: Further measurements of an experiment, by name.
        freeze_round: T*, the number of rounds if nothing was frozen; None in older results.
        freeze_reason: Why, if the run decided it; else empty.
        own_accuracy: For a method with a model per client, the mean accuracy of the last rounds on
            the clients' own classes, see `simulation.peers.personal`; else None.
        retries: How often the guard went back to T*, with a smaller learning rate each time.
    """

    id: str
    kind: Literal["result", "search"]
    grid: str
    method: str
    setting: Mapping[str, str]
    seed: int
    clients: int
    learning_rate: float
    accuracy: float | None
    accuracies: Mapping[int, float]
    losses: Mapping[int, float]
    failure: str | None
    dropped: int
    seconds: float
    bytes_sent: float
    bytes_received: float
    client_state_bytes: float
    run_config: Mapping[str, Any]
    started: str
    hardware: Mapping[str, Any]
    versions: Mapping[str, str]
    command: str
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    freeze_round: int | None = None
    freeze_reason: str = ""
    own_accuracy: float | None = None
    retries: int = 0

    @property
    def diverged(self) -> bool:
        """Whether the run failed, or ended with a loss that is not finite."""
        losses = list(self.losses.values())
        return self.failure is not None or (bool(losses) and not math.isfinite(losses[-1]))


def mean_of_last_rounds(rounds: Iterable[RoundMetrics], num_rounds: int) -> float | None:
    """Return the mean test accuracy from 80 % of the rounds on; None without an evaluation.

    If the run has frozen its statistics, only rounds after T* are included.
    """
    tested = [m for m in rounds if m.test_accuracy is not None]
    phase = tested[-1].phase if tested else None
    last = [
        m.test_accuracy
        for m in tested
        if m.test_accuracy is not None and m.phase is phase and m.round >= LAST * num_rounds
    ]
    return sum(last) / len(last) if last else None


def results_file(experiment: str, scale: str, folder: Path = RESULTS) -> Path:
    """Return the file with the results of an experiment."""
    return folder / experiment / f"{scale}.jsonl"


def append(path: Path, result: Result) -> None:
    """Append a result to a file, which is created if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(without_nan(dataclasses.asdict(result)), allow_nan=False) + "\n"
    with path.open("ab") as file:
        whole = path.read_bytes().rfind(b"\n") + 1
        file.truncate(whole)  # removes an incomplete line
        file.write(line.encode())


def read(path: Path) -> list[Result]:
    """Return the results in a file; empty if there is no such file.

    Raises:
        ConfigError: If a line is damaged.
    """
    if not path.exists():
        return []
    results = []
    text = path.read_text(encoding="utf-8")
    # A line without an end is incomplete, because its process was killed. The run is repeated.
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            fields = json.loads(line)
            for by_round in ("accuracies", "losses"):
                fields[by_round] = {int(r): float(v) for r, v in fields[by_round].items()}
            results.append(Result(**fields))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{path}, line {number}: not a result ({error}); delete the line, and the run is"
                " repeated"
            ) from error
    return results
