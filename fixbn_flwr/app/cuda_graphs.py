"""Local steps as CUDA graphs: a step's kernels are recorded once and replayed without Python.

A small network's step on a GPU takes longer to launch than to compute. A graph has fixed addresses,
so batches are copied to a static tensor, and the optimizer's momentum buffers are static, too. See
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial

import torch
from torch import Tensor

from fixbn_flwr.app.local_step import LocalStep
from fixbn_flwr.app.workbench import Workbench
from fixbn_flwr.log import logger

_LIMIT = 8  # graphs of a process; each keeps its own activations
_WARM_UP = 3  # steps before a capture, in which libraries choose their algorithms

Replay = Callable[[], Tensor]
Around = Callable[[LocalStep], Callable[[Tensor], Tensor]]


def replays(bench: Workbench, stage: Hashable) -> Around | None:
    """Return what ``train`` takes steps with: graphs of this process, or None for plain steps.

    Args:
        bench: The process's model and optimizer.
        stage: What a step depends on besides its batch: the phase, and the learning rate's factor.
    """
    return partial(_graphs_of(bench).around, stage=stage) if bench.cuda_graphs else None


@lru_cache(maxsize=1)
def _graphs_of(_: Workbench) -> CudaGraphs:
    return CudaGraphs()


def capture(step: Replay, random: torch.Generator) -> Replay:
    """Record a step as a CUDA graph; return a function that takes the step by replaying it.

    Args:
        step: The step; it reads its batch from a tensor that stays where it is.
        random: The generator that it draws from, besides the device's own.

    Raises:
        RuntimeError: If the step does something that cannot be recorded, such as reading a value
            on the CPU.
    """
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(random)
    with torch.cuda.graph(graph):
        loss = step()

    def replay() -> Tensor:
        graph.replay()
        return loss.clone()

    return replay


class CudaGraphs:
    """The captured steps of a process: one for each stage and batch size.

    Args:
        capture: Records a step. Default: as a CUDA graph.
    """

    def __init__(self, capture: Callable[[Replay, torch.Generator], Replay] = capture) -> None:
        self._capture = capture
        self._captured: dict[Hashable, tuple[Tensor, Replay]] = {}
        self._failed = False
        self._buffers: dict[Tensor, Tensor] = {}

    def around(self, step: LocalStep, stage: Hashable) -> Callable[[Tensor], Tensor]:
        """Return what takes a client's steps: replays, or the step itself where there are none.

        Args:
            step: The step. The optimizer has the client's momentum buffers.
            stage: What the step depends on besides its batch.
        """
        self._hold_buffers(step.bench.optimizer)

        def take(indices: Tensor) -> Tensor:
            key = (stage, step.precision, step.task, step.data, len(indices))
            if key not in self._captured and len(self._captured) < _LIMIT and not self._failed:
                self._add(key, step, indices)
            if key not in self._captured:
                return step(indices)
            batch, replay = self._captured[key]
            batch.copy_(indices)
            return replay()

        return take

    def _hold_buffers(self, optimizer: torch.optim.SGD) -> None:
        """Move the client's momentum buffers to the addresses that the graphs know."""
        for group in optimizer.param_groups:
            for parameter in group["params"] if group["momentum"] else ():
                state = optimizer.state[parameter]
                if parameter not in self._buffers:
                    self._buffers[parameter] = torch.empty_like(parameter)
                held = self._buffers[parameter]
                own = state.get("momentum_buffer")
                # SGD's first step makes the buffer the gradient, as does a buffer of zeros.
                held.zero_() if own is None else held.copy_(own)
                state["momentum_buffer"] = held

    def _add(self, key: Hashable, step: LocalStep, indices: Tensor) -> None:
        batch = indices.clone()
        try:
            with _without_trace(step):
                self._captured[key] = batch, self._capture(lambda: step(batch), step.random)
        except RuntimeError as error:
            self._failed = True
            reason = str(error).partition("\n")[0]
            logger.warning(
                "training goes on without CUDA graphs, more slowly: the local step cannot be "
                "captured (%s). Set cuda-graphs=false to leave out the attempt.", reason,
            )  # fmt: skip


@contextmanager
def _without_trace(step: LocalStep) -> Iterator[None]:
    """Restore the model, the momentum buffers and the generators after the block."""
    optimizer, device = step.bench.optimizer, step.bench.device
    buffers = [s["momentum_buffer"] for s in optimizer.state.values() if "momentum_buffer" in s]
    tensors = [*step.bench.model.state_dict().values(), *buffers]
    before, random = [tensor.clone() for tensor in tensors], step.random.get_state()
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        step.random.set_state(random)
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)
