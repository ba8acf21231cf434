"""States of clients on disk: each client's own, in place of its previous one."""

from __future__ import annotations

import os
import random

from fixbn_flwr.engine.client_states import ClientStates, State


def test_each_client_has_its_last_state() -> None:
    states, expected = ClientStates(), {}
    generator = random.Random(0)
    for _ in range(300):
        client = generator.randrange(20)
        parts = [generator.randbytes(generator.randrange(200)) for _ in range(3)]
        state = State(parts[0], parts[1:])
        states.put(client, state)
        expected[client] = state
    assert {client: states.get(client) for client in expected} == expected
    assert states.get(99) is None
    states.close()


def test_a_state_of_the_same_length_takes_no_more_disk() -> None:
    states = ClientStates()
    for content in (b"a", b"b", b"c"):
        for client in range(5):
            states.put(client, State(b"h", [content * 1000]))
    assert os.fstat(states._file.fileno()).st_size <= 5 * 1001
    assert states.get(3) == State(b"h", [b"c" * 1000])
    states.close()


def test_a_growing_state_leaves_little_behind() -> None:
    states = ClientStates()
    for length in range(1, 2000):
        states.put(7, State(b"h", [bytes(length)]))
    assert os.fstat(states._file.fileno()).st_size <= 4 * 2000
    states.close()


def test_closing_on_a_full_disk_raises_no_second_error() -> None:
    states = ClientStates()
    states._file.close()
    states._file = open("/dev/full", "w+b")  # noqa: SIM115
    states.put(1, State(b"h", [b"momentum"]))  # still in the file's buffer
    states.close()
