"""SiloBN: each client keeps the statistics of batch normalisation; scale and shift are averaged.

M. Andreux, J. Ogier du Terrail, C. Beguier, E. W. Tramel, "Siloed Federated Learning for
Multi-Centric Histopathology Datasets", DART 2020, https://arxiv.org/abs/2008.07424. Left out: for a
centre that did not train, the paper computes statistics on that centre's images. See `personal.py`
for how its models are tested.
"""

from __future__ import annotations

from fixbn_flwr.method.averaging import Kind, kind_of
from simulation.peers.personal import PersonalClient


class SiloBNClient(PersonalClient):
    """A client that keeps its running statistics and their counters."""

    def is_own(self, name: str) -> bool:
        """Return whether an array stays at the client: a running statistic or a counter."""
        return kind_of(name) is not Kind.PARAMETER
