"""The client's side of FixBN: a context manager around any local training loop.

    with local_training(model, optimizer, msg.content, context) as local:
        train(model, loader, optimizer)                   # your loop, unchanged
    content = RecordDict({"arrays": ..., "metrics": ..., **local.records})

or, in ``NumPyClient.fit``,

    with local_training(model, optimizer, config, context) as local:
        train(model, loader, optimizer)
    return arrays, num_examples, {**metrics, **local.metrics}

What to do in a round the server says in the message's config; see ``fixbn_flwr.server.strategy``.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from flwr.app import ArrayRecord, Context, RecordDict
from torch import nn
from torch.optim import Optimizer

from fixbn_flwr.client.momentum_store import load_buffers, save_buffers
from fixbn_flwr.errors import ConfigError, MomentumError
from fixbn_flwr.flower_compat import RECORD_KEY_STATE
from fixbn_flwr.method.batch_norm import freeze_statistics
from fixbn_flwr.method.learning_rate import multiplied_learning_rate
from fixbn_flwr.method.optimizer_buffers import (
    Buffers,
    check_optimizer,
    fingerprint,
    read_buffers,
    read_momentum,
    write_buffers,
)
from fixbn_flwr.method.round_config import MOMENTUM, MOMENTUM_BLOB, PHASE, Momentum, RoundConfig
from fixbn_flwr.method.schedule import Phase

_logger = logging.getLogger("flwr.fixbn")


@dataclass
class LocalTraining:
    """What ``local_training`` hands to the ``with`` block.

    Attributes:
        phase: the round's phase; None when the server does not use FixBN.
        records: after the block, what a Message API reply must carry beside arrays and metrics.
        metrics: after the block, what ``NumPyClient.fit`` must add to its metrics.
    """

    phase: Phase | None
    records: dict[str, ArrayRecord] = field(default_factory=dict)
    metrics: dict[str, bytes] = field(default_factory=dict)


@contextmanager
def local_training(
    model: nn.Module,
    optimizer: Optimizer,
    received: RecordDict | Mapping[str, Any],
    context: Context,
) -> Iterator[LocalTraining]:
    """Train under FixBN's rules for the length of a ``with`` block.

    On entry the optimiser's buffers become those that the server's momentum mode asks for and, in
    calibration, the statistics are frozen (``freeze_statistics``).
    Every step in calibration is taken at the learning rate times the server's factor, whatever sets
    the rate and whenever; the loop and its schedulers see the rate without the factor. On exit, by
    an exception too, the statistics are thawed; the buffers are kept for the next round unless
    there was an exception. With a server that does not use FixBN nothing happens at all.

    Args:
        model: the model, with the global arrays already loaded.
        optimizer: the optimiser that takes the steps, of this model's parameters; new or of an
            earlier round, no matter. What accelerate's ``prepare`` returns is taken as well.
        received: ``msg.content`` (Message API), or the ``config`` of ``NumPyClient.fit``.
        context: the client's context, whose state keeps the buffers from round to round.

    Raises:
        ConfigError: ``received`` is neither, there is no learning rate to multiply, or this client
            takes part in secure aggregation.
        NoStatisticsError: calibration of a model without running statistics.
        StatisticsMovedError: the block wrote to frozen statistics.
        MomentumError: received buffers do not fit the model, or the optimiser's cannot be kept by
            parameter (LBFGS) or averaged (momentum "global" of another than SGD). Kept ones that do
            not fit are dropped with a warning.
    """
    asked = RoundConfig.from_config(_config_of(received))
    if asked is None:
        yield LocalTraining(phase=None)
        return
    _refuse_secure_aggregation(context)
    local = LocalTraining(asked.phase)
    optimizer = _unwrapped(optimizer)
    if asked.momentum is not Momentum.RESET:
        check_optimizer(optimizer, averaged=asked.momentum is Momentum.GLOBAL)
    match asked.momentum:
        case Momentum.RESET:
            start: Buffers = {}
        case Momentum.LOCAL:
            start = load_buffers(context, asked, fingerprint(model))
        case Momentum.GLOBAL:
            start = _received_momentum(received)
    try:
        write_buffers(model, optimizer, start)
    except MomentumError as error:
        if asked.momentum is not Momentum.LOCAL:
            raise
        _logger.warning("kept momentum dropped, %s Starting from zero.", error)
        write_buffers(model, optimizer, {})
    with ExitStack() as stack:
        if asked.phase is Phase.CALIBRATION:
            stack.enter_context(freeze_statistics(model))
            stack.enter_context(multiplied_learning_rate(optimizer, asked.learning_rate_factor))
        yield local
    if asked.momentum is Momentum.LOCAL:
        save_buffers(context, asked, read_buffers(model, optimizer), fingerprint(model))
    elif asked.momentum is Momentum.GLOBAL:
        buffers = read_momentum(model, optimizer)
        if isinstance(received, RecordDict):
            local.records[MOMENTUM] = ArrayRecord(buffers)
        else:
            local.metrics[MOMENTUM_BLOB] = safetensors.torch.save(buffers)


def _config_of(received: RecordDict | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(received, RecordDict):
        configs = received.config_records.values()
        return next((config for config in configs if PHASE in config), {})
    if isinstance(received, Mapping):
        return received
    raise ConfigError(
        f"local_training got a {type(received).__name__} as its third argument: give it the "
        "message's content (msg.content), or the config that NumPyClient.fit receives."
    )


def _refuse_secure_aggregation(context: Context) -> None:
    if RECORD_KEY_STATE in context.state:
        raise ConfigError(
            "this client takes part in secure aggregation (secaggplus_mod), which cuts every value "
            "to a fixed range and shows the server no client's update: statistics beyond the range "
            "would be wrong, and none could be checked. Leave secaggplus_mod and "
            "SecAggPlusWorkflow out, or FixBN."
        )


def _received_momentum(received: RecordDict | Mapping[str, Any]) -> Buffers:
    """Return the server's averaged buffers; empty before any client has returned some."""
    if isinstance(received, RecordDict):
        record = received.array_records.get(MOMENTUM, ArrayRecord())
        return {name: torch.from_numpy(array.numpy()) for name, array in record.items()}
    blob: Any = received.get(MOMENTUM_BLOB)
    return {} if blob is None else safetensors.torch.load(blob)


def _unwrapped(optimizer: Optimizer) -> Optimizer:
    """Return the optimiser that takes the steps; accelerate wraps it in one without step hooks."""
    inner = getattr(optimizer, "optimizer", None)
    return _unwrapped(inner) if isinstance(inner, Optimizer) else optimizer
