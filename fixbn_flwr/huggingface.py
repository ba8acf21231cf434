"""FixBN in a client that trains with the Trainer of Hugging Face's transformers.

    callback = FixBNCallback(msg.content, context)
    Trainer(model, arguments, train_dataset=images, callbacks=[callback]).train()
    content = RecordDict({"arrays": ..., "metrics": ..., **callback.records})

The Trainer makes its own optimizer and schedule.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flwr.common import ArrayRecord, ConfigRecord, Context, RecordDict
from transformers import TrainerCallback

from fixbn_flwr.client.training_block import TrainingBlock


class FixBNCallback(TrainerCallback):
    """Applies ``local_training`` to a ``Trainer.train()``.

    If ``train()`` raises, the statistics of this model stay frozen: build the model anew.

    Args:
        received: The message's content, or the config that ``NumPyClient.fit`` receives.
        context: Flower's context.
    """

    def __init__(self, received: RecordDict | Mapping[str, Any], context: Context) -> None:
        super().__init__()
        self._block = TrainingBlock(received, context)

    @property
    def records(self) -> dict[str, ArrayRecord | ConfigRecord]:
        """Records to add to a Message API reply, after ``train()``."""
        return self._block.records

    @property
    def metrics(self) -> dict[str, bytes | float]:
        """Metrics to add to those of ``NumPyClient.fit``, after ``train()``."""
        return self._block.metrics

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Freeze the statistics, and give the optimizer the client's momentum buffers."""
        self._block.begin(given["model"], given["optimizer"])

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Thaw the statistics and save the buffers."""
        self._block.end()
