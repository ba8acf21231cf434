"""What an experiment is: a TOML file beside this module, turned into the list of its runs.

A run is a run config of the app, nothing else. `common.toml` holds what all experiments
share, the files themselves what differs:

    title                   what is asked
    [base]                  run config of every run
    [methods.<name>]        what a method changes in it; `central = true` is training in one place
    [axes.<axis>.<value>]   what a place on an axis changes
    [grids.<name>]          methods x axes, every combination with every seed; its view is a figure
    [scales.<scale>]        how large all that is
        clients, seeds      how many clients, which seeds
        local-steps-in-all  of a client: by the run's `local-steps` they make its rounds
        evaluations         how often a run is tested, about
        config              run config of every run
        axes                the values to take, where they are not all
        learning-rates      to try, each in a run of `search-share` of the length, for each method
        search-axes         and again for each value of these axes; of the others at the base config

On an axis `clients-times` multiplies the number of clients. A method's `length` multiplies its
number of rounds, and `searched-as` names the method whose learning rate it takes. What is measured
beside accuracy is told by `[measure]`, see `simulation.experiments.gradient_runs`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.errors import ConfigError
from simulation.reporting.grid_figures import View

EXPERIMENTS = Path(__file__).resolve().parent
SEARCH_SEED = 1000  # of the runs that look for a learning rate: no other run has it
_DEFAULTS = Settings().as_run_config()
# With a task's name behind it: that task, tested on held-out training images.
HELD_OUT = "simulation.experiments.held_out_task:"


class Scale(StrEnum):
    """How large an experiment is."""

    SMOKE = "smoke"  # seconds, on digits: that it runs
    CPU = "cpu"  # about an hour on two cores
    PAPER = "paper"  # the paper's sizes, on a GPU


_SCALE_KEYS = {
    "axes", "clients", "config", "evaluations", "learning-rates", "local-steps-in-all", "measure",
    "search-axes", "search-share", "seeds",
}  # fmt: skip

Rate = Callable[[str, Mapping[str, str]], float]
"""Tells the learning rate of a method in a setting."""


@dataclass(frozen=True)
class Run:
    """One run of an experiment; with the fields of ``result_log.Result``."""

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

    @cached_property
    def work(self) -> int:
        """Mini-batches of all clients together: what its time is proportional to."""
        settings = Settings.from_run_config(self.run_config)
        return self.rounds * settings.local_steps * settings.clients_per_round(self.clients)


class Experiment:
    """One experiment at one scale.

    Args:
        name: of a TOML file.
        scale: how large.
        folder: with the files.

    Raises:
        ConfigError: there is no such experiment or scale, or a run config in it is wrong.
    """

    def __init__(self, name: str, scale: Scale, folder: Path = EXPERIMENTS) -> None:
        if name not in names(folder):
            raise ConfigError(f"no experiment {name!r}: choose one of {', '.join(names(folder))}.")
        content = _merge(_load(folder / "common.toml"), _load(folder / f"{name}.toml"))
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
        self._search_axes: list[str] = self._scale["search-axes"]
        self._check_scale()
        self.outline()  # every run config is read and checked

    def searches(self) -> list[Run]:
        """The runs that find each method's learning rate."""
        rates: list[float] = self._scale["learning-rates"]
        share: float = self._scale["search-share"]
        runs = [
            self._run("search", grid, method, self._searched(setting), SEARCH_SEED, rate, share)
            for grid, method, setting in self._places()
            if self._searched_as(method) == method
            for rate in rates
        ]
        return list({(run.id, run.method, *run.setting.items()): run for run in runs}.values())

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

    def outline(self) -> list[Run]:
        """The results' runs, as many and as long, before their learning rates are known."""
        first: float = self._scale["learning-rates"][0]
        return self.results(lambda *_: first)

    def chosen(self, tried: Iterable[tuple[Run, float]]) -> Rate:
        """The rates that make the best of what was tried.

        Args:
            tried: searches with what came out, the higher the better.
        """
        best: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[float, float]] = {}
        for run, score in tried:
            place = (run.method, tuple(run.setting.items()))
            found = (score, float(run.run_config["learning-rate"]))
            if place not in best or score > best[place][0]:
                best[place] = found
        return lambda method, setting: best[method, tuple(setting.items())][1]

    def _places(self) -> list[tuple[str, str, dict[str, str]]]:
        places = []
        for name, grid in self.grids.items():
            axes: list[str] = grid["axes"]
            chosen = self._scale.get("axes", {})
            values = [chosen.get(axis, list(self._content["axes"][axis])) for axis in axes]
            central: set[str] = set()
            for combination in itertools.product(*values):
                for method in grid["methods"]:
                    setting = dict(zip(axes, combination, strict=True))
                    if self._content["methods"][method].get("central", False):
                        # Where all data is in one place, how it is divided makes no difference.
                        setting.pop("partition", None)
                        if (where := json.dumps([method, setting])) in central:
                            continue
                        central.add(where)
                    places.append((name, method, setting))
        return places

    def _check_scale(self) -> None:
        """Refuse what a slip of the pen would leave without effect."""
        unknown = sorted(set(self._scale) - _SCALE_KEYS)
        known: dict[str, dict[str, Any]] = self._content["axes"]
        wrong = [
            f"{axis} {value}"
            for axis, values in self._scale.get("axes", {}).items()
            for value in values
            if value not in known.get(axis, {})
        ]
        if unknown or wrong:
            raise ConfigError(
                f"experiment {self.name}, scale {self.scale}: there is no"
                f" {', '.join([*unknown, *wrong])}; keys are {', '.join(sorted(_SCALE_KEYS))}, axes"
                f" {', '.join(known)}."
            )

    def _searched_as(self, method: str) -> str:
        name: str = self._content["methods"][method].get("searched-as", method)
        return name

    def _searched(self, setting: Mapping[str, str]) -> dict[str, str]:
        return {axis: value for axis, value in setting.items() if axis in self._search_axes}

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


def _load(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The tables of both, nested ones too; where they differ, the second counts."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
