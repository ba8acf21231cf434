"""Resume a stopped run: find it, check its config, and load its newest checkpoint.

A resumed run has the config that it began with, except for keys that do not affect its results.
`may-change` names other keys that may differ. T* stays the round that it was when the run began,
even if the number of rounds changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flwr.app import ArrayRecord

from fixbn_flwr.app.config.rules import Value, list_of_keys, problem, unknown_key
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.lock import locked
from fixbn_flwr.app.runs.reader import CHECKPOINTS, is_finished, read_config
from fixbn_flwr.app.runs.reopening import reopen_run_folder
from fixbn_flwr.app.runs.writer import RunFolder
from fixbn_flwr.array_records import arrays_of
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.averaging import Arrays
from fixbn_flwr.method.schedule import AUTO
from fixbn_flwr.persistence.checkpoints import Checkpoints
from fixbn_flwr.persistence.safetensors_tree import Tree

FREE = (
    "resume", "may-change", "output-dir", "run-name", "checkpoint-every", "keep-checkpoints",
    "round-timeout", "track",
)  # fmt: skip
"""Keys that do not affect a run's results."""

CLIENTS = "clients"
"""Also allowed in `may-change`: the number of clients, which is not a key of the run config."""

FIXED = "validation-share"
"""Never allowed in `may-change`: clients would validate on images that they have trained on."""


@dataclass(frozen=True)
class ResumedRun:
    """A stopped run to resume.

    Attributes:
        path: The run folder, absolute.
        server_round: The last round of its newest checkpoint.
        checkpoint: The content of the checkpoint.
        settings: The run config as given, with the T* that the run began with.
        clients: The number of its clients; None if it may change.
    """

    path: Path
    server_round: int
    checkpoint: Tree
    settings: Settings
    clients: int | None
    _own_data: bool | None  # None in runs of older versions
    _given: Settings
    _lock: ExitStack

    @classmethod
    def find(cls, settings: Settings) -> ResumedRun:
        """Find the run that `resume` names, lock its folder, and check that it can resume.

        Raises:
            ConfigError: If there is no such run, its config differs, or it has no rounds left.
            CheckpointError: If it has no intact checkpoint, or another process is running it.
        """
        path = Path(settings.resume).expanduser().absolute()
        lock = ExitStack()
        try:
            read_config(path)
            lock.enter_context(locked(path))  # nobody else changes it from here on
            config = read_config(path)
        except ConfigError as error:
            raise ConfigError(problem("resume", settings.resume, str(error))) from error
        changeable = _may_change(settings)
        _check_same_config(config["run_config"], settings, changeable)
        fixed = settings
        is_share = isinstance(settings.freeze_after, float) and settings.freeze_after < 1.0
        if is_share and "freeze-after" not in changeable:
            fixed = replace(settings, freeze_after=config["freeze_round"])
        server_round, checkpoint = Checkpoints(path / CHECKPOINTS).newest()
        _check_rounds_left(path, server_round, checkpoint["phase"], fixed, config["run_config"])
        clients = None if CLIENTS in changeable else config["clients"]
        own_data = config.get("own_data")
        return cls(path, server_round, checkpoint, fixed, clients, own_data, settings, lock)

    @property
    def arrays(self) -> ArrayRecord:
        """The whole model after that round."""
        model: ArrayRecord = self.checkpoint["model"]
        return model

    @property
    def best(self) -> Arrays | None:
        """The best model until that round, by name; None if no round was validated."""
        lines = map(json.loads, self.checkpoint["metrics"])
        if all(line.get("validation_accuracy") is None for line in lines):
            return None  # older versions chose one by its tests
        best: Arrays | Literal[True] | None = self.checkpoint["best"]
        return arrays_of(self.arrays) if best is True else best

    def close(self) -> None:
        """Unlock the folder."""
        self._lock.close()

    def check_clients(self, clients: int) -> None:
        """Check the number of clients that share the data.

        Raises:
            ConfigError: If it differs, so that each client would have other images.
        """
        if self.clients is not None and clients != self.clients:
            raise ConfigError(
                f"resume: {self.path} had {self.clients} clients, and {clients} are connected: "
                "each client would have other images. Start as many as before, or write "
                f"may-change={json.dumps(CLIENTS)}"
            )

    def open(self, clients: int, *, own_data: bool) -> RunFolder:
        """Reopen the run's folder, rolled back to the checkpoint.

        Args:
            clients: The number of clients now.
            own_data: Whether they train on their own data. Their number may then differ.

        Raises:
            ConfigError: If the clients would have other images than before.
            CheckpointError: If the folder cannot be written.
        """
        if self._own_data not in (None, own_data):
            before = "their own data" if self._own_data else "parts of the task's data"
            now = "their own data" if own_data else "parts of the task's data"
            raise ConfigError(
                f"resume: the clients of {self.path} trained on {before}, and these would train on "
                f"{now}: start the clients as before, or a new run"
            )
        if not own_data:
            self.check_clients(clients)
        return reopen_run_folder(
            self.path,
            self.settings,
            given=self._given,
            clients=clients,
            server_round=self.server_round,
            lines=self.checkpoint["metrics"],
            best=self.best,
            lock=self._lock,
        )


def _may_change(settings: Settings) -> frozenset[str]:
    keys = [*settings.as_run_config(), CLIENTS]
    named = [word.strip() for word in settings.may_change.split(",") if word.strip()]
    for word in named:
        if word not in keys:
            text = f"{json.dumps(word)} is not a key; {unknown_key(word, keys)}"
            line = problem("may-change", settings.may_change, text)
            raise ConfigError(f"{line}\n  {list_of_keys(keys)}")
    if FIXED in named:
        text = (
            f"{FIXED} cannot change: clients would validate the model on images that it was "
            "trained on; use the previous value, or start a new run"
        )
        raise ConfigError(problem("may-change", settings.may_change, text))
    return frozenset(named)


def _check_rounds_left(
    path: Path, done: int, phase: str, settings: Settings, before: Mapping[str, Value]
) -> None:
    rounds = settings.num_server_rounds
    if done > rounds:
        text = f"{done} rounds are already done; use more, or start a new run"
        raise ConfigError(problem("num-server-rounds", rounds, text))
    if done == rounds and is_finished(path):
        raise ConfigError(
            f"resume: all {done} rounds of {path} are done; to add rounds, write "
            'may-change="num-server-rounds" and a larger num-server-rounds'
        )
    ended_early = is_finished(path) and done < int(before["num-server-rounds"])
    if ended_early and before.get("patience") == settings.patience:
        raise ConfigError(
            f"resume: {path} ended after round {done} because of patience="
            f'{settings.patience}; to continue, write may-change="patience" and a larger patience'
        )
    moved = settings.freeze_after != AUTO and settings.freeze_round >= done
    if phase == "calibration" and moved:
        text = (
            f"the statistics were frozen before round {done}, and T* cannot move to a later round; "
            "use the previous value, or start a new run"
        )
        raise ConfigError(problem("freeze-after", settings.freeze_after, text))


def _check_same_config(
    before: Mapping[str, Value], settings: Settings, changeable: frozenset[str]
) -> None:
    now = settings.as_run_config()
    # A key that was added after the run began had the effect of its default.
    was = {**Settings().as_run_config(), **before}
    was["model"] = was["model"] or now["model"]
    differing = [k for k in now if was[k] != now[k] and k not in FREE and k not in changeable]
    if differing:
        lines = [f"{k} was {json.dumps(was[k])} and is {json.dumps(now[k])}" for k in differing]
        change = f", or name the keys that may change: may-change={json.dumps(','.join(differing))}"
        as_it_was = " ".join(f"{k}={json.dumps(was[k])}" for k in differing)
        raise ConfigError(
            "\n  ".join(
                [
                    f"resume: {settings.resume} was started with another config:",
                    *lines,
                    f"use the previous config, with --run-config '{as_it_was} ...' (`fixbn run` "
                    f"does so automatically){'' if FIXED in differing else change}",
                ]
            )
        )
