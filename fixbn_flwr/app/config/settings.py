"""A run's config: the keys, checked, and what they mean together."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fixbn_flwr.app.config import rules
from fixbn_flwr.app.config.checks import CHECKS
from fixbn_flwr.app.config.keys import Keys
from fixbn_flwr.app.config.rules import Value, key_of
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method import schedule
from fixbn_flwr.method.schedule import AUTO
from fixbn_flwr.tasks import DataOptions, Task, find_task, get_task


@dataclass(frozen=True)
class Settings(Keys):
    """A run's validated config, by `from_run_config`; the constructor does not validate."""

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
                remedy = rules.unknown_key(str(key), list(fields))
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
        if not fields.keys() >= run_config.keys():
            problems.append(rules.list_of_keys(fields))
        if problems:
            raise ConfigError("\n  ".join(["the run config cannot be used:", *problems]))
        values["model"] = values["model"] or next(iter(find_task(values["task"]).models))
        return cls(**values)

    def as_run_config(self) -> dict[str, Value]:
        """Return every key with its value, as `from_run_config` and `flwr run` take them."""
        return {key_of(name): value for name, value in dataclasses.asdict(self).items()}

    @property
    def task_name(self) -> str:
        """The task's own name, also of `package.module:NAME`; it can name a folder."""
        return find_task(self.task).name

    @property
    def data_path(self) -> Path | None:
        """The directory of the task's files; None for the task's default."""
        return Path(self.data_dir) if self.data_dir else None

    @property
    def data_options(self) -> DataOptions:
        """How a task for any data reads it."""
        return DataOptions(
            data_dir=self.data_path,
            image_size=self.image_size,
            augmentation=self.augmentation,
            label_column=self.label_column,
            group_column=self.group_column,
            seed=self.seed,
        )

    def read_task(self, *, choose_test: bool = True) -> Task:
        """Return the task; of a task for any data, read its classes.

        Args:
            choose_test: Whether a task for any data chooses test images if the data has none.

        Raises:
            ConfigError: If the data is missing or cannot be used.
        """
        return get_task(self.task, dataclasses.replace(self.data_options, choose_test=choose_test))

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
        every = self.evaluate_every
        always = (self.freeze_round, self.num_server_rounds)
        return every > 0 and (server_round % every == 0 or server_round in always)

    def validates(self, server_round: int) -> bool:
        """Return whether the clients validate the model after this round."""
        is_last = server_round == self.num_server_rounds
        due = server_round % self.evaluate_clients_every == 0 or is_last
        return self.validation_share > 0 and due

    def is_out_of_patience(self, server_round: int, best_round: int) -> bool:
        """Return whether the run ends after this round, given the round of its best model."""
        if self.freeze_after == AUTO:  # T* is not decided yet
            return False
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
            sizes: The number of images that each client trains on.
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
        held_out = ""
        if self.validation_share:
            remedies.append("a smaller validation-share")
            held_out = " besides those that it holds out"
        raise ConfigError(
            f"batch-size = {self.batch_size}: {who} holds {images} "
            f"images{held_out}, fewer than one batch; use {', or '.join(remedies)}"
        )
