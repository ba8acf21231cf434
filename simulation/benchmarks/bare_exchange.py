"""A Flower app that sends one array there and back: what an exchange costs before anybody trains.

The floor of `python -m simulation.benchmarks --deployment`, which copies this file into an app of
its own. As many bytes as the model has go to each node at once and come back changed: what it has
moved once Flower, which names objects by their content, would not move again. Of ours there is only
the transport, a line on each side: no worker, no momentum, no checkpoint.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from numpy.typing import NDArray

from fixbn_flwr.transport.packed_grid import flat_arrays_mod, flat_in_deployment

ARRAYS, VALUES = "arrays", "values"

server = ServerApp()
client = ClientApp(mods=[flat_arrays_mod])


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Exchange the array with all nodes, round after round, and write down the seconds of each."""
    config = context.run_config
    nodes, length, rounds = (int(config[key]) for key in ("nodes", "length", "rounds"))
    grid = flat_in_deployment(grid)
    while len(node_ids := list(grid.get_node_ids())) < nodes:
        time.sleep(1)
    values = np.random.default_rng(0).standard_normal(length, dtype=np.float32)
    seconds = []
    for _ in range(rounds):
        started = time.monotonic()
        content = _holding(values)
        messages = [Message(content, node_id, MessageType.TRAIN) for node_id in node_ids]
        changed = [_values_of(reply) for reply in grid.send_and_receive(messages)]
        values = np.mean(changed, axis=0)
        seconds.append(time.monotonic() - started)
    Path(str(config["output"])).write_text(json.dumps(seconds))


@client.train()
def add(message: Message, context: Context) -> Message:
    """Return the array with a number added that is the node's own."""
    number = 1 + int(context.node_config["partition-id"])
    return Message(_holding(_values_of(message) + np.float32(number)), reply_to=message)


def _holding(values: NDArray[np.float32]) -> RecordDict:
    return RecordDict({ARRAYS: ArrayRecord({VALUES: Array(values)})})


def _values_of(message: Message) -> NDArray[np.float32]:
    values: NDArray[np.float32] = message.content.array_records[ARRAYS][VALUES].numpy()
    return values
