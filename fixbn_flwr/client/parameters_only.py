"""Client mods that act on a model's arrays, kept to its parameters.

    app = ClientApp()

    @app.train(mods=[parameters_only(fixedclipping_mod)])
    def train(message, context): ...

    app = ClientApp(client_fn=client_fn, mods=[parameters_only(LocalDpMod(...)), numpy_client_mod])

Flower's mods for differential privacy clip the whole of a client's update, statistics and counters
included, and add noise to all of it: the counters alone can be most of the update's norm, and a
noised variance can fall below zero. The wrapper shows such a mod the parameters only. It adds the
rest again afterwards. **Privacy does not cover statistics, counters and the momentum buffers of
momentum="global": they reach the server as they are.**
"""

from __future__ import annotations

from flwr.common import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.flower_compat import ClientAppCallable, Mod
from fixbn_flwr.method.averaging import Kind, kind_of
from fixbn_flwr.method.round_config import MOMENTUM, PARAMETERS_ONLY_MARK


def parameters_only(mod: Mod) -> Mod:
    """Return a mod that does what ``mod`` does, to the parameters and nothing else.

    It acts on training messages; all others go past ``mod``. In a list of mods it stands before
    ``numpy_client_mod``, whose clients do not tell names.

    Args:
        mod: a mod of the Message API, such as those of ``flwr.clientapp.mod``.

    Raises:
        ConfigError: (by the returned mod) the message is one of the older generation, where arrays
            have no names. Flower turns it into an error reply, which the server names.
    """

    def hiding(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
        if message.metadata.message_type.split(".")[0] != MessageType.TRAIN:
            return call_next(message, context)
        if "fitins.parameters" in message.content:
            raise ConfigError(
                "parameters_only got a message of Flower's older generation, in which arrays have "
                "no names to tell statistics by: put it before numpy_client_mod in the list of "
                "mods, under a Message API strategy."
            )
        asked, answered = message.content, RecordDict()

        def unhidden(shown: Message, inner_context: Context) -> Message:
            shown.content = _joined(shown.content, asked)
            reply = call_next(shown, inner_context)
            if reply.has_content():
                answered.update({**reply.content, PARAMETERS_ONLY_MARK: ConfigRecord()})
                reply.content = _parameters(reply.content)
            return reply

        message.content = _parameters(asked)
        reply = mod(message, context, unhidden)
        if reply.has_content() and answered:
            reply.content = _joined(reply.content, answered)
        return reply

    return hiding


def _is_parameter(name: str, array: Array) -> bool:
    return kind_of(name, array.dtype) is Kind.PARAMETER


def _parameters(content: RecordDict) -> RecordDict:
    """Return a content without statistics, counters and momentum buffers."""
    shown = RecordDict({**content.metric_records, **content.config_records})
    for key, record in content.array_records.items():
        if key != MOMENTUM:
            shown[str(key)] = ArrayRecord({n: a for n, a in record.items() if _is_parameter(n, a)})
    return shown


def _joined(shown: RecordDict, whole: RecordDict) -> RecordDict:
    """Return what the mod made of the parameters, and what it was not shown, in the whole's order.

    A parameter that the mod took away stays away: it may have been masked and sent otherwise.
    """
    joined = RecordDict({**whole.config_records, **shown})
    for key, record in whole.array_records.items():
        seen = shown.array_records.get(key, ArrayRecord())
        joined[str(key)] = (
            record
            if key == MOMENTUM
            else ArrayRecord(
                {
                    name: seen.get(name, array)
                    for name, array in record.items()
                    if name in seen or not _is_parameter(name, array)
                }
            )
        )
    return joined
