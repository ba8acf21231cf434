"""Read an experiment from its TOML file in this directory, and list its runs.

A run is a run config of the app. `common.toml` has the tables that all experiments share; the file
of an experiment overrides them:

    title                   the question of the experiment
    [base]                  run config of all runs
    [methods.<name>]        run config of a method; `central = true` for centralised training
    [axes.<axis>.<value>]   run config of a value on an axis
    [grids.<name>]          methods x axes, each combination with each seed; `view` is its figure
    [scales.<scale>]        the size
        clients, seeds      the number of clients, and the seeds
        local-steps-in-all  the local steps of a client; divided by `local-steps` for the rounds
        evaluations         the approximate number of evaluations of a run
        config              run config of all runs
        axes                the values on axes; all by default
        learning-rates      the first rates of the search, each in a run of `search-share` of the
                            length; see `rate_search`. One rate is not searched
        search-axes         the axes with a search for each value; one search for all others

The key `clients-times` of an axis multiplies the number of clients. `length` of a method or axis
multiplies its number of rounds.
`peer` of a method names another method than FixBN, see `simulation.peers`. For
`[measure]` see `simulation.experiments.gradient_runs`.
"""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.errors import ConfigError
from simulation.experiments.planned_run import DEFAULTS, Run
from simulation.reporting.grid_figures import View

EXPERIMENTS = Path(__file__).resolve().parent
SEARCH_SEED = 1000  # of the searches for learning rates; results have other seeds
# The prefix of a task that is tested on held-out training images.
HELD_OUT = "simulation.experiments.held_out_task:"


class Scale(StrEnum):
    """The size of an experiment."""

    SMOKE = "smoke"  # seconds, on digits, to test that it runs
    CPU = "cpu"  # about an hour on two cores
    GPU = "gpu"  # full size, on a GPU


_SCALE_KEYS = {
    "axes", "clients", "config", "evaluations", "learning-rates", "local-steps-in-all", "measure",
    "search-axes", "search-share", "seeds",
}  # fmt: skip

Rate = Callable[[str, Mapping[str, str]], float | None]
"""Returns the learning rate of a method in a setting; None if it is not known yet."""


class Experiment:
    """One experiment at one scale.

    Args:
        name: The name of the TOML file.
        scale: The size.
        folder: The directory with the files. Default: that of this module.

    Raises:
        ConfigError: If there is no such experiment, or a scale or a run config is not valid.
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
        self.first_rates: list[float] = self._scale["learning-rates"]
        self._search_axes: list[str] = self._scale["search-axes"]
        self._check_scale()
        self.outline()  # checks all run configs

    def searched_places(self) -> list[tuple[str, dict[str, str]]]:
        """Return each method and setting that has a learning rate of its own."""
        found = [(method, self._searched(setting)) for _, method, setting in self._places()]
        return [place for k, place in enumerate(found) if place not in found[:k]]

    def search(self, method: str, setting: Mapping[str, str], rate: float) -> Run:
        """Return the run that tries a learning rate for a method in a setting."""
        share: float = self._scale["search-share"]
        return self._run("search", "", method, setting, SEARCH_SEED, rate, share)

    def results(self, rate: Rate) -> list[Run]:
        """Return the runs of the experiment whose learning rate is known.

        All methods run with one seed before the next seed starts.
        """
        return [
            self._run("result", grid, method, setting, seed, found)
            for seed in self._scale["seeds"]
            for grid, method, setting in self._places()
            if (found := rate(method, self._searched(setting))) is not None
        ]

    def outline(self) -> list[Run]:
        """Return the runs of the experiment before their learning rates are known."""
        return self.results(lambda *_: self.first_rates[0])

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
                        # The partition makes no difference to centralised training.
                        setting.pop("partition", None)
                        if (where := json.dumps([method, setting])) in central:
                            continue
                        central.add(where)
                    places.append((name, method, setting))
        return places

    def _check_scale(self) -> None:
        """Raise a ConfigError for unknown keys and values, which would have no effect."""
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
        config: dict[str, Any] = {**DEFAULTS, **content["base"], **scale.get("config", {})}
        config |= content["methods"][method]
        for axis, value in setting.items():
            config |= content["axes"][axis][value]
        clients = round(scale["clients"] * config.pop("clients-times", 1))
        central = config.pop("central", False)
        if peer := config.pop("peer", ""):
            config["task"] = f"simulation.peers:{peer}:{config['task']}"
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
    """Return the names of all experiments."""
    return sorted(path.stem for path in folder.glob("*.toml") if path.stem != "common")


def _load(path: Path) -> dict[str, Any]:
    return tomllib.loads(path.read_text(encoding="utf-8"))


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two tables recursively; the second overrides the first."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged
