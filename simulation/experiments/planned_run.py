"""One run of an experiment, before it starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from fixbn_flwr.app.config.settings import Settings

DEFAULTS = Settings().as_run_config()


@dataclass(frozen=True)
class Run:
    """A run of an experiment; the fields are those of ``result_log.Result``."""

    kind: Literal["result", "search"]
    grid: str
    method: str
    setting: Mapping[str, str]
    seed: int
    clients: int
    central: bool
    run_config: Mapping[str, Any]

    @cached_property
    def id(self) -> str:
        """The id: the same for equal runs in all experiments, and different for others."""
        # Without defaults, so that a new key of the app does not change ids.
        changed = {key: v for key, v in self.run_config.items() if v != DEFAULTS[key]}
        content = [changed, self.clients, self.central]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """A short description for the console."""
        searched = f"learning rate {self.run_config['learning-rate']:g}"
        where = [f"{axis} {value}" for axis, value in self.setting.items()]
        what = searched if self.kind == "search" else f"seed {self.seed}"
        return ", ".join([self.method, *where, what])

    @property
    def rounds(self) -> int:
        """The number of rounds."""
        return int(self.run_config["num-server-rounds"])

    @cached_property
    def work(self) -> int:
        """The number of mini-batches of all clients; the run's time is proportional to it."""
        settings = Settings.from_run_config(self.run_config)
        return self.rounds * settings.local_steps * settings.clients_per_round(self.clients)
