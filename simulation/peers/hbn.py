"""Hybrid batch normalisation (HBN): by a mixture of the batch's and the global statistics.

H. Chen, T. Xu, X. Wu, J. Kittler, "Hybrid Batch Normalisation: Resolving the Dilemma of Batch
Normalisation in Federated Learning", ICML 2025, https://arxiv.org/abs/2505.21877. Written from its
abstract and from what the authors' code does, https://github.com/Hongyao-Chen/HybridBN:

- In training, a layer normalises by `(1 - a) global + a batch`, for means and variances. The factor
  a, one per channel, is the sigmoid of a trained parameter, which starts at 0 and stays at its
  client. In evaluation, a layer normalises by the global statistics alone.
- Before a round's training, each client measures its statistics with the model that it received.
  The server pools them (run config `statistics = "pooled"`), for evaluation and the next round.

Simplified: a client measures one random batch of 256 of its images, and the server uses the result
as it is. The authors measure a batch of 64, record the mixture in place of the batch's statistics,
and move the global statistics by 0.002 of the way in each of 500 rounds; ours has fewer rounds.
They also measure the averaged model again before each test, and clip gradients; ours tests with the
statistics of the model before the round, which may cost it accuracy.
"""

from __future__ import annotations

import numpy as np
import torch
from flwr.app import RecordDict
from torch import Tensor, nn

from fixbn_flwr.app.training import on_device, seed_of
from fixbn_flwr.array_records import arrays_of, record_of
from fixbn_flwr.method.averaging import Array
from fixbn_flwr.method.round_config import ROUND
from fixbn_flwr.tasks import normalise
from simulation.peers.layers import replace_layers
from simulation.peers.personal import PersonalClient

MEASURED = 256  # images of a client in each round


class HybridBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation by a mixture of the batch's and the running statistics.

    Training leaves the running statistics as they are.

    Args:
        channels: The number of channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.distribution_factor = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Map `[n, channels, h, w]` to the same shape."""
        if not self.training:
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        own_variance, own_mean = torch.var_mean(x, (0, 2, 3), correction=0)
        share = torch.sigmoid(self.distribution_factor)
        mean = torch.lerp(self.running_mean, own_mean, share)
        variance = torch.lerp(self.running_var, own_variance, share)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return x * scale[:, None, None] + (self.bias - mean * scale)[:, None, None]


def with_hybrid_normalisation(model: nn.Module) -> nn.Module:
    """Replace the batch normalisation layers of a model."""
    return replace_layers(
        model,
        lambda layer: (
            HybridBatchNorm2d(layer.num_features) if isinstance(layer, nn.BatchNorm2d) else None
        ),
    )


@torch.no_grad()
def measure(model: nn.Module, images: Tensor) -> dict[str, Array]:
    """Return the statistics of each hybrid layer's input, by their names in the state dict.

    Args:
        model: The model.
        images: Normalised images, `[n, channels, height, width]`.
    """
    found: dict[str, Array] = {}

    def look_at(name: str, layer: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, inputs: tuple[Tensor]) -> None:
            variance, mean = torch.var_mean(inputs[0], (0, 2, 3), correction=0)
            found[f"{name}.running_mean"] = mean.cpu().numpy()
            found[f"{name}.running_var"] = variance.cpu().numpy()

        return layer.register_forward_pre_hook(hook)

    hooks = [
        look_at(name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, HybridBatchNorm2d)
    ]
    model.train()
    model(images)
    for handle in hooks:
        handle.remove()
    return found


class HBNClient(PersonalClient):
    """A client that measures its statistics before it trains, and keeps its factors."""

    def is_own(self, name: str) -> bool:
        """Return whether an array stays at the client: a distribution factor."""
        return name.endswith(".distribution_factor")

    def train(self, received: RecordDict) -> RecordDict:
        """Measure the received model's statistics, and train for a round."""
        measured = self._measure(received)
        reply = super().train(received)
        arrays = arrays_of(reply.array_records["arrays"])
        reply["arrays"] = record_of({**arrays, **measured})
        return reply

    def _measure(self, received: RecordDict) -> dict[str, Array]:
        bench = self._bench(received)
        server_round = int(str(received.config_records["config"][ROUND]))
        seed = seed_of(self.settings.seed, server_round, self.node.number, 1)
        random = np.random.default_rng(seed)
        chosen = random.permutation(self.training)[:MEASURED]
        data = on_device(self._data, bench.device)
        images = data.images[torch.from_numpy(chosen)].to(bench.device)
        dtype = next(bench.model.parameters()).dtype
        images = normalise(self.task, images, dtype)
        return measure(bench.model, images.contiguous(memory_format=torch.channels_last))
