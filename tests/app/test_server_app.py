"""The whole app in one process: the results of a run, and runs that fail."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, Message, RecordDict
from safetensors.numpy import load_file

from fixbn_flwr.app import client_app
from fixbn_flwr.app.client.image_client import FixBNClient
from fixbn_flwr.app.training import evaluate
from fixbn_flwr.app.workbench import workbench
from fixbn_flwr.errors import ClientsMissingError, ConfigError, RoundsFailedError
from fixbn_flwr.method.averaging import Kind, kind_of
from fixbn_flwr.tasks import get_task, load_splits
from fixbn_flwr.testing import FIRST_NODE_ID, SerializingGrid
from tests.support.whole_app import SMALL, rounds_of, run_app, serve, size_of

DIGITS = get_task("digits")


def accuracy_of(model: Path) -> tuple[float, float]:
    bench = workbench(DIGITS, "small-resnet", "bn", 0.9, 0.001, "cpu")
    bench.load(load_file(model))
    return evaluate(bench, DIGITS, load_splits(DIGITS)[1])


def test_each_round_is_a_line_of_metrics(tmp_path: Path) -> None:
    folder = run_app(tmp_path, 4, {})
    rounds = rounds_of(folder)
    assert [set(line) for line in rounds] == [
        {"round", "phase", "learning_rate", "train_loss", "test_loss", "test_accuracy",
         "bytes_sent", "bytes_received", "seconds", "clients", "dropped", "train_seconds",
         "retries", "signals", "disagreement_by_layer", "validation_loss", "validation_accuracy",
         "validation_worst", "validation_spread", "validation_by_client"}
    ] * 3  # fmt: skip
    assert [line["round"] for line in rounds] == [1, 2, 3]
    assert [line["phase"] for line in rounds] == ["exploration", "exploration", "calibration"]
    assert [line["learning_rate"] for line in rounds] == pytest.approx([0.05, 0.05, 0.005])
    assert [line["clients"] for line in rounds] == [2] * 3
    assert [line["dropped"] for line in rounds] == [0] * 3
    assert all(math.isfinite(line["train_loss"]) for line in rounds)
    assert all(0 < line["train_seconds"] < line["seconds"] for line in rounds)
    final = load_file(folder / "final.safetensors")
    size = size_of(final)
    assert [line["bytes_sent"] for line in rounds] == [2 * size] * 3
    assert [line["bytes_received"] for line in rounds] == [2 * size] * 3


def test_both_saved_models_have_the_accuracy_of_their_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = FixBNClient.train

    def train_and_invert_in_round_3(self: Any, received: RecordDict) -> RecordDict:
        reply = train(self, received)
        if received["config"]["server-round"] == 3:  # the likeliest class becomes the least likely
            arrays = reply.array_records["arrays"]
            for name in list(arrays)[-2:]:
                arrays[name] = Array(-arrays[name].numpy())
        return reply

    monkeypatch.setattr(FixBNClient, "train", train_and_invert_in_round_3)
    folder = run_app(tmp_path, 2, {"partition": "iid", "local-steps": 30, "validation-share": 0.1})
    rounds = rounds_of(folder)
    summary = json.loads((folder / "summary.json").read_text())
    best = max(rounds, key=lambda line: line["validation_accuracy"])
    assert (best["round"], best["test_accuracy"] > 0.3) == (2, True)
    assert rounds[2]["test_accuracy"] < best["test_accuracy"]
    assert accuracy_of(folder / "best.safetensors") == (best["test_loss"], best["test_accuracy"])
    assert accuracy_of(folder / "final.safetensors") == (
        rounds[2]["test_loss"],
        rounds[2]["test_accuracy"],
    )
    assert summary["accuracy_at_freeze"] == rounds[1]["test_accuracy"]
    assert summary["final_accuracy"] == rounds[2]["test_accuracy"]
    chosen = (summary["best_accuracy"], summary["best_validation"], summary["best_round"])
    assert chosen == (best["test_accuracy"], best["validation_accuracy"], 2)


@pytest.mark.parametrize(
    ("config", "warned"),
    [({}, True), ({"partition-classes": 5}, False), ({"partition": "iid"}, False)],
)
def test_classes_without_a_client_are_a_warning_with_the_remedy(
    config: dict[str, Any], warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_app(tmp_path, 2, {"num-server-rounds": 1, "freeze-after": 1.0, **config})
    found = [r.getMessage() for r in caplog.records if "no client trains on" in r.getMessage()]
    assert len(found) == warned
    assert all("hold at most 4 of the 10 classes" in text for text in found)
    assert all("`fixbn run --clients 5`" in text for text in found)


def test_evaluate_every_skips_rounds_but_not_t_star_or_the_last(tmp_path: Path) -> None:
    config = {"num-server-rounds": 7, "freeze-after": 3, "evaluate-every": 2, "local-steps": 1}
    rounds = rounds_of(run_app(tmp_path, 2, config))
    evaluated = [line["round"] for line in rounds if line["test_accuracy"] is not None]
    assert evaluated == [2, 3, 4, 6, 7]
    assert [line["round"] for line in rounds if line["test_loss"] is not None] == evaluated


def test_patience_ends_the_run_with_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The accuracy does not change after T*, since the learning rate is tiny.
    config = {
        "num-server-rounds": 9, "learning-rate": 1e-9, "patience": 3, "validation-share": 0.1,
        "evaluate-clients-every": 2,
    }  # fmt: skip
    folder = run_app(tmp_path, 2, config)
    assert [line["round"] for line in rounds_of(folder)] == [1, 2, 3, 4, 5, 6]
    printed = capsys.readouterr().out
    assert "No better validation accuracy since round 2: the run ends (patience)" in printed
    assert json.loads((folder / "summary.json").read_text())["best_round"] == 2
    assert (folder / "final.safetensors").is_file()


@pytest.mark.parametrize(
    "config",
    [
        {"momentum": "local"},
        {"momentum": "global", "statistics": "pooled"},
        {"momentum": "reset"},
        {"norm": "gn", "freeze-after": 1.0},
        {"fraction-train": 1.0, "local-steps": 0, "local-epochs": 1, "batch-size": 90},
    ],
    ids=lambda config: " ".join(f"{key}={value}" for key, value in config.items()),
)
def test_the_same_seed_gives_the_same_bits_in_any_order_of_replies(
    tmp_path: Path, config: dict[str, Any]
) -> None:
    runs = [
        run_app(tmp_path / "a", 4, config),
        run_app(tmp_path / "b", 4, config, shuffle_seed=3),
        run_app(tmp_path / "c", 4, config | {"seed": 1}),
    ]
    models = [(run / "final.safetensors").read_bytes() for run in runs]
    assert models[0] == models[1]
    assert models[0] != models[2]
    lines = [rounds_of(run) for run in runs]
    for line in lines[0] + lines[1]:
        del line["seconds"], line["train_seconds"]
    assert lines[0] == lines[1]


@pytest.mark.parametrize("momentum", ["local", "global", "reset"])
@pytest.mark.parametrize("statistics", ["mean", "pooled"])
def test_after_t_star_the_statistics_keep_their_bits_and_parameters_change(
    tmp_path: Path, momentum: str, statistics: str
) -> None:
    config = {"momentum": momentum, "statistics": statistics, "local-steps": 1}
    to_the_end = run_app(tmp_path / "a", 3, config)
    to_the_freeze = run_app(tmp_path / "b", 3, config | {"num-server-rounds": 2})
    at_freeze = load_file(to_the_freeze / "final.safetensors")
    for name, array in load_file(to_the_end / "final.safetensors").items():
        changed = array.tobytes() != at_freeze[name].tobytes()
        assert changed == (kind_of(name) is Kind.PARAMETER), name


class WatchedGrid(SerializingGrid):
    """Records which partitions train in each round, and can disconnect clients."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.trained: list[list[int]] = []
        self.connected: Callable[[int], Iterable[int]] = lambda _: self.contexts

    def get_node_ids(self) -> Iterable[int]:
        return list(self.connected(len(self.trained)))

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        if messages[0].metadata.message_type == "train":
            partitions = [m.metadata.dst_node_id - FIRST_NODE_ID for m in messages]
            self.trained.append(sorted(partitions))
        return super().send_and_receive(messages, timeout=timeout)


def watched(tmp_path: Path, clients: int, **config: Any) -> tuple[WatchedGrid, dict[str, Any]]:
    run_config = SMALL | {"output-dir": str(tmp_path)} | config
    return WatchedGrid(client_app.app, clients, run_config=run_config), run_config


def sampled(tmp_path: Path, seed: int, *, reverse: bool = False) -> list[list[int]]:
    grid, config = watched(tmp_path, 8, **{"local-steps": 1, "seed": seed, "fraction-train": 0.4})
    if reverse:
        grid.connected = lambda _: reversed(list(grid.contexts))
    serve(grid, config)
    return grid.trained


def test_a_seed_samples_the_same_partitions_and_each_round_different_ones(tmp_path: Path) -> None:
    first = sampled(tmp_path, seed=0)
    assert [len(partitions) for partitions in first] == [3] * 3  # 0.4 * 8 is 3.2
    assert len({tuple(partitions) for partitions in first}) == 3
    assert sampled(tmp_path, seed=0, reverse=True) == first
    assert sampled(tmp_path, seed=1) != first


def test_a_client_that_diverges_is_dropped_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = FixBNClient.train

    def train_to_nan(self: Any, received: RecordDict) -> RecordDict:
        reply = train(self, received)
        of_round = received["config"]["server-round"]
        if self.context.node_config["partition-id"] == 1 and of_round == 2:
            arrays = reply.array_records["arrays"]
            name = next(iter(arrays))
            arrays[name] = Array(np.full_like(arrays[name].numpy(), np.nan))
        return reply

    monkeypatch.setattr(FixBNClient, "train", train_to_nan)
    rounds = rounds_of(run_app(tmp_path, 3, {"fraction-train": 1.0}))
    assert [(line["clients"], line["dropped"]) for line in rounds] == [(3, 0), (2, 1), (3, 0)]


def test_a_run_fails_with_each_reason_if_all_clients_diverge(tmp_path: Path) -> None:
    with pytest.raises(RoundsFailedError) as caught:
        run_app(tmp_path, 2, {"learning-rate": 1e30, "fraction-train": 1.0})
    assert str(caught.value).count("holds NaN or infinity: its training diverged") == 2
    (folder,) = tmp_path.iterdir()
    assert not (folder / "final.safetensors").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"batch-size": 400}, "holds 287 images, fewer than one batch; use batch-size=287 or less"),
        ({"norm": "gn"}, "norm gn has no running statistics to freeze; write freeze-after=1.0"),
        ({"norm": "gn3", "freeze-after": 1.0}, "norm is 'gn3', but a layer of this network has 16"),
        ({"data-dir": "/no/such/place"}, "there is no directory /no/such/place; create it"),
        ({"device": "cuda:99"}, "device='cuda:99': this machine has"),
    ],
)
def test_an_invalid_run_fails_before_its_folder_is_created(
    tmp_path: Path, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_app(tmp_path / "runs", 4, config)
    assert not (tmp_path / "runs").exists()


def test_a_run_without_enough_clients_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fixbn_flwr.app.server.client_registry_grid.PATIENCE", 0.0)
    grid, config = watched(tmp_path, 3, **{"fraction-train": 1.0, "num-server-rounds": 9})
    grid.connected = lambda trained: list(grid.contexts)[: 3 if trained < 2 else 2]
    with pytest.raises(ClientsMissingError, match=r"2 of 3 clients are connected after 0 seconds"):
        serve(grid, config)
    assert len(grid.trained) == 2


def test_divergence_after_t_star_logs_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.suppress(RoundsFailedError):  # it may diverge to NaN
        fast = {"num-server-rounds": 5, "learning-rate-factor": 1000.0, "guard": False}
        run_app(tmp_path / "too fast", 4, fast)
    assert caplog.text.count("the run diverges in calibration") == 1
    assert "at T* = 2: the run diverges" in caplog.text
    assert "such as 100: delete the checkpoints after T* from" in caplog.text
    caplog.clear()
    run_app(tmp_path / "slow", 4, {"num-server-rounds": 5, "learning-rate-factor": 0.1})
    assert "diverges" not in caplog.text
