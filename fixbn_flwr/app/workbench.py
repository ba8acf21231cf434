"""A process's model and optimizer, which it builds once for all clients that it trains."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, lru_cache

import torch
from torch import Tensor, nn
from torch.optim import SGD

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.method.averaging import Array
from fixbn_flwr.tasks import Task
from fixbn_flwr.tasks.networks import network_of


class Workbench:
    """A model and its SGD optimizer, shared by all clients of a process.

    Load arrays, and set the learning rate and the momentum buffers, before each training.

    Args:
        model: The model, on its device.
        device: The model's device.
        momentum: SGD's momentum coefficient.
        weight_decay: SGD's L2 penalty.
        cuda_graphs: Whether steps on a GPU are captured as CUDA graphs. Default: no.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        momentum: float,
        weight_decay: float,
        *,
        cuda_graphs: bool = False,
    ) -> None:
        self.model = model
        self.device = device
        self.cuda_graphs = cuda_graphs and device.type == "cuda"
        self._momentum = momentum
        self._weight_decay = weight_decay

    @cached_property
    def optimizer(self) -> SGD:
        """The optimizer, made on first use: its imports take 4 s, which evaluation can save."""
        # A graph reads the learning rate from a tensor, and only fused SGD takes it from there.
        on_gpu = self.device.type == "cuda"
        return SGD(
            self.model.parameters(),
            lr=torch.zeros((), device=self.device) if on_gpu else 0.0,
            momentum=self._momentum,
            weight_decay=self._weight_decay,
            fused=on_gpu or None,
        )

    def random_of(self, random: torch.Generator) -> torch.Generator:
        """Return a generator on the device, seeded like one on the CPU; on the CPU, that one."""
        if self.device.type == "cpu":
            return random
        return self._random.manual_seed(random.initial_seed())

    @cached_property
    def _random(self) -> torch.Generator:
        return torch.Generator(self.device)

    @cached_property
    def _state(self) -> dict[str, Tensor]:
        """The model's state dict. Its tensors are the model's own."""
        return dict(self.model.state_dict())

    @torch.no_grad()
    def load(self, arrays: Mapping[str, Array]) -> None:
        """Copy a whole state dict of numpy arrays into the model.

        Raises:
            RuntimeError: If a name or a shape differs from the model's.
        """
        if arrays.keys() != self._state.keys():
            differing = sorted(arrays.keys() ^ self._state.keys())
            raise RuntimeError(f"these arrays are not the model's: {', '.join(differing)}")
        for name, tensor in self._state.items():
            if arrays[name].shape != tensor.shape:
                raise RuntimeError(
                    f"{name} has the shape {arrays[name].shape}, not {tuple(tensor.shape)}"
                )
            tensor.copy_(torch.from_numpy(arrays[name]))

    def arrays(self) -> dict[str, Array]:
        """Return a copy of the state dict as contiguous numpy arrays."""
        return {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format).numpy()
            for name, tensor in self._state.items()
        }

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set the learning rate of every parameter group."""
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(learning_rate)
            else:
                group["lr"] = learning_rate


@lru_cache(maxsize=1)
def workbench(
    task: Task,
    model: str,
    norm: str,
    momentum: float,
    weight_decay: float,
    device: str,
    cuda_graphs: bool = False,
) -> Workbench:
    """Build a workbench, or return the process's last one if the arguments are the same.

    Args:
        task: The task of the model.
        model: Its name, see :func:`fixbn_flwr.tasks.networks.network_of`.
        norm: The name of the normalisation, see :func:`fixbn_flwr.models.norm.normaliser`.
        momentum: SGD's momentum coefficient.
        weight_decay: SGD's L2 penalty.
        device: "auto" (CUDA if available, else the CPU), "cpu", "cuda" or "cuda:N".
        cuda_graphs: Whether steps on a GPU are captured as CUDA graphs. Default: no.

    Raises:
        ConfigError: If this machine has no such device.
    """
    place = find_device(device)
    # cuDNN chooses the fastest algorithm by trial. On a GPU, bits differ from run to run anyway,
    # because of atomic additions.
    torch.backends.cudnn.benchmark = place.type == "cuda"
    network = network_of(task, model, norm).to(place).to(memory_format=torch.channels_last)
    return Workbench(network, place, momentum, weight_decay, cuda_graphs=cuda_graphs)


def find_device(name: str) -> torch.device:
    """Return the device with this name; "auto" is CUDA if available, else the CPU.

    Raises:
        ConfigError: If this machine has no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device={name!r}: this machine has {torch.cuda.device_count()} CUDA devices that "
            'this process can use. Choose device="auto" or "cpu", or give simulated clients a '
            "share of a GPU (client-resources-num-gpus)."
        )
    return device
