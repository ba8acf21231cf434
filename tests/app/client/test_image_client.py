"""The app's client: its result depends on seed, round and partition, not on earlier clients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, RecordDict
from flwr.common import NDArrays
from torch import nn

from fixbn_flwr.app.client import image_client
from fixbn_flwr.app.client.image_client import FixBNClient
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.training import evaluate
from fixbn_flwr.app.workbench import workbench
from fixbn_flwr.array_records import record_of
from fixbn_flwr.tasks import get_task, load_splits

DIGITS = get_task("digits")
NAMES = list(DIGITS.models["small-resnet"]("bn").state_dict())


@pytest.fixture(autouse=True)
def _fresh_workbench() -> Iterator[None]:
    workbench.cache_clear()
    torch.manual_seed(7)  # for the initial model
    yield
    workbench.cache_clear()


def settings(**changes: Any) -> Settings:
    small: dict[str, Any] = {
        "local-steps": 2,
        "batch-size": 4,
        "learning-rate": 0.1,
        "device": "cpu",
    }
    return Settings.from_run_config(small | {k.replace("_", "-"): v for k, v in changes.items()})


def client(own: int = 0, **changes: Any) -> FixBNClient:
    node_config: dict[str, Any] = {"partition-id": own, "num-partitions": 4}
    context = Context(1, 10 + own, node_config, RecordDict(), {})
    return FixBNClient(DIGITS, np.arange(own * 40, own * 40 + 40), settings(**changes), context)


def config(
    server_round: int = 1, phase: str = "exploration", momentum: str = "local", factor: float = 1.0
) -> dict[str, Any]:
    return {
        "server-round": server_round,
        "fixbn-phase": phase,
        "fixbn-momentum": momentum,
        "fixbn-learning-rate-factor": factor,
    }


def initial() -> NDArrays:
    torch.manual_seed(7)
    return [t.numpy().copy() for t in DIGITS.models["small-resnet"]("bn").state_dict().values()]


def content(parameters: NDArrays, received: dict[str, Any]) -> RecordDict:
    """Return the content of the server's message."""
    arrays = dict(zip(NAMES, parameters, strict=True))
    return RecordDict({"arrays": record_of(arrays), "config": ConfigRecord(received)})


def fit(
    one: FixBNClient, parameters: NDArrays, received: dict[str, Any]
) -> tuple[NDArrays, int, dict[str, Any]]:
    """Train a client; return its arrays, number of images and metrics."""
    reply = one.train(content(parameters, received))
    metrics: dict[str, Any] = dict(reply.metric_records["metrics"])
    arrays = [array.numpy() for array in reply.array_records["arrays"].values()]
    return arrays, metrics.pop("num-examples"), metrics


def bits(arrays: NDArrays) -> bytes:
    return b"".join(array.tobytes() for array in arrays)


def test_fit_returns_arrays_examples_and_metrics() -> None:
    arrays, examples, metrics = fit(client(), initial(), config())
    assert [(a.shape, a.dtype) for a in arrays] == [(a.shape, a.dtype) for a in initial()]
    assert bits(arrays) != bits(initial())
    assert examples == 40
    assert set(metrics) == {"train-loss", "train-seconds"}
    assert float(metrics["train-seconds"]) > 0
    assert float(metrics["train-loss"]) > 0


@pytest.mark.parametrize(
    "received",
    [config(momentum="reset"), config(momentum="local"), {"server-round": 1}],
    ids=["reset", "local", "a server without FixBN"],
)
def test_earlier_clients_of_the_process_do_not_change_the_result(received: dict[str, Any]) -> None:
    alone = bits(fit(client(0), initial(), received)[0])
    workbench.cache_clear()
    # Another client leaves weights, momentum, a learning rate, frozen layers and a random state.
    fit(client(1, learning_rate_schedule="cosine"), initial(), config(9, "calibration", factor=0.5))
    client(2, validation_share=0.2).evaluate(content(initial(), config()))
    assert bits(fit(client(0), initial(), received)[0]) == alone


def test_a_failed_training_does_not_affect_the_next_client() -> None:
    alone = bits(fit(client(0), initial(), config())[0])
    failing = client(1)
    failing.training = np.array([10**6])  # there is no such image
    with pytest.raises(IndexError):
        fit(failing, initial(), config(2, "calibration"))
    assert bits(fit(client(0), initial(), config())[0]) == alone


def test_a_client_continues_with_its_own_momentum() -> None:
    one = client(0)
    fit(one, initial(), config(1))
    second = bits(fit(one, initial(), config(2))[0])
    assert second != bits(fit(client(0), initial(), config(2))[0])  # it has no momentum yet
    other = client(0)
    fit(other, initial(), config(1))
    fit(client(1), initial(), config(1))
    assert bits(fit(other, initial(), config(2))[0]) == second


def test_seed_round_and_partition_each_change_the_batches() -> None:
    def loss(one: FixBNClient, server_round: int) -> str:
        return str(fit(one, initial(), config(server_round))[2]["train-loss"])

    same = [loss(client(0), 1), loss(client(0), 1)]
    assert same[0] == same[1]
    twin = client(1)
    twin.training = client(0).training  # the same images in another order
    others = [loss(client(0), 2), loss(twin, 1), loss(client(0, seed=1), 1)]
    assert len({same[0], *others}) == 4


def test_calibration_keeps_the_statistics_and_applies_the_factor() -> None:
    names = list(DIGITS.models["small-resnet"]("bn").state_dict())

    def trained(factor: float) -> dict[str, Any]:
        received = config(2, "calibration", factor=factor)
        return dict(zip(names, fit(client(local_steps=1), initial(), received)[0], strict=True))

    before = dict(zip(names, initial(), strict=True))
    full, tenth = trained(1.0), trained(0.1)
    for name in names:
        if "running" in name or "tracked" in name:
            assert np.array_equal(full[name], before[name]), name
        else:
            step = full[name] - before[name]
            assert np.any(step), name
            assert np.allclose(tenth[name] - before[name], 0.1 * step, atol=1e-7), name


def test_an_epoch_uses_each_image_of_the_client_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    forward = nn.Module.__call__

    def record(self: nn.Module, images: Any) -> Any:
        if images.shape[1:] == (1, 8, 8) and type(self).__name__ == "ResidualNetwork":
            seen.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(nn.Module, "__call__", record)
    fit(client(local_steps=0, local_epochs=2, batch_size=16), initial(), config())
    assert seen == [14, 13, 13] * 2


def test_the_properties_are_partition_examples_and_name() -> None:
    assert dict(client(3).properties().config_records["properties"]) == {
        "partition-id": 3, "num-partitions": 4, "examples": 40, "name": "",
        "input-size": [1, 8, 8],
    }  # fmt: skip


def test_evaluation_uses_the_images_that_the_client_holds_out() -> None:
    one = client(2, validation_share=0.2)
    metrics = one.evaluate(content(initial(), config())).metric_records["metrics"]
    train_split = load_splits(DIGITS)[0]
    bench = workbench(DIGITS, "small-resnet", "bn", 0.9, settings().weight_decay, "cpu", True)
    own = type(train_split)(train_split.images[one.validation], train_split.targets[one.validation])
    assert (metrics["loss"], metrics["accuracy"]) == evaluate(bench, DIGITS, own)
    assert metrics["num-examples"] == 8
    assert {*one.training} | {*one.validation} == {*range(80, 120)}
    assert fit(one, initial(), config())[1] == 32


def test_a_client_that_holds_out_no_image_reports_no_example() -> None:
    reply = client(2).evaluate(content(initial(), config()))
    assert dict(reply.metric_records["metrics"]) == {"num-examples": 0}


def test_a_client_never_trains_on_what_it_holds_out(monkeypatch: pytest.MonkeyPatch) -> None:
    one = client(1, validation_share=0.25, local_steps=0, local_epochs=3)
    seen: set[int] = set()
    train = image_client.train

    def record(bench: Any, task: Any, data: Any, batches: Any, *rest: Any, **more: Any) -> float:
        drawn = list(batches)
        seen.update(int(index) for batch in drawn for index in batch)
        return train(bench, task, data, iter(drawn), *rest, **more)

    monkeypatch.setattr(image_client, "train", record)
    for server_round in (1, 2, 3):
        again = client(1, validation_share=0.25, local_steps=0, local_epochs=3)
        assert again.validation.tolist() == one.validation.tolist()
        fit(again, initial(), config(server_round))
    assert seen == {*range(40, 80)} - {*one.validation.tolist()}
    assert len(seen) == 30
