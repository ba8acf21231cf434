"""FedBN: each client keeps its batch normalisation layers, with scale and shift.

X. Li, M. Jiang, X. Zhang, M. Kamp, Q. Dou, "FedBN: Federated Learning on Non-IID Features via Local
Batch Normalization", ICLR 2021, https://arxiv.org/abs/2102.07623. As in the authors' code,
https://github.com/med-air/FedBN, the layers' weights, biases, statistics and counters stay at the
client, and all else is averaged. It was made for clients whose images differ, not their classes.
See `personal.py` for how its models are tested.
"""

from __future__ import annotations

from functools import cached_property

from fixbn_flwr.app.client.image_client import workbench_of
from fixbn_flwr.method.batch_norm import statistics_layers
from simulation.peers.personal import PersonalClient


class FedBNClient(PersonalClient):
    """A client that keeps its batch normalisation layers."""

    def is_own(self, name: str) -> bool:
        """Return whether an array stays at the client: one of a layer with statistics."""
        return name.rpartition(".")[0] in self._layers

    @cached_property
    def _layers(self) -> set[str]:
        return set(statistics_layers(workbench_of(self.task, self.settings).model))
