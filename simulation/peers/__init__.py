"""Other methods for normalisation in federated learning, to compare FixBN with.

`task = "simulation.peers:fedbn:cifar10"` is the task `cifar10`, trained by the peer `fedbn`. In an
experiment, the key `peer` of a method writes this. Each peer is a file of this package, which cites
its paper and says what is simplified. Only `single_run.py` runs peers: `fixbn run` with such a task
has the peer's network, but the app's own clients.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

from flwr.app import Context
from flwr.clientapp import ClientApp

from fixbn_flwr.app.client.image_client import FixBNClient, make_client
from fixbn_flwr.app.client_app import client_app_of
from fixbn_flwr.app.server.round_recorder import Recorder
from fixbn_flwr.tasks import Task, get_task, load_splits
from simulation.peers import exact_statistics, faded_momentum, fedbn, fedwon, hbn, silobn
from simulation.peers.personal import PersonalRecorder

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


@dataclass(frozen=True)
class Peer:
    """A method to compare with.

    Attributes:
        change: Changes the task's network, which has batch normalisation. Default: not at all.
        client: The class of the clients. Default: the app's.
        recorder: Tests the model after a round. Default: the app's.
    """

    change: Callable[[nn.Module], nn.Module] | None = None
    client: type[FixBNClient] = FixBNClient
    recorder: type[Recorder] = Recorder


PEERS = {
    "exact": Peer(recorder=exact_statistics.ExactStatisticsRecorder),
    "fedbn": Peer(client=fedbn.FedBNClient, recorder=PersonalRecorder),
    "silobn": Peer(client=silobn.SiloBNClient, recorder=PersonalRecorder),
    "faded": Peer(client=faded_momentum.FadedMomentumClient),
    "hbn": Peer(change=hbn.with_hybrid_normalisation, client=hbn.HBNClient),
    "fedwon": Peer(change=fedwon.without_normalisation),
}


def peer_of(task: str) -> Peer:
    """Return the peer in the name of a task; without one, a peer that is the app itself."""
    named = re.search(rf"{__name__}:(\w+):", task)
    return PEERS[named[1]] if named else Peer()


def client_app(task: str) -> ClientApp:
    """Return the ClientApp of the peer in the name of a task."""
    client = peer_of(task).client

    def make(context: Context) -> FixBNClient:
        made = make_client(context)
        return client(made.task, made.partition, made.settings, context)

    return client_app_of(make, [])


def peer_task(peer: str, task: Task) -> Task:
    """Return a task with the networks of a peer, and with the same data."""
    change = PEERS[peer].change
    models = dict(task.models)
    if change is not None:
        models = {name: partial(_changed, build, change) for name, build in models.items()}
    return replace(task, name=f"{task.name}-{peer}", load=partial(load_splits, task), models=models)


def _changed(
    build: Callable[[str], nn.Module], change: Callable[[nn.Module], nn.Module], norm: str
) -> nn.Module:
    return change(build(norm))


@cache
def __getattr__(name: str) -> Task:
    peer, found, task = name.partition(":")
    if not found or peer not in PEERS:
        raise AttributeError(f"{name}: name one of {', '.join(PEERS)}, ':' and a task")
    return peer_task(peer, get_task(task))
