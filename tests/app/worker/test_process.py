"""Worker processes stay alive between messages, give the same bits, and end with their node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fixbn_flwr.app.client_app import app
from fixbn_flwr.app.worker import forwarder
from fixbn_flwr.app.worker.forwarder import (
    CODE,
    Forwarder,
    NodeProcess,
    started_at,
    worker_mod,
)
from fixbn_flwr.array_records import arrays_of, record_of
from fixbn_flwr.client.momentum_store import KEY
from fixbn_flwr.errors import ConfigError, WorkerError
from fixbn_flwr.flower_compat import TaskIdentity
from fixbn_flwr.method.round_config import Momentum, RoundConfig
from fixbn_flwr.method.schedule import Phase
from fixbn_flwr.tasks import get_task
from fixbn_flwr.transport.packing import Packer, unpack
from tests.support.waiting import TIMEOUT, wait_until
from tests.support.whole_app import SMALL


@pytest.fixture
def nodes() -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Return a function that starts a process in place of a node's SuperExec."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        started.append(subprocess.Popen(["sleep", "3600"]))
        return started[-1]

    yield start
    for process in started:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a node, and wait for its workers to end."""
    process.kill()
    process.wait()
    wait_until(lambda: not workers_of(process.pid), "the workers ended")


@pytest.fixture(scope="module")
def shared() -> Iterator[subprocess.Popen[bytes]]:
    """Start a node whose worker serves all tests, since a new one imports torch for seconds."""
    process = subprocess.Popen(["sleep", "3600"])
    yield process
    end(process)


@pytest.fixture(scope="module")
def sockets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a directory whose path is longer than the kernel allows for a socket."""
    directory: Path = tmp_path_factory.mktemp("sockets" * 16)
    return directory


@pytest.fixture
def node(nodes: Callable[[], subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    return nodes()


@pytest.fixture(autouse=True)
def one_thread_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


def make_forwarder(directory: Path, node: subprocess.Popen[bytes], **options: Any) -> Forwarder:
    started = started_at(node.pid)
    assert started is not None
    return Forwarder(directory, NodeProcess(node.pid, started), **options)


def workers_of(node: int) -> list[int]:
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"fixbn_flwr.app.worker.process" in words and str(node).encode() in words:
            found.append(int(file.parent.name))
    return found


def sockets_in(directory: Path) -> list[Path]:
    return [path for path in directory.iterdir() if path.is_socket()]


def context_of(partition: int = 0, **run_config: Any) -> Context:
    node_config = {"partition-id": partition, "num-partitions": 2}
    return Context(7, 5, node_config, RecordDict(), SMALL | run_config)


def train_message(server_round: int, *, packed: bool = True) -> Message:
    torch.manual_seed(0)
    model = get_task("digits").models["small-resnet"]("bn")
    arrays = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    config = RoundConfig(server_round, Phase.EXPLORATION, Momentum.LOCAL, 1.0)
    content = RecordDict(
        {"arrays": record_of(arrays), "config": ConfigRecord(dict(config.as_config()))}
    )
    if packed:
        content = Packer().pack(content)
    message = Message(content, dst_node_id=5, message_type="train")
    message.metadata.__dict__["_message_id"] = f"round-{server_round}"
    return message


def saved_buffers(context: Context) -> dict[str, torch.Tensor]:
    content = context.state.config_records[KEY][KEY]
    assert isinstance(content, bytes)
    return safetensors.torch.load(content)


def bits(content: RecordDict) -> dict[str, bytes]:
    arrays = arrays_of(unpack(content).array_records["arrays"])
    return {name: array.tobytes() for name, array in arrays.items()}


def test_one_worker_answers_all_messages_with_the_bits_of_this_process(
    sockets: Path, shared: subprocess.Popen[bytes]
) -> None:
    worker_context, own_context = context_of(), context_of()
    workers = set()
    for server_round in (1, 2, 3):
        reply = make_forwarder(sockets, shared).answer(train_message(server_round), worker_context)
        expected = app(train_message(server_round), own_context)
        assert reply.has_content(), reply.error
        assert len(reply.content.array_records["arrays"]) == 2  # packed, as the message was
        assert bits(reply.content) == bits(expected.content)
        assert reply.metadata.reply_to_message_id == f"round-{server_round}"
        # the momentum returns to the node's context
        buffers, expected_buffers = (saved_buffers(c) for c in (worker_context, own_context))
        assert buffers.keys() == expected_buffers.keys() != set()
        assert all(torch.equal(buffers[name], expected_buffers[name]) for name in buffers)
        workers |= set(workers_of(shared.pid))
    assert len(workers) == 1


def test_a_worker_keeps_momentum_in_the_state_dir(
    tmp_path: Path, sockets: Path, shared: subprocess.Popen[bytes]
) -> None:
    context = context_of(**{"state-dir": str(tmp_path / "state")})
    make_forwarder(sockets, shared).answer(train_message(1), context)
    assert not context.state
    assert (tmp_path / "state" / "7" / "partition-0" / "round-1.safetensors").is_file()


@pytest.mark.slow
def test_two_nodes_have_two_workers_and_each_ends_with_its_node(
    tmp_path: Path, nodes: Callable[[], subprocess.Popen[bytes]]
) -> None:
    pair = [nodes(), nodes()]
    for partition, node in enumerate(pair):
        reply = make_forwarder(tmp_path, node).answer(train_message(1), context_of(partition))
        assert reply.has_content(), reply.error
    (first,), (second,) = (workers_of(node.pid) for node in pair)
    assert first != second
    pair[0].kill()  # becomes a zombie, which counts as ended
    wait_until(lambda: not workers_of(pair[0].pid), "the worker ended")
    assert workers_of(pair[1].pid) == [second]
    assert [path.name.split("-")[0] for path in sockets_in(tmp_path)] == [str(pair[1].pid)]


def test_a_clients_exception_gives_flowers_error_reply_and_the_worker_survives(
    sockets: Path, shared: subprocess.Popen[bytes]
) -> None:
    context = context_of()
    del context.node_config["partition-id"]
    reply = make_forwarder(sockets, shared).answer(train_message(1), context)
    with pytest.raises(ConfigError) as caught:
        app(train_message(1), context)
    assert reply.error.code == 2
    assert reply.error.reason == f"{type(caught.value)}:<'{caught.value}'>"
    assert reply.metadata.src_node_id == 5
    assert make_forwarder(sockets, shared).answer(train_message(1), context_of()).has_content()
    assert len(workers_of(shared.pid)) == 1


def test_a_worker_that_is_killed_gives_an_error_and_the_next_message_starts_another(
    tmp_path: Path, node: subprocess.Popen[bytes]
) -> None:
    context = context_of()
    make_forwarder(tmp_path, node).answer(train_message(1), context)
    saved_buffers = context.state.config_records["fixbn-momentum"]
    (worker,) = workers_of(node.pid)
    before = processor_time(worker)
    long = subprocess.Popen(
        [sys.executable, "-c", FORWARDED, *arguments(tmp_path, node, steps=10**6)],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: processor_time(worker) > before + 1.0, "the worker trained", process=long)
    os.kill(worker, signal.SIGKILL)
    stderr = long.communicate(timeout=TIMEOUT)[1]
    assert "WorkerError: the worker process of this node ended while it handled a" in stderr
    assert "The next message starts a new worker." in stderr
    reply = make_forwarder(tmp_path, node).answer(train_message(2), context)
    assert reply.has_content()
    assert workers_of(node.pid) != [worker]
    assert context.state.config_records["fixbn-momentum"] != saved_buffers


@pytest.mark.slow
def test_cancelling_a_message_stops_its_training(
    tmp_path: Path, node: subprocess.Popen[bytes]
) -> None:
    make_forwarder(tmp_path, node).answer(train_message(1), context_of())
    (worker,) = workers_of(node.pid)
    before = processor_time(worker)
    long = subprocess.Popen(
        [sys.executable, "-c", FORWARDED, *arguments(tmp_path, node, steps=10**6)]
    )
    wait_until(lambda: processor_time(worker) > before + 1.0, "the worker trained", process=long)
    long.kill()  # as `flwr stop` does
    long.wait()
    wait_until(lambda: not workers_of(node.pid), "the worker ended")


# A process that forwards one message, as Flower's process does.
FORWARDED = """
import sys
sys.path.insert(0, sys.argv[4])
from pathlib import Path
import tests.app.worker.test_process as t
t.TaskIdentity.task_id = t.TaskIdentity.run_id = t.TaskIdentity.node_id = 1
node = t.NodeProcess(int(sys.argv[2]), t.started_at(int(sys.argv[2])))
forwarder = t.Forwarder(Path(sys.argv[1]), node)
forwarder.answer(t.train_message(2), t.context_of(**{"local-steps": int(sys.argv[3])}))
"""


def arguments(directory: Path, node: subprocess.Popen[bytes], steps: int) -> list[str]:
    return [str(directory), str(node.pid), str(steps), CODE]


def processor_time(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.slow
def test_an_idle_worker_ends_and_leaves_no_socket(
    sockets: Path, node: subprocess.Popen[bytes]
) -> None:
    make_forwarder(sockets, node, idle=0.5).answer(train_message(1), context_of())
    wait_until(lambda: not workers_of(node.pid), "the worker ended")
    assert not [path for path in sockets_in(sockets) if path.name.startswith(f"{node.pid}-")]
    assert make_forwarder(sockets, node).answer(train_message(2), context_of()).has_content()


@pytest.mark.slow
def test_other_code_or_another_run_gets_another_worker(
    tmp_path: Path, node: subprocess.Popen[bytes]
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "fixbn_flwr").symlink_to(Path(CODE) / "fixbn_flwr")
    workers = set()
    for code, run in ((CODE, 7), (str(copy), 7), (str(copy), 8)):
        message = train_message(1)
        message.metadata.__dict__["_run_id"] = run
        reply = make_forwarder(tmp_path, node, code=code).answer(message, context_of())
        assert reply.has_content(), reply.error
        (worker,) = workers_of(node.pid)  # the previous one has ended
        workers.add(worker)
    assert len(workers) == 3


@pytest.mark.slow
def test_a_worker_that_cannot_start_raises_a_worker_error(
    tmp_path: Path, node: subprocess.Popen[bytes]
) -> None:
    (tmp_path / "fixbn_flwr").mkdir()
    (tmp_path / "fixbn_flwr" / "__init__.py").write_text("raise ImportError('broken')")
    with pytest.raises(WorkerError, match=r"ended before it could take a message; the node's log"):
        make_forwarder(tmp_path, node, code=str(tmp_path)).answer(train_message(1), context_of())


@pytest.mark.slow
def test_the_socket_of_a_killed_worker_is_replaced(
    tmp_path: Path, node: subprocess.Popen[bytes]
) -> None:
    make_forwarder(tmp_path, node).answer(train_message(1), context_of())
    os.kill(workers_of(node.pid)[0], signal.SIGKILL)
    wait_until(lambda: not workers_of(node.pid), "the worker ended")
    assert make_forwarder(tmp_path, node).answer(train_message(2), context_of()).has_content()


def test_the_socket_is_in_a_directory_that_only_this_user_can_enter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forwarder.tempfile, "gettempdir", lambda: str(tmp_path))
    directory = forwarder._socket_directory()
    assert directory.stat().st_mode & 0o777 == 0o700
    assert forwarder._socket_directory() == directory
    directory.chmod(0o755)
    with pytest.raises(ConfigError, match=r"is not a directory of user .* with mode 0700"):
        forwarder._socket_directory()
    directory.rmdir()
    directory.symlink_to("/")
    with pytest.raises(ConfigError, match=r"Remove it, or start .* with TMPDIR set"):
        forwarder._socket_directory()


def test_only_a_process_per_message_forwards_its_message(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert NodeProcess.of_this_process() is None
    message, context = train_message(1), context_of()
    assert worker_mod(message, context, lambda m, c: m) is message
    monkeypatch.setattr(sys, "argv", ["/somewhere/flwr-clientapp", "--token", "x"])
    assert NodeProcess.of_this_process() == NodeProcess(os.getppid(), started_at(os.getppid()) or 0)
    # Flower removes the dependencies that it installs for one message.
    monkeypatch.setattr(sys, "path", [*sys.path, "/home/.flwr/runtime-envs/1/lib"])
    assert NodeProcess.of_this_process() is None


def test_the_forwarding_process_imports_neither_torch_nor_scikit_learn() -> None:
    code = (
        "import sys, json; from fixbn_flwr.app.client_app import app; "
        "print(json.dumps([m for m in ('torch', 'sklearn', 'matplotlib', 'ray') "
        "if m in sys.modules]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert json.loads(result.stdout) == []


def test_a_message_trains_the_model() -> None:
    """The tests above compare the results of training: it changes the arrays."""
    trained = arrays_of(app(train_message(1, packed=False), context_of()).content["arrays"])
    sent = arrays_of(train_message(1, packed=False).content.array_records["arrays"])
    assert any(np.any(trained[name] != sent[name]) for name in sent)
