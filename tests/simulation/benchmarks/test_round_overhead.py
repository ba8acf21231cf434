"""The variants of the app, and the arithmetic of the measurement."""

from __future__ import annotations

import importlib
import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fixbn_flwr.testing import SerializingGrid
from fixbn_flwr.transport.delegating_grid import DelegatingGrid
from fixbn_flwr.transport.packing import is_packed
from simulation.benchmarks import bare_exchange, overhead_client, overhead_server
from simulation.benchmarks.overhead_variants import Parts, variants
from simulation.benchmarks.random_images import TASK
from simulation.benchmarks.round_overhead import Rounds, make_app, report_of, table


def test_variants_are_all_parts_each_without_one_and_none() -> None:
    assert variants() == {
        "all parts": Parts(),
        "without packed arrays": Parts(packed_arrays=False),
        "without quick polling": Parts(quick_polling=False),
        "without worker": Parts(worker=False),
        "without momentum files": Parts(momentum_files=False),
        "no part": Parts(False, False, False, False),
    }


@pytest.mark.parametrize("parts", variants().values(), ids=variants())
def test_the_apps_of_a_variant_exist(parts: Parts) -> None:
    for reference, kind in ((parts.server_app, ServerApp), (parts.client_app, ClientApp)):
        module, attribute = reference.split(":")
        assert isinstance(getattr(importlib.import_module(module), attribute), kind)


def test_the_package_has_all_parts() -> None:
    assert Parts().server_app == "fixbn_flwr.app.server_app:app"
    assert Parts().client_app == "fixbn_flwr.app.client_app:app"
    assert Parts(packed_arrays=False).server_app == "simulation.benchmarks.overhead_server:quick"
    assert Parts(quick_polling=False).server_app == "simulation.benchmarks.overhead_server:packed"


class RecordingGrid(DelegatingGrid):
    """A Grid that records whether the arrays of its messages are packed."""

    def __init__(self, grid: Grid) -> None:
        super().__init__(grid)
        self.packed: list[bool] = []

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.packed += [is_packed(message.content) for message in messages]
        return super().push_messages(messages)


@pytest.mark.parametrize(
    ("wrapper", "packed", "pauses"),
    [(overhead_server.SlowlyPolledGrid, True, [3]), (overhead_server.UnpackedGrid, False, [0.1])],
)
def test_a_grid_lacks_one_part_and_has_the_other(
    wrapper: Any, packed: bool, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)

    class Late(RecordingGrid):
        """Has no reply yet when it is asked for the first time."""

        def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
            return super().pull_messages(message_ids) if slept else []

    flower = Late(SerializingGrid(bare_exchange.client, 2))
    grid = wrapper(flower)
    record = ArrayRecord({"values": Array(TASK.models["resnet18"]("bn").fc.bias.detach().numpy())})
    messages = [
        Message(RecordDict({"arrays": record}), node, "train") for node in grid.get_node_ids()
    ]
    replies = list(grid.send_and_receive(messages))
    assert len(replies) == 2
    assert not any(is_packed(reply.content) for reply in replies)
    assert flower.packed == [packed] * 2
    assert slept == pauses


def test_a_client_without_the_worker_has_the_other_mods() -> None:
    from fixbn_flwr.app import client_app
    from fixbn_flwr.app.worker.forwarder import worker_mod

    mods = overhead_client.app._mods
    assert mods == [mod for mod in client_app.app._mods if mod is not worker_mod]
    assert len(mods) == len(client_app.app._mods) - 1


def test_an_app_is_a_project_with_the_package_and_its_run_config(tmp_path: Path) -> None:
    config = {"task": "a:B", "local-steps": 1, "learning-rate": 0.5}
    app = make_app(tmp_path / "app", "a:server", "b:client", config)
    assert (app / "fixbn_flwr" / "app" / "server_app.py").is_file()
    written = tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert written["components"] == {"serverapp": "a:server", "clientapp": "b:client"}
    assert written["config"] == config


def test_the_model_has_122_arrays_and_45_mb() -> None:
    state = TASK.models["resnet18"]("bn").state_dict()
    assert len(state) == 122
    assert sum(t.numel() * t.element_size() for t in state.values()) == pytest.approx(
        45e6, rel=0.02
    )


def test_the_table_shows_medians_of_all_rounds_but_the_first_and_what_a_part_saves() -> None:
    measured = {
        "all parts": [
            Rounds([30.0, 9.0, 7.0], [1.0] * 3, 0.5),
            Rounds([30.0, 8.0], [1.0, 2.0], 0.5),
        ],
        "without worker": [Rounds([30.0, 13.0], [1.0] * 2, 0.5)],
        "no part": [Rounds([30.0, 21.0], [1.0] * 2, 0.5)],
    }
    lines = table(measured).splitlines()
    assert lines[1].split() == ["all", "parts", "6.0", "8.0,", "6.0,", "6.0"]
    assert lines[2].split() == ["without", "worker", "12.0", "50%", "12.0"]
    assert lines[3].split() == ["no", "part", "20.0", "20.0"]
    assert report_of(measured)["all parts"]["outside"] == [8.0, 6.0, 6.0]
    assert report_of(measured)["no part"]["repetitions"] == [
        {"seconds": [30.0, 21.0], "train_seconds": [1.0, 1.0], "load": 0.5}
    ]


def test_a_bare_exchange_writes_the_seconds_of_each_round(tmp_path: Path) -> None:
    output = tmp_path / "seconds.json"
    config = {"nodes": 2, "length": 5, "rounds": 3, "output": str(output)}
    sent: list[float] = []

    def lost(message: Message) -> bool:
        sent.append(float(message.content["arrays"]["values"].numpy()[0]))
        return False

    grid = SerializingGrid(bare_exchange.client, 2, run_config=config, lost=lost)
    context = Context(
        run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(config)
    )
    bare_exchange.server(grid, context)
    seconds = json.loads(output.read_text())
    assert len(seconds) == 3
    assert all(value > 0 for value in seconds)
    # Node 0 adds 1, node 1 adds 2 and the server takes the mean, so nothing is sent twice.
    assert [value - sent[0] for value in sent] == pytest.approx([0, 0, 1.5, 1.5, 3, 3], abs=1e-6)
