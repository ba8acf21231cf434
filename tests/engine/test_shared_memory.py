"""Shared memory grows, keeps what is there, and is seen by another process."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

from fixbn_flwr.engine.message_board import MessageBoard
from fixbn_flwr.engine.shared_memory import SharedMemory


def test_it_grows_and_keeps_its_content() -> None:
    memory = SharedMemory()
    (first,) = memory.write([b"a" * 100])
    view = memory.read(first)
    (second,) = memory.write([b"b" * 100_000], 100)
    assert bytes(view) == b"a" * 100
    assert bytes(memory.read(second)) == b"b" * 100_000
    assert memory.write([]) == []
    assert memory.write([b""]) == [(0, 0)]
    assert bytes(memory.read((0, 0))) == b""
    memory.close()


def echo(memory: SharedMemory, connection: Connection[Any, Any]) -> None:
    """Write what the server wrote, twice, far behind it."""
    while True:
        place = connection.recv()
        if place is None:
            return
        connection.send(memory.write([bytes(memory.read(place)) * 2], sum(place) + 50_000)[0])


def test_another_process_reads_and_writes_it_while_it_grows() -> None:
    memory, context = SharedMemory(), multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe()
    process = context.Process(target=echo, args=(memory, theirs))
    process.start()
    for length in (10, 1000, 300_000):
        (place,) = memory.write([b"x" * length])
        ours.send(place)
        assert bytes(memory.read(ours.recv())) == b"x" * 2 * length
    ours.send(None)
    process.join()
    assert process.exitcode == 0


def test_the_board_is_used_again_when_all_messages_have_replies() -> None:
    board, array = MessageBoard(), bytes(5000)
    (first,) = board.write(b"", [memoryview(array)]).places
    (other,) = board.write(b"", [memoryview(bytes(3000))]).places
    assert (first, other) == ((0, 5000), (5000, 3000))
    board.release()
    assert board.write(b"", [memoryview(array)]).places == [first]
    board.release()
    board.release()
    assert board.write(b"", [memoryview(bytes(3000))]).places == [(0, 3000)]
    board.close()
