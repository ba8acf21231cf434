"""FixBN in a client that trains with PyTorch Lightning, of either package name.

    callback = FixBNCallback(msg.content, context)
    trainer = Trainer(max_epochs=1, callbacks=[callback])
    trainer.fit(module, loader)
    content = RecordDict({"arrays": ..., "metrics": ..., **callback.records})

The module keeps its ``configure_optimizers``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from flwr.common import Context, RecordDict

from fixbn_flwr.client.training_block import TrainingBlock
from fixbn_flwr.errors import ConfigError

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")


def _callbacks() -> list[type]:
    """Return the Callback class of each Lightning package in use, or of the one installed."""
    used = [name for name in _PACKAGES if name in sys.modules]
    if not used:
        used = [name for name in _PACKAGES if find_spec(name.split(".")[0])][:1]
    if not used:
        raise ConfigError(
            'Lightning is not installed: install it with `pip install "fixbn-flwr[lightning]"`.'
        )
    return [import_module(name).Callback for name in used]


_Bases: Any = type("_Bases", tuple(_callbacks()), {})


class FixBNCallback(_Bases):  # type: ignore[misc]
    """Applies ``local_training`` to a ``Trainer.fit``.

    Statistics stay frozen through Lightning's switches between training and validation. Schedulers,
    gradient accumulation and mixed precision work as always.

    Args:
        received: The message's content, or the config that ``NumPyClient.fit`` receives.
        context: Flower's context.

    Attributes:
        records: Records to add to a Message API reply, after ``fit``.
        metrics: Metrics to add to those of ``NumPyClient.fit``, after ``fit``.

    Raises:
        ConfigError: In ``fit``, if the module has several optimizers, or none of torch.
    """

    def __init__(self, received: RecordDict | Mapping[str, Any], context: Context) -> None:
        super().__init__()
        self._block = TrainingBlock(received, context)

    @property
    def records(self) -> Any:
        """See the class."""
        return self._block.records

    @property
    def metrics(self) -> Any:
        """See the class."""
        return self._block.metrics

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Freeze the statistics, and give the optimizer the client's momentum buffers."""
        if len(trainer.optimizers) != 1:
            raise ConfigError(
                f"{type(pl_module).__name__} has {len(trainer.optimizers)} optimizers, and FixBN "
                "keeps the momentum of one: return one from configure_optimizers, with a parameter "
                "group for each learning rate."
            )
        self._block.begin(pl_module, trainer.optimizers[0])

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Thaw the statistics and save the buffers."""
        self._block.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Thaw the statistics."""
        self._block.end(exception)
