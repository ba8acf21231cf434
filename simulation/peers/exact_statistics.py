"""BN tested with statistics that are exact for the averaged model.

Training is FedAvg with batch normalisation. For a test, the running statistics that the server has
averaged are replaced by those of the averaged model on the clients' training images together: the
mean and variance of each layer's input, with the layers before it normalised by theirs. This is the
"true" global statistic that S. Ioffe, C. Szegedy, "Batch Normalization", ICML 2015,
https://arxiv.org/abs/1502.03167, algorithm 2, uses for inference. `statistics = "pooled"` is
another method: it pools the clients' running statistics, which are those of different models.

Simplified: the statistics are those of 2,000 training images without augmentation, evenly chosen
from the clients' images. They are computed in one batch by the server, as a simulation can do; a
real federation would need a round for each layer.
"""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import ArrayRecord
from torch import Tensor, nn

from fixbn_flwr.app.client.image_client import partitions_of, workbench_of
from fixbn_flwr.app.server.round_recorder import Recorder
from fixbn_flwr.app.training import evaluate
from fixbn_flwr.array_records import arrays_of
from fixbn_flwr.method.batch_norm import statistics_layers
from fixbn_flwr.tasks import load_splits, normalise

IMAGES = 2000


@torch.no_grad()
def set_exact_statistics(model: nn.Module, images: Tensor) -> None:
    """Set a model's running statistics to those of its layers' inputs for these images.

    Args:
        model: The model. It is in training mode afterwards.
        images: Normalised images, `[n, channels, height, width]`.
    """
    layers = list(statistics_layers(model).values())
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.momentum = 1.0  # type: ignore[assignment]  # of torch's own layers
    model.train()(images)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum


class ExactStatisticsRecorder(Recorder):
    """Tests the global model with exact statistics."""

    def _evaluate(self, arrays: ArrayRecord) -> tuple[float, float]:
        settings, task = self._settings, self._task
        bench = workbench_of(task, settings)
        bench.load(arrays_of(arrays))
        train, _ = load_splits(task, settings.data_path)
        parts = partitions_of(settings, train, self._folder.clients)
        held = np.sort(np.concatenate(parts))
        every = -(-len(held) // IMAGES)
        images = train.images[torch.from_numpy(held[::every])].to(bench.device)
        images = normalise(task, images, next(bench.model.parameters()).dtype)
        set_exact_statistics(bench.model, images.contiguous(memory_format=torch.channels_last))
        assert self._test is not None  # evaluate-every is not 0
        return evaluate(bench, task, self._test)
