"""The app's ClientApp: it trains on its node's images.

In a deployment, Flower imports this module in a new process for each message, which only forwards
the message. So imports that need torch are inside the functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fixbn_flwr.app.worker.forwarder import worker_mod
from fixbn_flwr.flower_compat import Mod
from fixbn_flwr.transport.packed_grid import flat_arrays_mod

if TYPE_CHECKING:
    from fixbn_flwr.app.client.image_client import FixBNClient


def client_of(context: Context) -> FixBNClient:
    """Return the client of a node."""
    from fixbn_flwr.app.client.image_client import make_client

    return make_client(context)


def client_app_of(make: Callable[[Context], FixBNClient], mods: Sequence[Mod]) -> ClientApp:
    """Return a ClientApp that answers training, evaluation and the query for properties.

    Args:
        make: Returns the client of a context.
        mods: The mods of the app.
    """
    made = ClientApp(mods=list(mods))

    @made.train()
    def train(message: Message, context: Context) -> Message:
        return Message(make(context).train(message.content), reply_to=message)

    @made.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return Message(make(context).evaluate(message.content), reply_to=message)

    @made.query()
    def query(message: Message, context: Context) -> Message:
        return Message(make(context).properties(), reply_to=message)

    return made


app = client_app_of(client_of, [worker_mod, flat_arrays_mod])
