"""``local_training`` for frameworks that call back at the start and at the end of a training."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from flwr.common import ArrayRecord, ConfigRecord, Context, RecordDict
from torch import nn
from torch.optim import Optimizer

from fixbn_flwr.client.local_result import LocalTraining
from fixbn_flwr.client.local_training import local_training


class TrainingBlock:
    """A ``local_training`` block that is entered and left by calls.

    Args:
        received: The message's content, or the config that ``NumPyClient.fit`` receives.
        context: Flower's context.
    """

    def __init__(self, received: RecordDict | Mapping[str, Any], context: Context) -> None:
        self._received = received
        self._context = context
        self._block: AbstractContextManager[LocalTraining] | None = None
        self._local: LocalTraining | None = None

    @property
    def records(self) -> dict[str, ArrayRecord | ConfigRecord]:
        """Records to add to a Message API reply, after the training."""
        return {} if self._local is None else self._local.records

    @property
    def metrics(self) -> dict[str, bytes | float]:
        """Metrics to add to those of ``NumPyClient.fit``, after the training."""
        return {} if self._local is None else self._local.metrics

    def begin(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Enter the block."""
        self._block = local_training(model, optimizer, self._received, self._context)
        self._local = self._block.__enter__()

    def end(self, error: BaseException | None = None) -> None:
        """Leave the block, if it was entered.

        Args:
            error: What ended the training; the momentum buffers are then not saved.
        """
        block, self._block = self._block, None
        if block is not None:
            # contextlib sets the traceback of the error that it raises again to this one.
            trace = error.__traceback__ if error else None
            block.__exit__(type(error) if error else None, error, trace)
