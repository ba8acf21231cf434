"""FixBN on the client: a context manager around any local training loop.

In the Message API:

    with local_training(model, optimizer, msg.content, context) as local:
        train(model, loader, optimizer)                   # your loop, unchanged
    content = RecordDict({"arrays": ..., "metrics": ..., **local.records})

In ``NumPyClient.fit``:

    with local_training(model, optimizer, config, context) as local:
        train(model, loader, optimizer)
    return arrays, num_examples, {**metrics, **local.metrics}

The message's config tells the client what to do; see ``fixbn_flwr.method.round_config``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import safetensors.torch
import torch
from flwr.common import ArrayRecord, Context, RecordDict
from torch import nn
from torch.optim import Optimizer

from fixbn_flwr.client.local_result import LocalTraining
from fixbn_flwr.client.momentum_store import load_buffers, save_buffers
from fixbn_flwr.errors import ConfigError, MomentumError
from fixbn_flwr.flower_compat import RECORD_KEY_STATE
from fixbn_flwr.log import logger
from fixbn_flwr.method.batch_norm import freeze_statistics
from fixbn_flwr.method.freezable_layers import check_freezable
from fixbn_flwr.method.learning_rate import multiplied_learning_rate
from fixbn_flwr.method.optimizer_buffers import (
    Buffers,
    check_optimizer,
    fingerprint,
    named_parameters,
    read_buffers,
    read_momentum,
    write_buffers,
)
from fixbn_flwr.method.round_config import (
    MOMENTUM,
    MOMENTUM_BLOB,
    PHASE,
    Momentum,
    RoundConfig,
)
from fixbn_flwr.method.schedule import Phase
from fixbn_flwr.method.weight_slots import without_weights
from fixbn_flwr.method.wrapper_prefixes import under_sent_names


@contextmanager
def local_training(
    model: nn.Module,
    optimizer: Optimizer,
    received: RecordDict | Mapping[str, Any],
    context: Context,
) -> Iterator[LocalTraining]:
    """Apply FixBN's rules to the local training inside a ``with`` block.

    At the start, the optimizer gets the momentum buffers that the server's momentum mode selects.
    In calibration, the statistics are frozen (see ``freeze_statistics``), and every step uses the
    learning rate times the server's factor; the loop and its schedulers see the rate without the
    factor. At the end, the statistics are thawed, even after an exception. The buffers are saved
    for the next round unless there was an exception. If the server does not use FixBN, nothing
    changes.

    In the Message API, pass the message's content. Flower supplies the content and the context:

    Examples:
        >>> import torch
        >>> from flwr.app import ConfigRecord, Context, RecordDict
        >>> from torch import nn
        >>> from fixbn_flwr import local_training
        >>> context = Context(1, 1, {}, state=RecordDict(), run_config={})
        >>> config = {
        ...     "server-round": 8,
        ...     "fixbn-phase": "calibration",
        ...     "fixbn-momentum": "global",
        ...     "fixbn-learning-rate-factor": 0.1,
        ... }
        >>> content = RecordDict({"config": ConfigRecord(config)})
        >>> model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> with local_training(model, optimizer, content, context) as local:
        ...     model(torch.ones(8, 4)).sum().backward()
        ...     optimizer.step()
        >>> local.phase
        <Phase.CALIBRATION: 'calibration'>
        >>> list(local.records)  # add these to the reply
        ['fixbn-momentum']
        >>> model[1].running_mean  # frozen
        tensor([0., 0.])

    In ``NumPyClient.fit``, pass its ``config`` and the client's context:

    Examples:
        >>> with local_training(model, optimizer, config, context) as local:
        ...     optimizer.step()
        >>> list(local.metrics)  # add these to the metrics
        ['fixbn-momentum-buffers']

    Args:
        model: The model, with the global arrays already loaded.
        optimizer: The optimizer of the model's parameters that takes the steps, new or from an
            earlier round. The optimizer that accelerate's ``prepare`` returns works too.
        received: ``msg.content`` (Message API) or the ``config`` of ``NumPyClient.fit``.
        context: The client's context. Its state keeps the buffers between rounds.

    Raises:
        ConfigError: If ``received`` is neither, a parameter group has no learning rate, or the
            client takes part in secure aggregation.
        NoStatisticsError: If the round is calibration and the model has no running statistics.
        StatisticsMovedError: If the block writes to frozen statistics.
        MomentumError: If received buffers do not fit the model, or the optimizer's buffers cannot
            be kept (LBFGS) or averaged (momentum "global" with an optimizer other than SGD). Saved
            buffers that do not fit are dropped with a warning instead.
    """
    config = RoundConfig.from_config(_config_of(received))
    if config is None:
        yield LocalTraining(phase=None)
        return
    _refuse_secure_aggregation(context)
    check_freezable(model)
    local = LocalTraining(
        config.phase,
        config.learning_rate_factor,
        compared=model if config.compare_gradients else None,
    )
    optimizer = _unwrapped(optimizer)
    if config.momentum is not Momentum.RESET:
        check_optimizer(optimizer, averaged=config.momentum is Momentum.GLOBAL)
    model_hash = fingerprint(model) if config.momentum is Momentum.LOCAL else ""
    _start_from(config, received, context, model, optimizer, model_hash)
    with ExitStack() as stack:
        if config.phase is Phase.CALIBRATION:
            stack.enter_context(freeze_statistics(model))
            factor = config.learning_rate_factor
            stack.enter_context(multiplied_learning_rate(optimizer, factor, model))
        yield local
    if config.momentum is Momentum.LOCAL:
        buffers = _momentum_alone(model, optimizer)
        save_buffers(context, config, buffers, model_hash)
    elif config.momentum is Momentum.GLOBAL:
        buffers = {n: _as_numpy_type(b) for n, b in read_momentum(model, optimizer).items()}
        if isinstance(received, RecordDict):
            local.records[MOMENTUM] = ArrayRecord(buffers)
        else:
            local.metrics[MOMENTUM_BLOB] = safetensors.torch.save(buffers)


def _start_from(
    config: RoundConfig,
    received: RecordDict | Mapping[str, Any],
    context: Context,
    model: nn.Module,
    optimizer: Optimizer,
    model_hash: str,
) -> None:
    """Give the optimizer the momentum buffers that the server's momentum mode selects."""
    match config.momentum:
        case Momentum.RESET:
            write_buffers(model, optimizer, {})
        case Momentum.GLOBAL:
            write_buffers(model, optimizer, _received_momentum(received, model))
        case Momentum.LOCAL:
            saved = load_buffers(context, config, model_hash)
            try:
                write_buffers(model, optimizer, saved)
            except MomentumError as error:
                logger.warning("saved momentum dropped, %s Starting from zero.", error)
                write_buffers(model, optimizer, {})


def _momentum_alone(model: nn.Module, optimizer: Optimizer) -> Buffers:
    """Return an optimizer's buffers without those that hold weights."""
    # torch's own optimizers keep no weights to train from (ASGD's average is only a result), but
    # another optimizer around them may.
    from_torch = type(optimizer).__module__.startswith("torch.optim")
    kept, weights = without_weights(
        read_buffers(model, optimizer), named_parameters(model), by_values=not from_torch
    )
    if weights:
        logger.info(
            "%s keeps weights, not momentum, in %s: they start anew each round",
            type(optimizer).__name__, ", ".join(sorted(weights)),
        )  # fmt: skip
    return kept


def _as_numpy_type(buffer: torch.Tensor) -> torch.Tensor:
    """Return a buffer in a type that numpy has: float32 for bfloat16."""
    return buffer.float() if buffer.dtype == torch.bfloat16 else buffer


def _config_of(received: RecordDict | Mapping[str, Any]) -> Mapping[str, Any]:
    if isinstance(received, RecordDict):
        configs = received.config_records.values()
        return next((config for config in configs if PHASE in config), {})
    if isinstance(received, Mapping):
        return received
    raise ConfigError(
        f"local_training got a {type(received).__name__} as its third argument: pass the "
        "message's content (msg.content), or the config that NumPyClient.fit receives."
    )


def _refuse_secure_aggregation(context: Context) -> None:
    if RECORD_KEY_STATE in context.state:
        raise ConfigError(
            "this client takes part in secure aggregation (secaggplus_mod), which clips every "
            "value to a fixed range and hides each client's update from the server: statistics "
            "outside the range would be wrong, and none could be checked. Remove secaggplus_mod "
            "and SecAggPlusWorkflow, or do not use FixBN."
        )


def _received_momentum(received: RecordDict | Mapping[str, Any], model: nn.Module) -> Buffers:
    """Return the server's averaged buffers; empty until a client has returned some."""
    if isinstance(received, RecordDict):
        record = received.array_records.get(MOMENTUM, ArrayRecord())
        buffers = {name: torch.from_numpy(array.numpy()) for name, array in record.items()}
    else:
        blob: Any = received.get(MOMENTUM_BLOB)
        buffers = {} if blob is None else safetensors.torch.load(blob)
    parameters = named_parameters(model)
    # The server's model may be wrapped in another way than this one, and has no bfloat16.
    named = under_sent_names(buffers, parameters) or buffers
    return {n: b.to(parameters[n].dtype) if n in parameters else b for n, b in named.items()}


def _unwrapped(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer inside accelerate's wrapper, which has no step hooks."""
    for attribute in ("optimizer", "base_optimizer", "_base_optimizer"):
        inner = getattr(optimizer, attribute, None)
        if isinstance(inner, Optimizer):
            return _unwrapped(inner)
    return optimizer
