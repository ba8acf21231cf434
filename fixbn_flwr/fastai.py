"""FixBN in a client that trains with fastai.

    callback = FixBNCallback(msg.content, context)
    learner = Learner(data, model, opt_func=partial(OptimWrapper, opt=torch.optim.SGD))
    learner.fit(1, cbs=[callback])
    content = RecordDict({"arrays": ..., "metrics": ..., **callback.records})

The learner needs an optimizer of torch: FixBN cannot keep the momentum of fastai's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastai.callback.core import Callback
from flwr.common import ArrayRecord, ConfigRecord, Context, RecordDict
from torch.optim import Optimizer

from fixbn_flwr.client.training_block import TrainingBlock
from fixbn_flwr.errors import ConfigError


class FixBNCallback(Callback):  # type: ignore[misc]
    """Applies ``local_training`` to a ``Learner.fit``.

    If ``fit`` raises, the statistics of this model stay frozen: build the model anew.

    Args:
        received: The message's content, or the config that ``NumPyClient.fit`` receives.
        context: Flower's context.

    Raises:
        ConfigError: In ``fit``, if the learner's optimizer is fastai's own.
    """

    def __init__(self, received: RecordDict | Mapping[str, Any], context: Context) -> None:
        super().__init__()
        self._block = TrainingBlock(received, context)

    @property
    def records(self) -> dict[str, ArrayRecord | ConfigRecord]:
        """Records to add to a Message API reply, after ``fit``."""
        return self._block.records

    @property
    def metrics(self) -> dict[str, bytes | float]:
        """Metrics to add to those of ``NumPyClient.fit``, after ``fit``."""
        return self._block.metrics

    def before_fit(self) -> None:
        """Freeze the statistics, and give the optimizer the client's momentum buffers."""
        optimizer = getattr(self.learn.opt, "opt", None)
        if not isinstance(optimizer, Optimizer):
            raise ConfigError(
                f"the learner's optimizer is fastai's own {type(self.learn.opt).__name__}, whose "
                "momentum FixBN cannot keep: build the Learner with "
                "opt_func=partial(OptimWrapper, opt=torch.optim.SGD)."
            )
        self._block.begin(self.learn.model, optimizer)

    def after_fit(self) -> None:
        """Thaw the statistics and save the buffers."""
        self._block.end()
