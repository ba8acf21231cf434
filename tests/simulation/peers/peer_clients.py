"""Clients of peers that train on digits, without a server."""

import torch
from flwr.app import ConfigRecord, Context, RecordDict

from fixbn_flwr.app.client.image_client import make_client, workbench_of
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.array_records import arrays_of, record_of
from fixbn_flwr.tasks import get_task
from simulation.peers import PEERS

CONFIG = {
    "partition": "classes", "batch-size": 4, "local-steps": 2, "device": "cpu", "freeze-after": 1.0
}  # fmt: skip


def client(peer: str, **changed):
    config = {**CONFIG, **changed, "task": f"simulation.peers:{peer}:digits"}
    settings = Settings.from_run_config(config)
    node = {"partition-id": 0, "num-partitions": 4}
    context = Context(1, 1, node, RecordDict(), settings.as_run_config())
    made = make_client(context)
    return PEERS[peer].client(made.task, made.partition, made.settings, context)


def initial(peer: str):
    torch.manual_seed(0)
    build = next(iter(get_task(f"simulation.peers:{peer}:digits").models.values()))
    model = build("bn")
    return {name: value.numpy() for name, value in model.state_dict().items()}


def message(arrays, server_round: int = 1) -> RecordDict:
    config = ConfigRecord(
        {
            "server-round": server_round,
            "fixbn-phase": "exploration",
            "fixbn-momentum": "reset",
            "fixbn-learning-rate-factor": 1.0,
        }
    )
    return RecordDict({"arrays": record_of(arrays), "config": config})


def reply_of(made, arrays, server_round: int = 1):
    return arrays_of(made.train(message(arrays, server_round)).array_records["arrays"])


def trained_model(made):
    """The arrays of the process's model, which the last client has trained."""
    return workbench_of(made.task, made.settings).arrays()
