"""NumPyClients under a Message API strategy: one client mod that translates both ways.

    app = ClientApp(client_fn=client_fn, mods=[numpy_client_mod])

Flower runs clients of its older generation under strategies of that generation only: a Message API
strategy sends an ArrayRecord "arrays" and a ConfigRecord "config" where such a client looks for
"fitins.parameters" and "fitins.config". This mod rewrites the request, and the client's result into
the reply that the strategy expects: arrays under the names they were sent with, and metrics with
the number of examples as "num-examples". Messages of the older generation pass through untouched.
"""

from __future__ import annotations

import safetensors.numpy
from flwr.common import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    MetricRecordValues,
    RecordDict,
)

from fixbn_flwr.array_records import arrays_of
from fixbn_flwr.errors import ReplyError
from fixbn_flwr.flower_compat import ClientAppCallable, SType
from fixbn_flwr.method.round_config import (
    GRADIENT_COSINE,
    GRADIENT_NORM_RATIO,
    GRADIENTS,
    MOMENTUM,
    MOMENTUM_BLOB,
)

_ARRAYS, _CONFIG, _METRICS = "arrays", "config", "metrics"
_GRADIENTS = (GRADIENT_COSINE, GRADIENT_NORM_RATIO)
_INS_AND_RES = {
    MessageType.TRAIN: ("fitins", "fitres"),
    MessageType.EVALUATE: ("evaluateins", "evaluateres"),
}


def numpy_client_mod(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Let a NumPyClient, or a Client, answer a Message API strategy's train or evaluate message.

    Raises:
        ReplyError: the client returned another number of arrays than it was sent, or a status
            other than OK. Flower turns it into an error reply, which the server names.
    """
    if message.metadata.message_type not in _INS_AND_RES or _ARRAYS not in message.content:
        return call_next(message, context)
    ins, res = _INS_AND_RES[message.metadata.message_type]
    arrays = message.content.array_records[_ARRAYS]
    config = message.content.config_records.get(_CONFIG, ConfigRecord())
    momentum = message.content.array_records.get(MOMENTUM)
    if momentum is not None:
        config = ConfigRecord(
            {**config, MOMENTUM_BLOB: safetensors.numpy.save(arrays_of(momentum))}
        )
    message.content = RecordDict({f"{ins}.parameters": arrays, f"{ins}.config": config})
    reply = call_next(message, context)
    if reply.has_content():
        reply.content = _translated(reply.content, res, list(arrays))
    return reply


def _translated(content: RecordDict, res: str, names: list[str]) -> RecordDict:
    """Turn a FitRes or an EvaluateRes into arrays (FitRes alone), metrics and, if any, config."""
    status = content.config_records[f"{res}.status"]
    if status["code"] != 0:
        raise ReplyError(f"the client returned status {status['code']!r}: {status['message']!r}")
    reported = dict(content.config_records[f"{res}.metrics"])
    gradients = {name: reported.pop(name) for name in _GRADIENTS if name in reported}
    numbers: dict[str, MetricRecordValues] = {
        name: value
        for name, value in reported.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    examples = content.metric_records[f"{res}.num_examples"]["num_examples"]
    if res == "evaluateres":
        numbers["loss"] = content.metric_records[f"{res}.loss"]["loss"]
    translated = RecordDict({_METRICS: MetricRecord({**numbers, "num-examples": examples})})
    if res == "fitres":
        translated[_ARRAYS] = _named(content.array_records[f"{res}.parameters"], names)
    momentum = reported.pop(MOMENTUM_BLOB, None)
    if isinstance(momentum, bytes):
        buffers = safetensors.numpy.load(momentum)
        translated[MOMENTUM] = ArrayRecord({name: Array(a) for name, a in buffers.items()})
    if gradients:
        translated[GRADIENTS] = ConfigRecord(gradients)
    # A MetricRecord holds numbers only: whatever else the client reports travels as config.
    if others := {name: value for name, value in reported.items() if name not in numbers}:
        translated[_CONFIG] = ConfigRecord(others)
    return translated


def _named(parameters: ArrayRecord, names: list[str]) -> ArrayRecord:
    arrays = arrays_of(parameters)
    if len(arrays) != len(names):
        raise ReplyError(
            f"the client was sent {len(names)} arrays and returned {len(arrays)}: return all of "
            "model.state_dict(), in its order, from fit()."
        )
    return ArrayRecord(
        {  # a NumPyClient's arrays are serialised already, and lack only type and shape
            name: Array(str(array.dtype), array.shape, SType.NUMPY, parameters[key].data)
            for name, (key, array) in zip(names, arrays.items(), strict=True)
        }
    )
