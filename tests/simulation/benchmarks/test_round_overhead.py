"""What is compared, and the arithmetic; the seconds themselves are for a quiet machine to tell."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict

from fixbn_flwr.testing import SerializingGrid
from simulation.benchmarks import bare_exchange
from simulation.benchmarks.round_overhead import ADDED, BARE_APP, TASK, Rounds, copy_of_app, table


@pytest.mark.parametrize("before", [True, False])
def test_before_is_the_app_without_its_two_lines_for_real_machines(
    tmp_path: Path, before: bool
) -> None:
    app = copy_of_app(tmp_path / "app", before=before)
    assert (app / "pyproject.toml").is_file()
    for file, now, then in ADDED:
        text = (app / file).read_text()
        assert (now in text, then in text) == ((False, True) if before else (True, False))
        compile(text, file, "exec")


def test_the_model_is_as_large_as_the_measurement_says() -> None:
    state = TASK.models["resnet18"]("bn").state_dict()
    assert len(state) == 122
    assert sum(t.numel() * t.element_size() for t in state.values()) == pytest.approx(
        45e6, rel=0.02
    )


def test_the_table_shows_the_median_of_the_rounds_after_the_first() -> None:
    run = Rounds([30.0, 9.0, 7.0, 8.0], [1.0] * 4, [8.0, 6.0, 7.0], 0.5)
    assert table({"after": run}).splitlines()[1].split() == ["after", "7.0", "8.0,", "6.0,", "7.0"]


def test_a_bare_exchange_writes_down_the_seconds_of_each_round(tmp_path: Path) -> None:
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
    # Node 0 adds 1 and node 1 adds 2, and the server takes the mean: nothing is sent twice.
    assert [value - sent[0] for value in sent] == pytest.approx([0, 0, 1.5, 1.5, 3, 3], abs=1e-6)


def test_the_app_of_a_bare_exchange_names_what_there_is() -> None:
    app = tomllib.loads(BARE_APP)["tool"]["flwr"]["app"]
    names = [reference.split(":") for reference in app["components"].values()]
    assert [module for module, _ in names] == ["bare_exchange"] * 2
    assert all(hasattr(bare_exchange, attribute) for _, attribute in names)
    assert app["config"].keys() == {"nodes", "length", "rounds", "output"}
