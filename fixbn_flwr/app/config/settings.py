"""The run config: every key of the app, its default, its unit and its meaning, in one place.

A key of `flwr run --run-config` is a field of `Settings` with `-` for `_`. The table of the README
is printed from here: `python -c "from fixbn_flwr.app.config.settings import table; print(table())"`.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fixbn_flwr.app.config import rules
from fixbn_flwr.app.config.rules import Value, key_of, setting
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method import schedule
from fixbn_flwr.method.schedule import Phase
from fixbn_flwr.models.norm import NORMS
from fixbn_flwr.tasks import TASKS, get_task
from fixbn_flwr.tasks.partition import Scheme


@dataclass(frozen=True)
class Settings:
    """A run's validated config. Make it with `from_run_config`: the constructor checks nothing."""

    task: str = setting("digits", "data set, model and loss", choices=TASKS, beside=rules.OWN_TASK)
    data_dir: str = setting("", "where the task's files are; empty: the task's own place", "path")
    model: str = setting("", "network; empty: the task's own default")
    norm: str = setting(
        "bn", "normalisation layers of the network", choices=NORMS, beside=rules.GROUPS
    )
    partition: Scheme = setting("classes", "how the images are spread over the clients")  # noqa: RUF009
    partition_alpha: float = setting(
        0.3, "concentration of `dirichlet`: the smaller, the less alike the clients", above=0
    )
    partition_classes: int = setting(
        2, "classes a client holds in `classes`", "classes", at_least=1
    )
    num_server_rounds: int = setting(40, "length of the run", "rounds", at_least=1)
    freeze_after: int | float = setting(
        0.5,
        "T*, the last round before the statistics freeze; a whole number counts rounds, a "
        "fraction is a share of them, 1.0 never freezes (plain BN)",
        "rounds or share",
        at_least=0,
    )
    momentum: Literal["reset", "local", "global"] = setting(
        "local",
        "where SGD's momentum buffers live between rounds: nowhere, at the client, at the server",
    )
    momentum_coefficient: float = setting(0.9, "SGD's momentum", at_least=0, below=1)
    statistics: Literal["mean", "pooled"] = setting(
        "mean", "how the clients' variances are averaged"
    )
    learning_rate_factor: float = setting(
        0.1, "multiplies the learning rate in calibration", "factor", above=0
    )
    fraction_train: float = setting(
        1.0, "share of the clients that train in a round", "share", above=0, at_most=1
    )
    min_clients: int = setting(
        2, "clients with data of their own (`data-dir` in their node config) that a run, and each "
        "of its rounds, waits for", "clients", at_least=1,
    )  # fmt: skip
    round_timeout: float = setting(
        3600.0, "a round ends after it without the clients that have not answered", "s", above=0
    )
    local_steps: int = setting(
        5, "mini-batches a client trains on in a round; 0: count epochs", "steps", at_least=0
    )
    local_epochs: int = setting(
        0, "passes over a client's images in a round; 0: count steps", "epochs", at_least=0
    )
    batch_size: int = setting(16, "size of a mini-batch", "images", at_least=1)
    learning_rate: float = setting(0.05, "SGD's learning rate in round 1", above=0)
    learning_rate_schedule: Literal["constant", "cosine", "step", "halfway"] = setting(
        "constant",
        "`cosine` falls to zero over the rounds, `step` is times 0.1 after 75 % of them, `halfway` "
        "after 50 %",
    )
    weight_decay: float = setting(0.001, "SGD's L2 penalty", at_least=0)
    evaluate_every: int = setting(
        1, "how often the server tests the global model; round T* and the last one always",
        "rounds", at_least=1,
    )  # fmt: skip
    seed: int = setting(0, "seed of every random choice", at_least=0, at_most=2**32 - 1)
    device: str = setting("auto", "`auto`, `cpu`, `cuda`, or one of several such as `cuda:1`")
    precision: Literal["float32", "bfloat16"] = setting(
        "float32", "arithmetic of the clients' training"
    )
    output_dir: str = setting("", "where run folders are made; empty: `~/fixbn-runs`", "path")
    run_name: str = setting("", "the run folder's name; empty: made from time, task and method")
    state_dir: str = setting(
        "", "where a client's machine keeps momentum buffers; empty: in Flower's state", "path"
    )
    checkpoint_every: int = setting(
        1, "how often the server writes a checkpoint; round T* and the last one always; 0: never",
        "rounds", at_least=0,
    )  # fmt: skip
    keep_checkpoints: int = setting(2, "how many of the newest are kept", "files", at_least=1)
    resume: str = setting("", "the folder of a run to go on with; empty: a new run", "path")
    may_change: str = setting(
        "", "keys, with commas between, in which a resumed run may differ from what it was"
    )

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Value]) -> "Settings":
        """The settings of Flower's `context.run_config`; keys that are missing take the default.

        Raises one `ConfigError` that lists every problem, a line each: key, value, reason, remedy.
        """
        fields = {key_of(field.name): field for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {field.name: field.default for field in fields.values()}
        problems: list[str] = []
        wrong: set[str] = set()
        for key, value in run_config.items():
            if key not in fields:
                remedy = rules.did_you_mean(str(key), fields, "see the README's table of keys")
                problems.append(rules.problem(key, value, f"unknown key; {remedy}"))
                continue
            field = fields[key]
            try:
                values[field.name] = rules.parse(field, value)
            except ValueError as error:
                problems.append(rules.problem(key, value, str(error)))
                wrong.add(field.name)
        for names, check in rules.TOGETHER:
            found = None if wrong.intersection(names) else check(*(values[name] for name in names))
            if found:
                problems.append(found)
        if problems:
            raise ConfigError("\n  ".join(["the run config cannot be used:", *problems]))
        values["model"] = values["model"] or next(iter(get_task(values["task"]).models))
        return cls(**values)

    def as_run_config(self) -> dict[str, Value]:
        """Every key with its value, as `from_run_config` and `flwr run` take them."""
        return {key_of(name): value for name, value in dataclasses.asdict(self).items()}

    @property
    def task_name(self) -> str:
        """The task's own name, which `package.module:NAME` has as well; fit to name a folder."""
        return get_task(self.task).name

    @property
    def data_path(self) -> Path | None:
        """Where the task's files are, None for the task's own place."""
        return Path(self.data_dir) if self.data_dir else None

    @property
    def freeze_round(self) -> int:
        """T*: the last round of exploration; `num_server_rounds` when nothing is frozen."""
        return schedule.freeze_round(self.freeze_after, self.num_server_rounds)

    @property
    def method(self) -> str:
        """The label of the method: FixBN, BN, GN, GN8 (and so on), LN, IN or "no norm"."""
        if self.norm == "bn":
            return "FixBN" if self.freeze_round < self.num_server_rounds else "BN"
        return "no norm" if self.norm == "none" else self.norm.upper()

    def phase(self, server_round: int) -> Phase:
        """The phase of a round, counted from 1."""
        return schedule.phase_of(server_round, self.freeze_round)

    def learning_rate_at(self, server_round: int) -> float:
        """What the schedule gives for a round, counted from 1, before the calibration factor."""
        rounds = self.num_server_rounds
        if self.learning_rate_schedule == "cosine":
            share_done = (server_round - 1) / rounds
            return self.learning_rate * (1 + math.cos(math.pi * share_done)) / 2
        if self.learning_rate_schedule == "step" and 4 * server_round > 3 * rounds:
            return self.learning_rate * 0.1
        # After the round that freeze-after=0.5 makes T*: BN then has the rates of FixBN.
        halfway = schedule.freeze_round(0.5, rounds)
        if self.learning_rate_schedule == "halfway" and server_round > halfway:
            return self.learning_rate * 0.1
        return self.learning_rate

    def effective_learning_rate(self, server_round: int) -> float:
        """What clients train with: `learning_rate_at`, times the factor in calibration."""
        calibrates = self.phase(server_round) is Phase.CALIBRATION
        factor = self.learning_rate_factor if calibrates else 1.0
        return self.learning_rate_at(server_round) * factor

    def clients_per_round(self, clients: int) -> int:
        """How many of `clients` train in a round: their share, but at least one."""
        return max(1, round(self.fraction_train * clients))

    def evaluates(self, server_round: int) -> bool:
        """Whether the global model is tested after this round (0: the initial model, yes)."""
        always = (self.freeze_round, self.num_server_rounds)
        return server_round % self.evaluate_every == 0 or server_round in always

    def keeps_checkpoint(self, server_round: int) -> bool:
        """Whether the server writes a checkpoint after this round."""
        every = self.checkpoint_every
        always = (self.freeze_round, self.num_server_rounds)
        return every > 0 and (server_round % every == 0 or server_round in always)

    def check_partitions(self, sizes: Sequence[int], names: Sequence[str] = ()) -> None:
        """Raises `ConfigError` when a client, `sizes[i]` images each, cannot fill one batch.

        `names` says how clients are called; those without one are called by their number.
        """
        client = min(range(len(sizes)), key=sizes.__getitem__)
        images = sizes[client]
        if self.batch_size <= images:
            return
        who = (names and names[client]) or f"client {client} of {len(sizes)}"
        remedies = [f"batch-size={images} or less"] if images else []
        remedies.append("fewer clients")
        if self.partition == "dirichlet":
            remedies.append("a larger partition-alpha")
        raise ConfigError(
            f"batch-size = {self.batch_size}: {who} holds {images} "
            f"images, fewer than one batch; use {', or '.join(remedies)}"
        )


def table() -> str:
    """The README's table of all run-config keys, in markdown."""
    lines = ["| key | default | unit | meaning |", "| --- | --- | --- | --- |"]
    for field in dataclasses.fields(Settings):
        rule: rules.Rule = field.metadata["rule"]
        words = ", ".join(f"`{word}`" for word in rules.choices_of(field))
        beside = f", or `{rule.beside.example}` {rule.beside.meaning}" if rule.beside else ""
        limits = f"one of {words}{beside}" if words else rule.bounds
        allowed = f" ({limits})" if limits else ""
        default = json.dumps(field.default)
        lines.append(
            f"| `{key_of(field.name)}` | `{default}` | {rule.unit} | {rule.meaning}{allowed} |"
        )
    return "\n".join(lines)
