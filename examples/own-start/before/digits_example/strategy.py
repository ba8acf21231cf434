"""A strategy with its own loop: a schedule, a log of all rounds, and the best model in a file."""

import json
from pathlib import Path

import torch
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAvg, Result


class BestModel(FedAvg):
    """FedAvg that halves the learning rate after some rounds and keeps its best model."""

    def __init__(self, *, folder: Path, halve_after: int, **options: object) -> None:
        super().__init__(**options)
        self.folder = folder
        self.halve_after = halve_after
        self.best = 0.0

    def configure_train(self, server_round, arrays, config, grid):
        """Set the round's learning rate, then do what FedAvg does."""
        if server_round == self.halve_after + 1:
            config["lr"] *= 0.5
        return super().configure_train(server_round, arrays, config, grid)

    def start(
        self, grid, initial_arrays, num_rounds=3, timeout=3600, train_config=None,
        evaluate_config=None, evaluate_fn=None,
    ):  # fmt: skip
        """Run the rounds; write `rounds.jsonl`, and `best.pt` whenever the accuracy rises."""
        self.folder.mkdir(parents=True, exist_ok=True)
        arrays, result = initial_arrays, Result()
        evaluate_fn(0, arrays)
        with (self.folder / "rounds.jsonl").open("w") as log:
            for number in range(1, num_rounds + 1):
                messages = self.configure_train(number, arrays, train_config, grid)
                replies = grid.send_and_receive(messages, timeout=timeout)
                averaged, metrics = self.aggregate_train(number, replies)
                arrays = arrays if averaged is None else averaged
                tested = evaluate_fn(number, arrays)
                log.write(
                    json.dumps({"round": number, **dict(metrics or {}), **dict(tested)}) + "\n"
                )
                self.keep_best(arrays, tested["accuracy"])
        result.arrays = arrays
        return result

    def keep_best(self, arrays: ArrayRecord, accuracy: float) -> None:
        """Save the model if it is the best so far."""
        if accuracy > self.best:
            self.best = accuracy
            torch.save(arrays.to_torch_state_dict(), self.folder / "best.pt")
