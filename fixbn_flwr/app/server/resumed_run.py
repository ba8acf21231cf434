"""Going on with a run that was stopped: what it was, what may differ, and where it goes on.

A resumed run is the run that it was: the same config, but for what only says where it writes and
how long it waits. Whoever wants to change more names it in `may-change`. T* is settled when a run
begins: with more rounds, a share of them would be another round.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flwr.app import ArrayRecord

from fixbn_flwr.app.config.rules import Value, did_you_mean, problem
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.runs.reader import CHECKPOINTS, is_finished, read_config
from fixbn_flwr.app.runs.writer import RunFolder, locked
from fixbn_flwr.array_records import arrays_of
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.averaging import Arrays
from fixbn_flwr.persistence.checkpoints import Checkpoints
from fixbn_flwr.persistence.safetensors_tree import Tree

FREE = (
    "resume", "may-change", "output-dir", "run-name", "checkpoint-every", "keep-checkpoints",
    "round-timeout",
)  # fmt: skip
"""Keys that change nothing in what a run computes."""

CLIENTS = "clients"
"""May stand in `may-change` as well: the number of clients, which is no key of the run config."""


@dataclass(frozen=True)
class Earlier:
    """A run to go on with.

    Attributes:
        path: its folder, absolute.
        server_round: the last round that its checkpoint has done.
        checkpoint: what the checkpoint holds.
        settings: as given, with the T* that the run began with.
        clients: how many it had; None: as many as there may be.
    """

    path: Path
    server_round: int
    checkpoint: Tree
    settings: Settings
    clients: int | None
    _given: Settings
    _lock: ExitStack

    @classmethod
    def find(cls, settings: Settings) -> Earlier:
        """Find the run that `resume` names, keep others from it, and check that it can go on.

        Raises:
            ConfigError: there is no such run, it was another one, or nothing of it is left to do.
            CheckpointError: it has no checkpoint that is whole, or another process runs it.
        """
        path = Path(settings.resume).expanduser().absolute()
        lock = ExitStack()
        try:
            read_config(path)
            lock.enter_context(locked(path))  # from here on nobody else changes it
            config = read_config(path)
        except ConfigError as error:
            raise ConfigError(problem("resume", settings.resume, str(error))) from error
        changeable = _may_change(settings)
        _check_same(config["run_config"], settings, changeable)
        settled = settings
        is_share = isinstance(settings.freeze_after, float) and settings.freeze_after < 1.0
        if is_share and "freeze-after" not in changeable:
            settled = replace(settings, freeze_after=config["freeze_round"])
        server_round, checkpoint = Checkpoints(path / CHECKPOINTS).newest()
        _check_something_is_left(path, server_round, checkpoint["phase"], settled)
        clients = None if CLIENTS in changeable else config["clients"]
        return cls(path, server_round, checkpoint, settled, clients, settings, lock)

    @property
    def arrays(self) -> ArrayRecord:
        """The whole model after that round."""
        model: ArrayRecord = self.checkpoint["model"]
        return model

    @property
    def best(self) -> Arrays | None:
        """The best model until then, by name; None: none was tested."""
        best: Arrays | Literal[True] | None = self.checkpoint["best"]
        return arrays_of(self.arrays) if best is True else best

    def open(self, clients: int, *, own_data: bool) -> RunFolder:
        """Take the run's folder, put back to where the checkpoint was.

        Args:
            clients: how many there are now.
            own_data: whether they train on data of their own, which another number leaves as it is.

        Raises:
            ConfigError: there are more or fewer than there were, and each would have other images.
            CheckpointError: the folder cannot be written.
        """
        if self.clients is not None and clients != self.clients and not own_data:
            raise ConfigError(
                f"resume: {self.path} had {self.clients} clients and here are {clients}: "
                "each would have other images. Start as many, or write may-change="
                f"{json.dumps(CLIENTS)}"
            )
        return RunFolder.reopen(
            self.path,
            self.settings,
            clients,
            self.server_round,
            given=self._given,
            metrics=self.checkpoint["metrics"],
            best=self.best,
            lock=self._lock,
        )


def _may_change(settings: Settings) -> frozenset[str]:
    keys = [*settings.as_run_config(), CLIENTS]
    named = [word.strip() for word in settings.may_change.split(",") if word.strip()]
    for word in named:
        if word not in keys:
            text = f"{json.dumps(word)} is no key; {did_you_mean(word, keys, 'see the README')}"
            raise ConfigError(problem("may-change", settings.may_change, text))
    return frozenset(named)


def _check_something_is_left(path: Path, done: int, phase: str, settings: Settings) -> None:
    rounds = settings.num_server_rounds
    if done > rounds:
        text = f"{done} rounds are done already; use more, or start a new run"
        raise ConfigError(problem("num-server-rounds", rounds, text))
    if done == rounds and is_finished(path):
        raise ConfigError(
            f"resume: all {done} rounds of {path} are done; for more, write "
            'may-change="num-server-rounds" and more num-server-rounds'
        )
    if phase == "calibration" and settings.freeze_round >= done:
        text = (
            f"the statistics have been frozen before round {done}, and T* cannot be later than "
            "they were; use what it was, or start a new run"
        )
        raise ConfigError(problem("freeze-after", settings.freeze_after, text))


def _check_same(
    before: Mapping[str, Value], settings: Settings, changeable: frozenset[str]
) -> None:
    now = settings.as_run_config()
    # A key that is newer than the run had its default's effect then.
    was = {**Settings().as_run_config(), **before}
    was["model"] = was["model"] or now["model"]
    differing = [k for k in now if was[k] != now[k] and k not in FREE and k not in changeable]
    if differing:
        lines = [f"{k} was {json.dumps(was[k])} and is {json.dumps(now[k])}" for k in differing]
        as_it_was = " ".join(f"{k}={json.dumps(was[k])}" for k in differing)
        raise ConfigError(
            "\n  ".join(
                [
                    f"resume: {settings.resume} was a run with another config:",
                    *lines,
                    f"give the config that it had, by --run-config '{as_it_was} ...' (`fixbn run` "
                    "does so by itself), or name what may change: "
                    f"may-change={json.dumps(','.join(differing))}",
                ]
            )
        )
