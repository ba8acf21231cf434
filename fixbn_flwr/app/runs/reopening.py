"""Reopen the folder of a stopped run: update its config, and roll its files back to a round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.environment import hardware, versions
from fixbn_flwr.app.runs.reader import (
    CONFIG,
    METRICS,
    SUMMARY,
    from_line,
    is_finished,
    read_config,
    read_metrics,
)
from fixbn_flwr.app.runs.summary import best_round, best_tested_round
from fixbn_flwr.app.runs.writer import RunFolder, json_bytes, writing
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.log import logger
from fixbn_flwr.method.averaging import Arrays
from fixbn_flwr.method.schedule import AUTO
from fixbn_flwr.persistence.atomic_files import remove_partial_files, write_atomically

_FINAL, _BEST = "final.safetensors", "best.safetensors"


def reopen_run_folder(
    path: Path,
    settings: Settings,
    *,
    given: Settings,
    clients: int,
    server_round: int,
    lines: Sequence[str],
    best: Arrays | None,
    lock: ExitStack,
) -> RunFolder:
    """Take a run's folder again, rolled back to the end of a round.

    Args:
        path: The folder, absolute.
        settings: The run config, with the T* that the run began with.
        given: The run config as the user wrote it.
        clients: The number of clients from now on.
        server_round: The last round that counts.
        lines: The lines of metrics.jsonl until that round.
        best: The best model until that round; None if no round was validated.
        lock: Holds the folder's lock.

    Raises:
        CheckpointError: If the folder cannot be written.
    """
    before = read_config(path)
    _warn_of_other_versions(path, before["versions"])
    config = _resumed_config(before, settings, given, clients, server_round)
    with writing(path):
        _roll_back(path, lines, server_round)
        write_atomically(path / CONFIG, json_bytes(config))
    folder = RunFolder(
        path,
        settings,
        method=config["method"],
        clients=clients,
        run=config["run"],
        lock=lock,
        metrics=read_metrics(path),
    )
    if best is not None:
        folder.save_model("best", best)
    return folder


def _resumed_config(
    before: Mapping[str, Any], settings: Settings, given: Settings, clients: int, server_round: int
) -> dict[str, Any]:
    """Return config.json with the new run config, and an entry about this resumption."""
    run_config = given.as_run_config()
    resumption = {
        "after_round": server_round,
        "when": datetime.now().astimezone().isoformat(timespec="seconds"),
        "changed": {
            key: value
            for key, value in run_config.items()
            if value != before["run_config"].get(key)
        },
        "versions": versions(),
        "hardware": hardware(),
    }
    return {
        **{key: value for key, value in before.items() if key != "failure"},
        "run_config": run_config,
        "freeze_round": before["freeze_round"]
        if settings.freeze_after == AUTO
        else settings.freeze_round,
        "clients": clients,
        "resumed": [*before.get("resumed", []), resumption],
    }


def _roll_back(path: Path, lines: Sequence[str], server_round: int) -> None:
    """Remove what was written after a round; keep the last model of a finished run.

    Also keep the best model of an older version, which its tests chose.
    """
    remove_partial_files(path)
    try:
        before = read_metrics(path)
    except ConfigError:  # cut by a power failure, or lost
        before = [from_line(line) for line in lines]
    tested = best_tested_round(before)
    final, best = path / _FINAL, path / _BEST
    if is_finished(path) and final.exists():  # a kill may have come after the renaming
        last = max((line.round for line in before), default=server_round)
        final.rename(path / f"final-round-{last}.safetensors")
    if best.exists() and tested and not best_round(before):
        best.rename(path / f"best-by-tests-round-{tested.round}.safetensors")
    for later in (SUMMARY, _FINAL, _BEST, "curves.png"):
        (path / later).unlink(missing_ok=True)
    write_atomically(path / METRICS, "".join(lines).encode())


def _warn_of_other_versions(path: Path, before: Mapping[str, str]) -> None:
    if other := [name for name, now in versions().items() if before.get(name, now) != now]:
        logger.warning(
            "%s was started with other versions of %s: the last digits may differ from those of "
            "an uninterrupted run. config.json lists both versions.",
            path, ", ".join(other),
        )  # fmt: skip
