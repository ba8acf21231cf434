"""The engine's Grid: the bits of the in-memory grid with any number of workers, and failures."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fixbn_flwr import FixBN
from fixbn_flwr.engine.client_states import ClientStates
from fixbn_flwr.engine.local_grid import LocalGrid
from fixbn_flwr.engine.simulated_grid import FIRST_NODE_ID
from fixbn_flwr.errors import WorkerError
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import partition_of, training_app
from tests.support.older_federation import fixbn
from tests.support.older_generation import numpy_app, run_older
from tests.support.small_federation import CLIENTS, batches, fedavg, federation, network, same
from tests.support.waiting import wait_until

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def app() -> ClientApp:
    return training_app(network, batches)


@pytest.fixture(scope="module")
def expected() -> dict[int, dict[str, np.ndarray]]:
    return federation(FixBN(fedavg(), freeze_after=2))[1]


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_the_bits_are_those_of_one_process(workers: int, expected: Any) -> None:
    with LocalGrid(app, CLIENTS, workers=workers) as grid:
        _, of_round = federation(FixBN(fedavg(), freeze_after=2), grid=grid)  # type: ignore[arg-type]
    assert all(same(of_round[r], expected[r]) for r in expected)


@pytest.mark.parametrize("momentum", ["reset", "global"])
def test_every_momentum_mode_has_the_same_bits(momentum: Any) -> None:
    def run(grid: Any) -> Any:
        return federation(FixBN(fedavg(), freeze_after=2, momentum=momentum), grid=grid)[1]

    with LocalGrid(app, CLIENTS, workers=2) as grid:
        of_round, in_process = run(grid), run(SerializingGrid(app(), CLIENTS))
    assert all(same(of_round[r], in_process[r]) for r in in_process)


def test_the_older_generation_has_the_same_bits() -> None:
    def client() -> ClientApp:
        return numpy_app(network, batches)

    in_process = run_older(fixbn(), client(), 4)
    with LocalGrid(client, 4, workers=2) as grid:
        of_round = run_older(fixbn(), client(), 4, grid=grid)  # type: ignore[arg-type]
    for server_round, arrays in in_process.items():
        for one, other in zip(arrays, of_round[server_round], strict=True):
            assert np.array_equal(one, other)


def asking(**answers: Any) -> ClientApp:
    """An app whose clients do what the message's config says, and count in their state."""
    client = ClientApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        config = message.content.config_records["config"]
        count = int(context.state.config_records.get("count", {"n": 0})["n"]) + 1  # type: ignore[arg-type]
        context.state["count"] = ConfigRecord({"n": count, "blob": bytes(10_000)})
        action = config["do"] if partition_of(context) == config["client"] else "answer"
        if action == "wait":
            wait_until(Path(str(config["until"])).exists, "the file is there")
        if action == "raise":
            raise RuntimeError("no disk")
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "segfault":
            ctypes.string_at(0)
        if action == "exit":
            os._exit(3)
        if action == "forget":
            return None  # type: ignore[return-value]
        metrics = MetricRecord({"count": count, "process": os.getpid()})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return client


@pytest.fixture
def grid() -> Iterator[LocalGrid]:
    with LocalGrid(asking, 4, workers=2) as grid:
        yield grid


def messages_of(grid: LocalGrid, do: str = "answer", client: int = 2, until: str = "") -> Any:
    """Return a message for each client, which tells one of them to do something else."""
    config = ConfigRecord({"do": do, "client": client, "until": until})
    return [
        Message(RecordDict({"config": config}), node_id, "train") for node_id in grid.get_node_ids()
    ]


def exchange(grid: LocalGrid, do: str = "answer", client: int = 2) -> dict[int, Message]:
    """Send each client a message, and return the replies by partition."""
    replies = grid.send_and_receive(messages_of(grid, do, client))
    return {reply.metadata.src_node_id - FIRST_NODE_ID: reply for reply in replies}


def counts(replies: dict[int, Message]) -> dict[int, int]:
    return {
        client: int(reply.content.metric_records["metrics"]["count"])  # type: ignore[arg-type]
        for client, reply in sorted(replies.items())
        if reply.has_content()
    }


def test_each_client_keeps_its_state_whichever_worker_runs_it(grid: LocalGrid) -> None:
    for number in (1, 2, 3):
        assert counts(exchange(grid)) == dict.fromkeys(range(4), number)


@pytest.mark.parametrize(
    ("do", "reason"),
    [("kill", "SIGKILL"), ("segfault", "SIGSEGV"), ("exit", "exit code 3")],
)
def test_a_worker_that_ends_is_one_failed_client(
    grid: LocalGrid, do: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    exchange(grid)
    replies = exchange(grid, do)
    assert counts(replies) == {0: 2, 1: 2, 3: 2}
    assert f"its process ended ({reason})" in replies[2].error.reason
    (line,) = [r.getMessage() for r in caplog.records if "its process ended" in r.getMessage()]
    assert line.startswith(f"client {FIRST_NODE_ID + 2}, worker ")
    # Its state is that of its last reply, as in Flower's simulation.
    assert counts(exchange(grid)) == {0: 3, 1: 3, 2: 2, 3: 3}


def test_an_exception_is_an_error_reply_and_leaves_the_state(grid: LocalGrid) -> None:
    exchange(grid)
    replies = exchange(grid, "raise")
    assert replies[2].error.reason == "<class 'RuntimeError'>:<'no disk'>"
    assert counts(exchange(grid)) == {0: 3, 1: 3, 2: 2, 3: 3}


def test_an_app_that_forgets_to_return_is_told_so(grid: LocalGrid) -> None:
    replies = exchange(grid, "forget")
    assert counts(replies) == {0: 1, 1: 1, 3: 1}
    assert "the ClientApp returned None, not a Message: return one." in replies[2].error.reason


def test_two_messages_of_one_client_are_answered_in_turn(grid: LocalGrid) -> None:
    config = ConfigRecord({"do": "answer", "client": 0})
    messages = [Message(RecordDict({"config": config}), FIRST_NODE_ID, "train") for _ in range(6)]
    replies = {r.metadata.reply_to_message_id: r for r in grid.send_and_receive(messages)}
    numbers = [
        replies[message.metadata.message_id].content.metric_records["metrics"]["count"]
        for message in messages
    ]
    assert sorted(numbers) == [1, 2, 3, 4, 5, 6]  # type: ignore[type-var]


def test_replies_after_the_timeout_are_not_returned(grid: LocalGrid) -> None:
    exchange(grid)  # the workers have started
    message = Message(
        RecordDict({"config": ConfigRecord({"do": "answer", "client": 0})}), FIRST_NODE_ID, "train"
    )
    assert list(grid.send_and_receive([message], timeout=0)) == []
    assert list(grid.send_and_receive([])) == []


def test_a_message_that_no_worker_has_started_by_the_timeout_is_forgotten(tmp_path: Path) -> None:
    file = tmp_path / "go"
    with LocalGrid(asking, 4, workers=1) as grid:
        first, *others = messages_of(grid, "wait", 0, until=str(file))
        (busy,) = grid.push_messages([first])
        assert list(grid.send_and_receive(others, timeout=0)) == []
        file.touch()
        assert counts(exchange(grid)) == {0: 2, 1: 1, 2: 1, 3: 1}
        assert [r.metadata.reply_to_message_id for r in grid.pull_messages([busy])] == [busy]
        assert not grid._replies


def test_a_reply_after_the_timeout_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "go"
    with LocalGrid(asking, 4, workers=1) as grid:
        exchange(grid)
        first, *_ = messages_of(grid, "wait", 0, until=str(file))
        assert list(grid.send_and_receive([first], timeout=0.5)) == []
        file.touch()
        exchange(grid)
        assert not grid._replies


def broken() -> ClientApp:
    raise ImportError("no module named nothing")


def test_an_app_that_cannot_be_loaded_ends_the_run_with_its_traceback() -> None:
    with (
        LocalGrid(broken, 2, workers=2) as grid,
        pytest.raises(WorkerError, match="cannot start") as caught,
    ):
        exchange(grid)
    assert "ImportError: no module named nothing" in str(caught.value)


def fall_over(_: int) -> None:
    os._exit(7)


def test_workers_that_end_while_they_start_end_the_run() -> None:
    with (
        LocalGrid(app, 2, workers=1, prepare=lambda: fall_over) as grid,
        pytest.raises(WorkerError, match=r"3 .* ended while they started \(exit code 7\)"),
    ):
        exchange(grid)


def fall_over_once(mark: Path, _: int) -> None:
    if not mark.exists():
        mark.touch()
        os._exit(7)


def test_a_worker_that_ends_while_it_starts_is_replaced(tmp_path: Path) -> None:
    start = partial(fall_over_once, tmp_path / "mark")
    with LocalGrid(asking, 2, workers=1, prepare=lambda: start) as grid:
        assert counts(exchange(grid)) == {0: 1, 1: 1}


def test_a_full_disk_ends_the_run_with_the_remedy(
    grid: LocalGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    def put(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ClientStates, "put", put)
    with pytest.raises(WorkerError, match=r"No space left on device.*set TMPDIR to a larger disk"):
        exchange(grid)


def workers_of(grid: LocalGrid) -> set[int]:
    replies = exchange(grid).values()
    return {int(r.content.metric_records["metrics"]["process"]) for r in replies}  # type: ignore[arg-type]


def test_the_end_of_the_block_ends_the_workers() -> None:
    with LocalGrid(asking, 4, workers=2) as grid:
        processes = workers_of(grid)
        assert len(processes) in (1, 2)
        assert os.getpid() not in processes
    assert not any(Path(f"/proc/{process}").exists() for process in processes)


def test_replies_come_in_the_order_of_the_messages(grid: LocalGrid) -> None:
    """A strategy that does not sort them must sum in the same order in each process."""
    exchange(grid)
    for _ in range(3):
        assert list(exchange(grid)) == [0, 1, 2, 3]
