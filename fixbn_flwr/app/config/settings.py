"""The run config: every key with its default, unit and meaning.

A key of `flwr run --run-config` is a field of `Settings` with `-` for `_`.
"""
# ruff: noqa: RUF009 -- setting() returns a dataclass field

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fixbn_flwr.app.config import rules
from fixbn_flwr.app.config.checks import CHECKS
from fixbn_flwr.app.config.rules import Value, key_of, setting
from fixbn_flwr.app.local_step import Precision
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method import schedule
from fixbn_flwr.method.options import StatisticsAverage
from fixbn_flwr.method.round_config import MomentumMode
from fixbn_flwr.method.schedule import AUTO, FreezeAfter
from fixbn_flwr.method.switch import LearningRateFactor
from fixbn_flwr.models.norm import NORMS
from fixbn_flwr.tasks import TASKS, get_task
from fixbn_flwr.tasks.partition import Scheme

LearningRateSchedule = Literal["constant", "cosine", "step", "halfway"]


@dataclass(frozen=True)
class Settings:
    """A run's validated config, by `from_run_config`; the constructor does not validate."""

    task: str = setting("digits", "data set, model and loss", choices=TASKS, pattern=rules.OWN_TASK)
    data_dir: str = setting("", "directory of the task's files; empty: the task's default", "path")
    model: str = setting("", "network; empty: the task's default")
    norm: str = setting(
        "bn", "normalization layers of the network", choices=NORMS, pattern=rules.GROUPS
    )
    partition: Scheme = setting("classes", "how the images are divided among the clients")
    partition_alpha: float = setting(
        0.3, "concentration of `dirichlet`: smaller values make clients differ more", above=0
    )
    partition_classes: int = setting(
        2, "classes of each client in `classes`", "classes", at_least=1
    )
    num_server_rounds: int = setting(40, "number of rounds of the run", "rounds", at_least=1)
    freeze_after: FreezeAfter = setting(
        0.5,
        "T*, the last round before the statistics freeze: a whole number of rounds, or a "
        "fraction of them; 1.0 never freezes (plain BN); `auto` decides during the run",
        "rounds or share",
        choices=("auto",), at_least=0,
    )  # fmt: skip
    momentum: MomentumMode = setting(
        "local",
        "SGD's momentum buffers between rounds: `reset` to zero, kept at each client (`local`), or "
        "averaged by the server (`global`)",
    )
    momentum_coefficient: float = setting(0.9, "SGD's momentum", at_least=0, below=1)
    statistics: StatisticsAverage = setting("mean", "how the clients' variances are averaged")
    learning_rate_factor: LearningRateFactor = setting(
        0.1, "multiplies the learning rate in calibration", "factor", choices=("auto",), above=0
    )
    guard: bool = setting(True, "go back to T* with a smaller rate if the run falls apart after it")
    compare_gradients_every: int = setting(
        0, "interval at which clients compare gradients until T*; 0: never", "rounds", at_least=0
    )
    fraction_train: float = setting(
        1.0, "share of the clients that train in each round", "share", above=0, at_most=1
    )
    min_clients: int = setting(
        2, "number of clients with their own data (`data-dir` in the node config) that a run and "
        "each round wait for", "clients", at_least=1,
    )  # fmt: skip
    round_timeout: float = setting(
        3600.0, "time after which a round ends without the clients that have not replied", "s",
        above=0,
    )  # fmt: skip
    local_steps: int = setting(
        5, "mini-batches per client and round; 0: use local-epochs", "steps", at_least=0
    )
    local_epochs: int = setting(
        0, "passes over the images per client and round; 0: use local-steps", "epochs", at_least=0
    )
    batch_size: int = setting(16, "mini-batch size", "images", at_least=1)
    learning_rate: float = setting(0.05, "SGD's learning rate in round 1", above=0)
    learning_rate_schedule: LearningRateSchedule = setting(
        "constant",
        "`cosine` decays to zero over the rounds, `step` multiplies by 0.1 after 75 % of them, "
        "`halfway` after 50 %",
    )
    weight_decay: float = setting(0.001, "SGD's L2 penalty", at_least=0)
    evaluate_every: int = setting(
        1, "interval at which the server tests the global model; always at T* and the last round",
        "rounds", at_least=1,
    )  # fmt: skip
    patience: int = setting(
        0, "number of rounds without a better test accuracy after which the run ends, counted from "
        "T* on; 0: never", "rounds", at_least=0,
    )  # fmt: skip
    seed: int = setting(0, "seed of all random choices", at_least=0, at_most=2**32 - 1)
    device: str = setting("auto", "`auto`, `cpu`, `cuda`, or a specific GPU such as `cuda:1`")
    precision: Precision = setting("float32", "arithmetic of the clients' training")
    cuda_graphs: bool = setting(
        True, "whether a local step on a GPU is captured as a CUDA graph, which is faster"
    )
    output_dir: str = setting("", "parent directory of run folders; empty: `~/fixbn-runs`", "path")
    run_name: str = setting("", "name of the run folder; empty: time, task and method")
    state_dir: str = setting(
        "", "directory of momentum buffers on a client's machine; empty: Flower's state", "path"
    )
    checkpoint_every: int = setting(
        1, "interval of the server's checkpoints, always at T* and the last round; 0: none",
        "rounds", at_least=0,
    )  # fmt: skip
    keep_checkpoints: int = setting(2, "number of newest checkpoints to keep", "files", at_least=1)
    resume: str = setting("", "folder of a run to resume; empty: a new run", "path")
    may_change: str = setting("", "comma-separated keys whose values may change in a resumed run")

    @classmethod
    def from_run_config(cls, run_config: Mapping[str, Value]) -> "Settings":
        """Validate Flower's `context.run_config`; missing keys get their defaults.

        Raises:
            ConfigError: If it is not valid. Each problem is a line: key, value, reason, remedy.
        """
        fields = {key_of(field.name): field for field in dataclasses.fields(cls)}
        values: dict[str, Any] = {field.name: field.default for field in fields.values()}
        problems: list[str] = []
        wrong: set[str] = set()
        for key, value in run_config.items():
            if key not in fields:
                remedy = rules.did_you_mean(
                    str(key), fields, "see the table of keys in the documentation"
                )
                problems.append(rules.problem(key, value, f"unknown key; {remedy}"))
                continue
            field = fields[key]
            try:
                values[field.name] = rules.parse(field, value)
            except ValueError as error:
                problems.append(rules.problem(key, value, str(error)))
                wrong.add(field.name)
        for names, check in CHECKS:
            found = None if wrong.intersection(names) else check(*(values[name] for name in names))
            if found:
                problems.append(found)
        if problems:
            raise ConfigError("\n  ".join(["the run config cannot be used:", *problems]))
        values["model"] = values["model"] or next(iter(get_task(values["task"]).models))
        return cls(**values)

    def as_run_config(self) -> dict[str, Value]:
        """Return every key with its value, as `from_run_config` and `flwr run` take them."""
        return {key_of(name): value for name, value in dataclasses.asdict(self).items()}

    @property
    def task_name(self) -> str:
        """The task's own name, also of `package.module:NAME`; it can name a folder."""
        return get_task(self.task).name

    @property
    def data_path(self) -> Path | None:
        """The directory of the task's files; None for the task's default."""
        return Path(self.data_dir) if self.data_dir else None

    @property
    def run_folder(self) -> Path:
        """The run folder of a config with `resume`, or with `output_dir` and `run_name`."""
        return Path(self.resume or f"{self.output_dir}/{self.run_name}")

    @property
    def freeze_round(self) -> int:
        """T*, the last round of exploration; `num_server_rounds` if nothing is frozen yet."""
        if self.freeze_after == AUTO:
            return self.num_server_rounds
        return schedule.freeze_round(self.freeze_after, self.num_server_rounds)

    @property
    def may_freeze(self) -> bool:
        """Whether the statistics are frozen in this run, or may be."""
        return self.freeze_after == AUTO or self.freeze_round < self.num_server_rounds

    @property
    def method(self) -> str:
        """The label of the method: FixBN, BN, GN, GN8 (and so on), LN, IN or "no norm"."""
        if self.norm == "bn":
            return "FixBN" if self.may_freeze else "BN"
        return "no norm" if self.norm == "none" else self.norm.upper()

    def learning_rate_at(self, server_round: int) -> float:
        """Return a round's learning rate by the schedule, without the calibration factor."""
        rounds = self.num_server_rounds
        if self.learning_rate_schedule == "cosine":
            share_done = (server_round - 1) / rounds
            return self.learning_rate * (1 + math.cos(math.pi * share_done)) / 2
        if self.learning_rate_schedule == "step" and 4 * server_round > 3 * rounds:
            return self.learning_rate * 0.1
        # The round of T* with freeze-after=0.5, so that BN and FixBN have the same rates.
        halfway = schedule.freeze_round(0.5, rounds)
        if self.learning_rate_schedule == "halfway" and server_round > halfway:
            return self.learning_rate * 0.1
        return self.learning_rate

    def clients_per_round(self, clients: int) -> int:
        """Return how many of `clients` train in a round, at least one."""
        return max(1, round(self.fraction_train * clients))

    def evaluates(self, server_round: int) -> bool:
        """Return whether the server tests the model after this round; 0 is the initial model."""
        always = (self.freeze_round, self.num_server_rounds)
        return server_round % self.evaluate_every == 0 or server_round in always

    def is_out_of_patience(self, server_round: int, best_round: int) -> bool:
        """Return whether the run ends after this round, given the round of its best accuracy."""
        exploration = self.freeze_round if self.freeze_round < self.num_server_rounds else 0
        return 0 < self.patience <= server_round - max(best_round, exploration)

    def keeps_checkpoint(self, server_round: int) -> bool:
        """Return whether the server writes a checkpoint after this round."""
        every = self.checkpoint_every
        always = (self.freeze_round, self.num_server_rounds)
        return every > 0 and (server_round % every == 0 or server_round in always)

    def check_partitions(self, sizes: Sequence[int], names: Sequence[str] = ()) -> None:
        """Check that every client has enough images for one batch.

        Args:
            sizes: The number of images of each client.
            names: The name of each client, or empty. Default: no names.

        Raises:
            ConfigError: If the smallest client has too few.
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
