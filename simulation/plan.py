"""What an experiment is: a TOML file in `experiments/`, turned into the list of its runs.

A run is a run config of the app, nothing else. `experiments/common.toml` holds what all experiments
share, the files themselves what differs:

    title                   what is asked
    [base]                  run config of every run
    [methods.<name>]        what a method changes in it; `central = true` is training in one place
    [axes.<axis>.<value>]   what a place on an axis changes
    [grids.<name>]          methods x axes, every combination with every seed; its view is a figure
    [scales.<scale>]        how large all that is; for each value of its `search-axes` each method
                            has a learning rate of its own

A run's number of rounds is the scale's `local-steps-in-all` by its `local-steps`. On an axis
`clients-times` multiplies the scale's number of clients. A method's `length` multiplies its number
of rounds; `searched-as` names the method whose learning rate it takes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fixbn_flwr.app.config import Settings
from fixbn_flwr.errors import ConfigError
from simulation.figures import View

EXPERIMENTS = Path(__file__).resolve().parent / "experiments"
SCALES = ("smoke", "cpu", "paper")
SEARCH_SEED = 1000  # of the runs that look for a learning rate: no other run has it
_DEFAULTS = Settings().as_run_config()
HELD_OUT = "simulation.held_out:"  # a task's name behind it: tested on training images

Rate = Callable[[str, Mapping[str, str]], float]
"""Tells the learning rate of a method in a setting."""


@dataclass(frozen=True)
class Run:
    """One run of an experiment; see :class:`simulation.records.Result` for the fields."""

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
        """The same for the same run, in whatever experiment; another for every other."""
        # Defaults are left out, so that a key that the app gets later changes no id.
        told = {key: v for key, v in self.run_config.items() if v != _DEFAULTS[key]}
        content = [told, self.clients, self.central]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def label(self) -> str:
        """The run in a few words, for the console."""
        searched = f"learning rate {self.run_config['learning-rate']:g}"
        where = [f"{axis} {value}" for axis, value in self.setting.items()]
        what = searched if self.kind == "search" else f"seed {self.seed}"
        return ", ".join([self.method, *where, what])

    @property
    def rounds(self) -> int:
        """The number of rounds."""
        return int(self.run_config["num-server-rounds"])

    @property
    def work(self) -> int:
        """Mini-batches of all clients together: what its time is proportional to."""
        settings = Settings.from_run_config(self.run_config)
        return self.rounds * settings.local_steps * settings.clients_per_round(self.clients)


class Experiment:
    """One experiment at one scale.

    Args:
        name: of a file in `experiments/`.
        scale: one of `SCALES`.
        folder: with the files.

    Raises:
        ConfigError: there is no such experiment or scale, or a run config in it is wrong.
    """

    def __init__(self, name: str, scale: str, folder: Path = EXPERIMENTS) -> None:
        if name not in names(folder):
            raise ConfigError(f"no experiment {name!r}: choose one of {', '.join(names(folder))}.")
        content = _merge(_load(folder / "common.toml"), _load(folder / f"{name}.toml"))
        if scale not in content["scales"]:
            raise ConfigError(f"no scale {scale!r}: choose one of {', '.join(SCALES)}.")
        self.name = name
        self.scale = scale
        self.title: str = content["title"]
        self.grids: dict[str, dict[str, Any]] = content["grids"]
        self.views = {name: View(**grid["view"]) for name, grid in self.grids.items()}
        self._content = content
        self._scale: dict[str, Any] = content["scales"][scale]
        self.measure: Mapping[str, Any] | None = None
        if "measure" in content:
            self.measure = _merge(content["measure"], self._scale.get("measure", {}))
        self.search_axes: list[str] = self._scale["search-axes"]
        self.results(lambda *_: 0.1)  # every run config is read and checked

    def searches(self) -> list[Run]:
        """The runs that find each method's learning rate; none where there is one rate to try."""
        rates: list[float] = self._scale["learning-rates"]
        if len(rates) == 1:
            return []
        share: float = self._scale["search-share"]
        runs = [
            self._run("search", grid, method, self._searched(setting), SEARCH_SEED, rate, share)
            for grid, method, setting in self._places()
            if self._searched_as(method) == method
            for rate in rates
        ]
        return _distinct(runs)

    def results(self, rate: Rate) -> list[Run]:
        """The runs that are the experiment's result, with the rates that the search found.

        Seeds come last, so that whoever stops early has few seeds rather than few methods.
        """
        return [
            self._run(
                "result", grid, method, setting, seed,
                rate(self._searched_as(method), self._searched(setting)),
            )
            for seed in self._scale["seeds"]
            for grid, method, setting in self._places()
        ]  # fmt: skip

    def only_rate(self) -> float | None:
        """The learning rate where there is nothing to search."""
        rates: list[float] = self._scale["learning-rates"]
        return rates[0] if len(rates) == 1 else None

    def _places(self) -> list[tuple[str, str, dict[str, str]]]:
        places = []
        for name, grid in self.grids.items():
            axes: list[str] = grid["axes"]
            chosen = self._scale.get("axes", {})
            values = [chosen.get(axis, list(self._content["axes"][axis])) for axis in axes]
            for combination in itertools.product(*values):
                setting = dict(zip(axes, combination, strict=True))
                places += [(name, method, setting) for method in self._methods(grid)]
        return places

    def _methods(self, grid: Mapping[str, Any]) -> list[str]:
        chosen: list[str] = self._scale.get("methods", grid["methods"])
        return [method for method in grid["methods"] if method in chosen]

    def _searched_as(self, method: str) -> str:
        name: str = self._content["methods"][method].get("searched-as", method)
        return name

    def _searched(self, setting: Mapping[str, str]) -> dict[str, str]:
        return {axis: value for axis, value in setting.items() if axis in self.search_axes}

    def _run(
        self,
        kind: Literal["result", "search"],
        grid: str,
        method: str,
        setting: Mapping[str, str],
        seed: int,
        rate: float,
        share: float = 1.0,
    ) -> Run:
        content, scale = self._content, self._scale
        config: dict[str, Any] = {**_DEFAULTS, **content["base"], **scale.get("config", {})}
        config |= content["methods"][method]
        for axis, value in setting.items():
            config |= content["axes"][axis][value]
        clients = scale["clients"] * config.pop("clients-times", 1)
        central = config.pop("central", False)
        config.pop("searched-as", None)
        steps = scale["local-steps-in-all"] * share * config.pop("length", 1.0)
        rounds = max(1, round(steps / config["local-steps"]))
        config["num-server-rounds"] = rounds
        config["evaluate-every"] = max(1, rounds // scale["evaluations"])
        config["learning-rate"] = rate
        if kind == "search":
            config["task"] = HELD_OUT + config["task"]
        config["seed"] = seed
        full = Settings.from_run_config(config).as_run_config()
        return Run(kind, grid, method, dict(setting), seed, clients, central, full)


def names(folder: Path = EXPERIMENTS) -> list[str]:
    """The names of all experiments."""
    return sorted(path.stem for path in folder.glob("*.toml") if path.stem != "common")


def _distinct(runs: Sequence[Run]) -> list[Run]:
    return list({run.id: run for run in reversed(runs)}.values())[::-1]


def _load(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of both, nested ones too; where they differ, the second counts."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
