"""Clients validate the global model: what is recorded, refused, sent, and needs no server data."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, MetricRecord, RecordDict
from safetensors.numpy import load_file

from fixbn_flwr.app.client.image_client import FixBNClient
from fixbn_flwr.app.client_app import client_of
from fixbn_flwr.app.inference.loading import load
from fixbn_flwr.app.server import prepared_run
from fixbn_flwr.app.server.client_validation import validation_metrics
from fixbn_flwr.app.training import evaluate
from fixbn_flwr.app.workbench import workbench
from fixbn_flwr.tasks import get_task, load_splits
from fixbn_flwr.testing import FIRST_NODE_ID
from tests.support.whole_app import SMALL, rounds_of, run_app, size_of

VALIDATED = {"validation-share": 0.2, "fraction-train": 1.0}


def test_each_clients_accuracy_is_that_of_the_model_on_what_it_holds_out(tmp_path: Path) -> None:
    folder = run_app(tmp_path, 4, {**VALIDATED, "num-server-rounds": 4})
    *_, last = rounds_of(folder)
    digits = get_task("digits")
    bench = workbench(digits, "small-resnet", "bn", 0.9, 0.001, "cpu")
    bench.load(load_file(folder / "final.safetensors"))
    train, by_client, images = load_splits(digits)[0], {}, []
    for own in range(4):
        node_config: dict[str, Any] = {"partition-id": own, "num-partitions": 4}
        held_out = client_of(
            Context(1, own, node_config, RecordDict(), SMALL | VALIDATED)
        ).validation
        data = type(train)(train.images[held_out], train.targets[held_out])
        by_client[str(own)] = evaluate(bench, digits, data)[1]
        images.append(len(held_out))
    assert last["validation_by_client"] == by_client
    mean = sum(n * by_client[str(own)] for own, n in enumerate(images)) / sum(images)
    assert last["validation_accuracy"] == pytest.approx(mean)
    assert last["validation_worst"] == min(by_client.values())
    variance = sum((a - sum(by_client.values()) / 4) ** 2 for a in by_client.values()) / 4
    assert last["validation_spread"] == pytest.approx(math.sqrt(variance))


def test_every_client_gets_the_model_again_and_the_bytes_are_counted(tmp_path: Path) -> None:
    config = {**VALIDATED, "fraction-train": 0.5, "evaluate-clients-every": 2}
    folder = run_app(tmp_path, 4, config)
    size = size_of(load_file(folder / "final.safetensors"))
    rounds = rounds_of(folder)
    # Two clients train in each round; all four validate in round 2 and in the last one.
    assert [line["bytes_sent"] for line in rounds] == [2 * size, 6 * size, 6 * size]
    assert [line["bytes_received"] for line in rounds] == [2 * size] * 3
    assert [len(line["validation_by_client"]) for line in rounds] == [0, 4, 4]


def test_validation_changes_no_bit_of_the_training(tmp_path: Path) -> None:
    runs = [
        run_app(tmp_path / str(every), 4, {**VALIDATED, "evaluate-clients-every": every})
        for every in (1, 3)
    ]
    first, second = ((run / "final.safetensors").read_bytes() for run in runs)
    assert first == second


def test_a_server_without_data_runs_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepared_run, "load_splits", lambda *_: pytest.fail("read data"))
    folder = run_app(tmp_path, 4, {**VALIDATED, "evaluate-every": 0})
    rounds = rounds_of(folder)
    assert [line["test_accuracy"] for line in rounds] == [None] * 3
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["final_accuracy"], summary["best_accuracy"]) == (None, None)
    assert summary["best_validation"] == max(line["validation_accuracy"] for line in rounds)
    assert load(folder).input_size == (1, 8, 8)  # as the clients reported it


def test_a_server_without_data_needs_no_validation_either(tmp_path: Path) -> None:
    folder = run_app(tmp_path, 4, {"evaluate-every": 0})
    assert [line["validation_accuracy"] for line in rounds_of(folder)] == [None] * 3
    assert not (folder / "best.safetensors").exists()
    assert (folder / "final.safetensors").is_file()


def test_a_client_that_does_not_reply_is_left_out(tmp_path: Path) -> None:
    def lost(message: Message) -> bool:
        config = message.content.config_records.get("config", {})
        at = (message.metadata.message_type, message.metadata.dst_node_id)
        return at == ("evaluate", FIRST_NODE_ID + 1) and config.get("server-round") == 2

    rounds = rounds_of(run_app(tmp_path, 3, VALIDATED, lost=lost))
    assert [[*line["validation_by_client"]] for line in rounds] == [
        ["0", "1", "2"], ["0", "2"], ["0", "1", "2"]
    ]  # fmt: skip
    assert [line["dropped"] for line in rounds] == [0] * 3  # it has trained


def evaluating(change: Callable[[MetricRecord], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let client 1 change what it reports."""
    honest = FixBNClient.evaluate

    def changed(self: FixBNClient, received: RecordDict) -> RecordDict:
        reply = honest(self, received)
        if self.node.partition == 1:
            change(reply.metric_records["metrics"])
        return reply

    monkeypatch.setattr(FixBNClient, "evaluate", changed)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"accuracy": 1.5}, "its accuracy is 1.5 and must be a number from 0 to 1"),
        ({"accuracy": math.nan}, "its accuracy is nan and must be a number from 0 to 1"),
        ({"accuracy": [0.5]}, "its accuracy is [0.5] and must be a number"),
        ({"loss": [0.5]}, "its loss is [0.5] and must be a number: let the task's loss return one"),
    ],
)
def test_an_impossible_accuracy_is_dropped_and_its_client_named(
    change: dict[str, Any],
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    evaluating(lambda metrics: metrics.update(change), monkeypatch)
    rounds = rounds_of(run_app(tmp_path, 3, VALIDATED))
    assert [[*line["validation_by_client"]] for line in rounds] == [["0", "2"]] * 3
    assert any("1001" in text and reason in text for text in caplog.messages)


def test_a_loss_that_is_not_finite_is_left_out_of_the_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluating(lambda metrics: metrics.update({"loss": math.inf}), monkeypatch)
    rounds = rounds_of(run_app(tmp_path, 3, VALIDATED))
    assert [[*line["validation_by_client"]] for line in rounds] == [["0", "1", "2"]] * 3
    assert all(0 < line["validation_loss"] < 10 for line in rounds)


def test_a_loss_that_is_finite_at_no_client_is_not_recorded() -> None:
    record = MetricRecord({"loss": math.nan, "accuracy": 0.5, "accuracies": [0.5], "nodes": [7]})
    assert validation_metrics(record, str)["validation_loss"] is None


def test_clients_of_one_name_are_told_apart() -> None:
    record = MetricRecord({"loss": 1.0, "accuracy": 0.5, "accuracies": [0.4, 0.6], "nodes": [7, 8]})
    fields = validation_metrics(record, {7: "a", 8: "a"}.__getitem__)
    assert fields["validation_by_client"] == {"a": 0.4, "a (8)": 0.6}
    assert validation_metrics(None, str) == {}
