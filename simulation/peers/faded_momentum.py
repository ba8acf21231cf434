"""Local momentum that fades while a client does not take part.

With partial participation, a client's momentum buffers are of the last round in which it trained,
when the model was another one. Here they are halved for each round that the client has missed.
Without missed rounds it is the app's own client.
"""

from __future__ import annotations

from typing import cast

import safetensors.torch
from flwr.app import ConfigRecord, Context, RecordDict

from fixbn_flwr.app.client.image_client import FixBNClient
from fixbn_flwr.client.momentum_store import KEY
from fixbn_flwr.method.round_config import ROUND
from fixbn_flwr.persistence.atomic_files import safetensors_metadata

KEPT = 0.5  # of the momentum, for each missed round


class FadedMomentumClient(FixBNClient):
    """A client whose stored momentum fades in the rounds that it misses."""

    def train(self, received: RecordDict) -> RecordDict:
        """Fade the stored momentum, and train for a round."""
        fade(self.context, int(str(received.config_records["config"][ROUND])))
        return super().train(received)


def fade(context: Context, server_round: int) -> None:
    """Halve the stored momentum for each round between that of its storage and this one."""
    if KEY not in context.state:
        return
    content = cast(bytes, context.state.config_records[KEY][KEY])
    metadata = safetensors_metadata(content)
    missed = server_round - int(metadata["round"]) - 1
    buffers = {
        name: value * KEPT**missed for name, value in safetensors.torch.load(content).items()
    }
    faded = safetensors.torch.save(buffers, metadata=metadata)
    context.state[KEY] = ConfigRecord({**context.state.config_records[KEY], KEY: faded})
