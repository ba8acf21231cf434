"""Clients that keep layers to themselves, as FedPer's do: the server has only the shared part."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from torch.optim import SGD

from fixbn_flwr import FixBN, local_training
from fixbn_flwr.errors import ReplyError
from fixbn_flwr.method.averaging import Kind, kind_of
from fixbn_flwr.server.model_names import check_names
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import partition_of, sgd_step
from tests.support.small_federation import CLIENTS, batches, network

PRIVATE = ("last.weight", "last.bias")


def shared(arrays: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in arrays.items() if name not in PRIVATE}


def app() -> ClientApp:
    made = ClientApp()

    @made.train()
    def train(message: Message, context: Context) -> Message:
        model = network()
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict(), False)
        if "head" in context.state:
            head = context.state.array_records["head"]
            model.load_state_dict(head.to_torch_state_dict(), strict=False)
        optimizer = SGD(model.parameters(), 0.05, momentum=0.9)
        with local_training(model, optimizer, message.content, context) as local:
            for batch in batches(partition_of(context), 1):
                sgd_step(model, optimizer, batch)
        state = model.state_dict()
        context.state["head"] = ArrayRecord({name: state[name] for name in PRIVATE})
        metrics = MetricRecord({"num-examples": 8})
        arrays = ArrayRecord(shared(state))
        content = RecordDict({"arrays": arrays, "metrics": metrics, **local.records})
        return Message(content, reply_to=message)

    return made


def test_the_shared_part_is_averaged_and_frozen_and_the_private_part_stays_with_its_client() -> (
    None
):
    of_round: dict[int, dict[str, np.ndarray]] = {}

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        of_round[server_round] = {name: a.numpy() for name, a in arrays.items()}

    grid = SerializingGrid(app(), CLIENTS)
    strategy = FixBN(FedAvg(fraction_evaluate=0.0), freeze_after=2)
    initial = ArrayRecord(shared(network().state_dict()))
    result = strategy.start(grid, initial, 4, evaluate_fn=evaluate)
    assert set(result.arrays) == set(shared(network().state_dict()))
    assert all(metrics["fixbn-clients"] == CLIENTS for metrics in (
        result.train_metrics_clientapp.values()))  # fmt: skip
    for name, value in of_round[2].items():
        frozen = kind_of(name) in (Kind.STATISTIC, Kind.COUNTER)
        assert np.array_equal(value, of_round[4][name]) is frozen or name == "positions", name
    heads = [
        context.state.array_records["head"]["last.weight"].numpy()
        for context in grid.contexts.values()
    ]
    for one in range(CLIENTS):
        for other in range(one):
            assert not np.array_equal(heads[one], heads[other])


def test_a_reply_with_fewer_names_says_how_to_share_a_part() -> None:
    sent = {name: value.numpy() for name, value in network().state_dict().items()}
    with pytest.raises(ReplyError, match="give start\\(\\) initial arrays without them"):
        check_names(shared(network().state_dict()), sent)
