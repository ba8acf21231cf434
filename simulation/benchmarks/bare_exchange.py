"""A Flower app that sends one array to each node and back: the lower bound of a round's overhead.

`python -m simulation.benchmarks deployment` runs it. The array has as many bytes as the model. Each
node changes it, because Flower identifies objects by their content and would not send the same
bytes again. The app packs arrays and polls quickly, and has no worker, momentum or checkpoint.
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
    """Exchange the array with all nodes in each round, and write the seconds of each as JSON."""
    config = context.run_config
    nodes, length, rounds = (int(config[key]) for key in ("nodes", "length", "rounds"))
    grid = flat_in_deployment(grid)
    while len(node_ids := list(grid.get_node_ids())) < nodes:
        time.sleep(1)
    values = np.random.default_rng(0).standard_normal(length, dtype=np.float32)
    seconds = []
    for _ in range(rounds):
        started = time.monotonic()
        content = _record(values)
        messages = [Message(content, node_id, MessageType.TRAIN) for node_id in node_ids]
        changed = [_values(reply) for reply in grid.send_and_receive(messages)]
        values = np.mean(changed, axis=0)
        seconds.append(time.monotonic() - started)
    Path(str(config["output"])).write_text(json.dumps(seconds))


@client.train()
def add(message: Message, context: Context) -> Message:
    """Add a number of this node's own to the array."""
    number = 1 + int(context.node_config["partition-id"])
    return Message(_record(_values(message) + np.float32(number)), reply_to=message)


def _record(values: NDArray[np.float32]) -> RecordDict:
    return RecordDict({ARRAYS: ArrayRecord({VALUES: Array(values)})})


def _values(message: Message) -> NDArray[np.float32]:
    values: NDArray[np.float32] = message.content.array_records[ARRAYS][VALUES].numpy()
    return values
