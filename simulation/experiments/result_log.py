"""What the experiments leave behind: JSON lines, one a run, committed beside the README's figures.

A file `results/<experiment>/<scale>.jsonl` holds a line for every run that has ended, in the order
in which they ended, with all that it takes to run it again. Lines are appended, never changed.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fixbn_flwr.app.runs.summary import RoundMetrics
from fixbn_flwr.errors import ConfigError

RESULTS = Path(__file__).resolve().parents[1] / "results"
LAST = 0.8  # the last rounds are those from this share of the run on


@dataclass(frozen=True)
class Result:
    """One run of an experiment, federated or central.

    Attributes:
        id: of the run's config; the same run in two experiments has the same.
        kind: "result", or "search" for a run that only looks for a learning rate: with a seed of
            its own, and tested on training images that were held out from it.
        grid: which of the experiment's grids it belongs to.
        method: the method's name in the experiment, such as "FixBN".
        setting: the place in the grid, axis by axis, such as {"partition": "two classes"}.
        seed: of the run.
        clients: the number of all clients.
        learning_rate: in round 1.
        accuracy: the mean test accuracy of the last rounds (mean intersection over union for
            segmentation), a share in [0, 1], see `mean_of_last_rounds`; None when the run ended
            before them.
        accuracies: the test accuracy after each round that was evaluated.
        losses: the test loss likewise; not finite when the run diverged.
        failure: what ended the run early, or that it trained nothing in the end; None when it
            went to its end.
        dropped: replies that were not averaged, of all rounds.
        seconds: how long it took.
        bytes_sent: from the server to one client in a round, arrays only, the mean.
        bytes_received: from one client to the server likewise.
        client_state_bytes: what a client keeps between rounds, the mean over the clients that
            keep anything.
        run_config: the whole run config, without paths.
        started: date and time.
        hardware: of the machine, see `fixbn_flwr.app.runs.environment`.
        versions: of the packages likewise.
        command: what was typed.
        extra: what an experiment measures beside all this, by name.
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

    @property
    def diverged(self) -> bool:
        """Whether it ended early, or with a loss that is not a number."""
        losses = list(self.losses.values())
        return self.failure is not None or (bool(losses) and not math.isfinite(losses[-1]))


def mean_of_last_rounds(rounds: Iterable[RoundMetrics], num_rounds: int) -> float | None:
    """The mean test accuracy over the evaluated rounds in the last fifth; None without one.

    Of a run that has frozen its statistics only rounds after that count.
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
    """Where the lines of an experiment are."""
    return folder / experiment / f"{scale}.jsonl"


def append(path: Path, result: Result) -> None:
    """Add a line to a file, which is made with its folders if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(_plain(dataclasses.asdict(result)), allow_nan=False) + "\n"
    with path.open("ab") as file:
        whole = path.read_bytes().rfind(b"\n") + 1
        file.truncate(whole)  # what a kill has left of a line
        file.write(line.encode())


def read(path: Path) -> list[Result]:
    """The results in a file, none when there is no such file.

    Raises:
        ConfigError: a line is damaged.
    """
    if not path.exists():
        return []
    results = []
    text = path.read_text(encoding="utf-8")
    # A line without an end is what a kill has left of one: that run is made again.
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            fields = json.loads(line)
            for by_round in ("accuracies", "losses"):
                fields[by_round] = {int(r): float(v) for r, v in fields[by_round].items()}
            results.append(Result(**fields))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ConfigError(
                f"{path}, line {number}: not a result ({error}); delete the line, and the run is"
                " made again"
            ) from error
    return results


def _plain(value: Any) -> Any:
    # JSON has no NaN: text, which float() takes back.
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
