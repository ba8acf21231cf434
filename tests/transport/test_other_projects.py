"""Users' projects with the transport: one line on each side, and the errors without one."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.serverapp import Grid
from flwr.serverapp import ServerApp as NewServerApp
from flwr.serverapp.strategy import FedAvg

from fixbn_flwr import FixBN
from fixbn_flwr.array_records import arrays_of
from fixbn_flwr.errors import RoundsFailedError
from fixbn_flwr.testing import SerializingGrid
from fixbn_flwr.transport import packed_grid
from fixbn_flwr.transport.packed_grid import PackedGrid, flat_arrays_mod
from fixbn_flwr.transport.packing import is_packed
from tests.support.clients import initial_arrays, training_app
from tests.support.older_federation import fixbn as older_fixbn
from tests.support.older_generation import Watched, numpy_app
from tests.support.small_federation import batches, network
from tests.support.wire import Wire

CLIENTS, ROUNDS = 2, 4
REMEDY = "add flat_arrays_mod of fixbn_flwr to its ClientApp, as the first of its mods"


@pytest.fixture(autouse=True)
def poll_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed_grid, "QUICKEST", 0.001)


def run(grid: Grid, **strategy: Any) -> dict[str, bytes]:
    """Run a Message API project; return the bits of its model."""
    result = FixBN(FedAvg(**strategy), freeze_after=2).start(
        grid, initial_arrays(network()), num_rounds=ROUNDS
    )
    return {name: array.tobytes() for name, array in arrays_of(result.arrays).items()}


def test_a_packed_message_api_project_has_the_same_bits() -> None:
    app = training_app(network, batches, mods=[flat_arrays_mod])
    wire = Wire(app, CLIENTS)
    assert run(PackedGrid(wire)) == run(SerializingGrid(app, CLIENTS))
    # Evaluation messages contain arrays, their replies do not.
    for message in wire.sent:
        assert is_packed(message.content)
        assert len(message.content.array_records["arrays"]) == 2  # float32 and int64
    trained = [reply for reply in wire.received if reply.metadata.message_type == "train"]
    assert len(trained) == CLIENTS * ROUNDS
    assert all(is_packed(reply.content) for reply in trained)


def run_older(grid: Grid, *, flat: bool) -> list[bytes]:
    """Run a project of the older generation, with the transport as its module describes."""
    watched = Watched(older_fixbn())

    def server_fn(_: Context) -> ServerAppComponents:
        config = ServerConfig(num_rounds=ROUNDS)
        return ServerAppComponents(strategy=watched.strategy, config=config)

    older = ServerApp(server_fn=server_fn)
    app = NewServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        older(PackedGrid(grid) if flat else grid, context)

    app(grid, Context(1, 1, {}, RecordDict(), {}))
    return [array.tobytes() for array in watched.of_round[ROUNDS]]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_packed_project_of_the_older_generation_has_the_same_bits() -> None:
    app = numpy_app(network, batches, mods=[flat_arrays_mod])
    wire = Wire(app, CLIENTS)
    assert run_older(wire, flat=True) == run_older(SerializingGrid(app, CLIENTS), flat=False)
    assert len(wire.sent) == CLIENTS * ROUNDS
    for message in (*wire.sent, *wire.received):
        assert is_packed(message.content)


def test_a_client_without_the_mod_fails_and_the_error_states_the_remedy() -> None:
    """The client itself fails, because it does not find the names of the arrays."""
    wire = Wire(training_app(network, batches), CLIENTS)
    with pytest.raises(RoundsFailedError) as failure:
        run(PackedGrid(wire), fraction_evaluate=0.0)
    assert str(failure.value).count(REMEDY) == CLIENTS
    assert "Missing key(s) in state_dict" in str(failure.value)


def test_a_client_without_the_mod_that_does_not_fail_is_dropped_with_the_remedy() -> None:
    """The client would train its own weights, whose average would look like a valid model."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = ArrayRecord(network().state_dict())
        metrics = MetricRecord({"num-examples": 8})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)

    with pytest.raises(RoundsFailedError) as failure:
        run(PackedGrid(Wire(app, CLIENTS)), fraction_evaluate=0.0)
    message = f"it cannot have read its message, whose arrays are packed: {REMEDY}."
    assert str(failure.value).count(message) == CLIENTS


def test_a_failing_client_with_the_mod_is_not_asked_to_add_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if message.content.config_records["config"]["server-round"] == 2:
            raise RuntimeError("the disk is full")
        return call_next(message, context)

    app = training_app(network, batches, mods=[flat_arrays_mod, fails])
    with caplog.at_level(logging.WARNING, logger="flwr"):
        run(PackedGrid(Wire(app, CLIENTS)), fraction_evaluate=0.0)
    assert caplog.text.count("the disk is full") == CLIENTS
    assert "flat_arrays_mod" not in caplog.text


def test_the_mark_of_an_unpacked_message_never_reaches_a_strategy() -> None:
    app = training_app(network, batches, mods=[flat_arrays_mod])
    content = RecordDict({"arrays": ArrayRecord({"w": Array(np.ones(3))})})
    wire = Wire(app, 1)
    message = Message(content, dst_node_id=1000, message_type="evaluate")
    (reply,) = PackedGrid(wire).send_and_receive([message])
    assert "fixbn-unpacked" in wire.received[0].content
    assert list(reply.content) == ["metrics"]
