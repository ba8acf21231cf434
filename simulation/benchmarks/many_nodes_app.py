"""A Flower app that counts what many SuperNodes answer, and what is lost.

`python -m simulation.benchmarks load` runs it. In each round, the next few of the connected nodes
get a small array and add 1 to it. The clients do not import PyTorch, so many fit on one machine.
"""

from __future__ import annotations

import json
import time
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from fixbn_flwr.transport.packed_grid import flat_arrays_mod, flat_in_deployment

ARRAYS, VALUES = "arrays", "values"
LENGTH = 1000
TIMEOUT = 300.0  # seconds

server = ServerApp()
client = ClientApp(mods=[flat_arrays_mod])


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Exchange an array with some nodes in each round; write a line of JSON about each round."""
    config = context.run_config
    nodes, per_round, rounds = (int(config[key]) for key in ("nodes", "per-round", "rounds"))
    grid = flat_in_deployment(grid)
    while len(list(grid.get_node_ids())) < nodes:
        time.sleep(1)
    with Path(str(config["output"])).open("a", buffering=1) as output:
        for server_round in range(1, rounds + 1):
            line = exchange(grid, server_round, per_round)
            output.write(json.dumps(line) + "\n")


def exchange(grid: Grid, server_round: int, per_round: int) -> dict[str, float]:
    """Send an array to the next nodes, and count the replies.

    Returns:
        The round, its seconds, the nodes that were connected, the messages that were sent, and how
        many replies were correct, wrong, and an error.
    """
    started = time.monotonic()
    values = np.arange(LENGTH, dtype=np.float32) + server_round
    connected = sorted(grid.get_node_ids())
    first = (server_round - 1) * per_round % len(connected)
    chosen = islice(cycle(connected), first, first + min(per_round, len(connected)))
    messages = [Message(_record(values), node_id, MessageType.TRAIN) for node_id in chosen]
    replies = list(grid.send_and_receive(messages, timeout=TIMEOUT))
    answers = [_values(reply) for reply in replies if not reply.has_error()]
    correct = sum(np.array_equal(answer, values + 1) for answer in answers)
    return {
        "round": server_round,
        "seconds": time.monotonic() - started,
        "connected": len(connected),
        "sent": len(messages),
        "correct": correct,
        "wrong": len(answers) - correct,
        "errors": len(replies) - len(answers),
    }


@client.train()
def add(message: Message, context: Context) -> Message:
    """Add 1 to the array."""
    return Message(_record(_values(message) + np.float32(1)), reply_to=message)


def _record(values: NDArray[np.float32]) -> RecordDict:
    return RecordDict({ARRAYS: ArrayRecord({VALUES: Array(values)})})


def _values(message: Message) -> NDArray[np.float32]:
    values: NDArray[np.float32] = message.content.array_records[ARRAYS][VALUES].numpy()
    return values
