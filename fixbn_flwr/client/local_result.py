"""What ``local_training`` gives to the user's code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from flwr.common import ArrayRecord, ConfigRecord
from torch import Tensor, nn

from fixbn_flwr.method.gradient_comparison import compare_gradients
from fixbn_flwr.method.round_config import GRADIENTS
from fixbn_flwr.method.schedule import Phase


@dataclass
class LocalTraining:
    """The result of ``local_training``.

    Attributes:
        phase: The round's phase; None if the server does not use FixBN.
        learning_rate_factor: What every step's learning rate is multiplied by.
        records: Records to add to a Message API reply. Filled at the end of the block.
        metrics: Metrics to add to those of ``NumPyClient.fit``. Filled at the end of the block.
        compared: The model, in a round in which gradients are compared; else None.
    """

    phase: Phase | None
    learning_rate_factor: float = 1.0
    records: dict[str, ArrayRecord | ConfigRecord] = field(default_factory=dict)
    metrics: dict[str, bytes | float] = field(default_factory=dict)
    compared: nn.Module | None = None

    def compare_gradients(self, loss: Callable[[], Tensor]) -> None:
        """Report how a batch's own statistics change the gradient, if the server asks this round.

        Call it in the block, before the loop, with the first batch. It costs two forward and
        backward passes in the rounds that ``FixBN(..., compare_gradients_every=N)`` selects, and
        nothing in the others. Neither the model nor the random numbers of the loop change.

        Examples:
            >>> def fit(model, criterion, images, labels, local):
            ...     local.compare_gradients(lambda: criterion(model(images), labels))

        Args:
            loss: Returns the loss of one batch, a scalar.
        """
        compared = self.compared and compare_gradients(self.compared, loss)
        if compared:
            self.records[GRADIENTS] = ConfigRecord({**compared.as_report()})
            self.metrics.update(compared.as_report())
