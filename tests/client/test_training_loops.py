"""local_training around training loops of all kinds: the result must not depend on the loop.

Each loop trains a client for three rounds, one of exploration and two of calibration, with a new
model and a new optimiser in every round. Hooks on the optimiser check each step to the last bit.
The weights move by the loop's own rate times the factor times the momentum buffer, and the buffer
continues from the client's last one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from fixbn_flwr import Phase, local_training
from fixbn_flwr.method.batch_norm import statistics
from tests.support.rounds import client, round_config

RATE, MOMENTUM, FACTOR = 0.05, 0.9, 0.3
ROUNDS = [Phase.EXPLORATION, Phase.CALIBRATION, Phase.CALIBRATION]
Loop = Callable[[nn.Module, Optimizer], None]


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 8, bias=False),  # before batch normalisation, a bias has no gradient
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(8, 2),
    )


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(12, 4, generator=generator) + 1, torch.arange(12) % 2)


def loader() -> DataLoader[Any]:
    return DataLoader(data(), batch_size=4)


class Watch:
    """Checks every step of a client's optimisers, and that dropout is active."""

    def __init__(self) -> None:
        self.buffers: dict[str, Tensor] = {}  # continue from round to round

    def on(self, model: nn.Sequential, optimizer: Optimizer, factor: float) -> None:
        self.factor, self.dropped = factor, False
        self.rates: list[float] = []  # the loop's own, by step of the round
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        model[3].register_forward_hook(self._after_dropout)
        optimizer.register_step_pre_hook(self._before_step)
        optimizer.register_step_post_hook(self._after_step)

    @torch.compiler.disable
    def _after_dropout(self, layer: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
        assert layer.training is not torch.equal(args[0], output)
        self.dropped |= layer.training

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        (group,) = optimizer.param_groups
        self.rates.append(group["lr"])
        self.weights = {name: parameter.detach().clone() for parameter, name in self.names.items()}

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        (group,) = optimizer.param_groups
        assert group["params"] == list(self.names)
        for parameter, name in self.names.items():
            buffer = parameter.grad.clone()
            if name in self.buffers:
                buffer = self.buffers[name].mul(group["momentum"]).add(parameter.grad)
            assert torch.equal(optimizer.state[parameter]["momentum_buffer"], buffer)
            moved = self.weights[name].add(buffer, alpha=-self.rates[-1] * self.factor)
            assert torch.equal(parameter, moved)
            self.buffers[name] = buffer


def federated(
    loop: Loop, prepare: Callable[[Any, Any], tuple[Any, Any]] = lambda *both: both
) -> list[list[float]]:
    """Train a client for all rounds; return the loop's own rates, by round and step.

    Args:
        loop: the training loop.
        prepare: wraps model and optimiser before ``local_training`` and the loop use them.
    """
    watch, context, arrays, rates = Watch(), client(), network().state_dict(), []
    for server_round, phase in enumerate(ROUNDS, 1):
        model = network()
        model.load_state_dict(arrays)
        optimizer = SGD(model.parameters(), RATE, momentum=MOMENTUM)
        factor = FACTOR if phase is Phase.CALIBRATION else 1.0
        watch.on(model, optimizer, factor)
        before, weights = statistics(model), [p.detach().clone() for p in model.parameters()]
        prepared = prepare(model, optimizer)
        received = round_config(server_round, phase=phase, factor=factor)
        with local_training(*prepared, received, context) as local:
            loop(*prepared)
            assert local.phase is phase
        after = statistics(model)
        statistics_unchanged = [torch.equal(before[name], after[name]) for name in before]
        assert statistics_unchanged == [phase is Phase.CALIBRATION] * 2
        assert not any(torch.equal(*p) for p in zip(model.parameters(), weights, strict=True))
        assert watch.dropped
        assert type(model[1]) is nn.BatchNorm1d
        rates.append(watch.rates)
        arrays = model.state_dict()
    return rates


def cross_entropy(model: nn.Module, batch: list[Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


# Plain PyTorch


def test_several_epochs_with_validation_train_exactly() -> None:
    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        for _ in range(3):
            model.train()
            for batch in loader():
                optimizer.zero_grad()
                cross_entropy(model, batch).backward()
                optimizer.step()
            model.eval()
            with torch.no_grad():
                for batch in loader():
                    cross_entropy(model, batch)
            model.train()

    assert federated(loop) == [[RATE] * 9] * 3


def test_gradient_accumulation_and_clipping_train_exactly() -> None:
    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        model.train()
        for number, batch in enumerate([*loader(), *loader()]):
            (cross_entropy(model, batch) / 3).backward()
            if number % 3 == 2:
                nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                optimizer.step()
                optimizer.zero_grad()

    assert federated(loop) == [[RATE] * 2] * 3


def test_bfloat16_autocast_trains_exactly() -> None:
    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        model.train()
        for batch in loader():
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = cross_entropy(model, batch)
            loss.backward()
            optimizer.step()

    assert federated(loop) == [[RATE] * 3] * 3


def test_a_gradient_scaler_may_skip_a_step() -> None:
    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        scheduler = LambdaLR(optimizer, lambda n: 1 / (n + 1))
        model.train()
        for number, batch in enumerate(loader()):
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16):
                loss = cross_entropy(model, batch) * (torch.inf if number == 1 else 1.0)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()

    assert federated(loop) == [[RATE, RATE / 3]] * 3  # the second step is skipped


@pytest.mark.parametrize("name", ["lambda", "one cycle"])
def test_a_scheduler_may_run_inside_the_loop(name: str) -> None:
    """Both schedulers compute each rate from the initial rates or from their arguments."""

    def schedule(optimizer: Optimizer) -> Any:
        if name == "lambda":
            return LambdaLR(optimizer, lambda n: 0.5**n)
        return OneCycleLR(optimizer, 0.2, total_steps=3)

    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        scheduler = schedule(optimizer)
        model.train()
        for batch in loader():
            optimizer.zero_grad()
            cross_entropy(model, batch).backward()
            optimizer.step()
            if scheduler.last_epoch < 2:
                scheduler.step()

    rates = federated(loop)
    assert rates[0] == rates[1] == rates[2]
    assert len(set(rates[0])) == 3
    assert rates[0][1] == (RATE / 2 if name == "lambda" else rates[0][1])


def test_the_loop_may_set_the_rate() -> None:
    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        model.train()
        for number, batch in enumerate(loader()):
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * (number + 1)
            optimizer.zero_grad()
            cross_entropy(model, batch).backward()
            optimizer.step()

    assert federated(loop) == [[0.01, 0.02, 0.03]] * 3


# torch.compile


def _plain(model: nn.Module, optimizer: Optimizer) -> None:
    model.train()
    for batch in loader():
        optimizer.zero_grad()
        cross_entropy(model, batch).backward()
        optimizer.step()


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings(
    # From torch's compiler; the second one because the hook on dropout breaks its graph.
    "ignore::DeprecationWarning",
    "ignore:The .grad attribute of a Tensor that is not a leaf",
)
@pytest.mark.parametrize("when", ["before", "inside"])
def test_a_compiled_model_trains_exactly(when: str) -> None:
    def compiled(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        return torch.compile(model, backend="aot_eager"), optimizer  # type: ignore[return-value]

    if when == "before":
        federated(_plain, prepare=compiled)
    else:
        federated(lambda model, optimizer: _plain(*compiled(model, optimizer)))


# Data parallelism


@pytest.fixture
def _one_process() -> Iterator[None]:
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize("given", ["wrapped", "bare"])
def test_a_distributed_data_parallel_model_trains_exactly(given: str) -> None:
    def wrapped(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        return nn.parallel.DistributedDataParallel(model), optimizer

    if given == "wrapped":
        federated(_plain, prepare=wrapped)
    else:
        federated(lambda model, optimizer: _plain(*wrapped(model, optimizer)))


# PyTorch Lightning


@pytest.mark.filterwarnings(
    # From Lightning, about a loader without workers and an epoch shorter than its log interval.
    "ignore:The '(train|val)_dataloader' does not have many workers",
    "ignore:The number of training batches",
    # Expected: only the frozen layers are in eval mode.
    "ignore:Found 1 module.s. in eval mode at the start of training",
    # From torch, about a call by Lightning.
    r"ignore:.isinstance\(treespec, LeafSpec\). is deprecated:FutureWarning",
)
@pytest.mark.parametrize(
    ("given", "options", "steps"),
    [
        ("net", {}, 6),
        ("module", {"accumulate_grad_batches": 3, "gradient_clip_val": 0.5}, 2),
        ("module", {"precision": "bf16-mixed"}, 6),
    ],
    ids=["plain", "accumulating", "bfloat16"],
)
def test_lightnings_trainer_trains_exactly(given: str, options: dict[str, Any], steps: int) -> None:
    lightning = pytest.importorskip("lightning.pytorch")

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        """An ordinary module, except that it receives its optimiser."""

        def __init__(self, net: nn.Module, optimizer: Optimizer) -> None:
            super().__init__()
            self.net, self.optimizer = net, optimizer
            self.validated = 0

        def training_step(self, batch: list[Tensor], number: int) -> Tensor:
            assert self.optimizers().param_groups[0]["lr"] == RATE * 0.5**self.current_epoch
            return cross_entropy(self.net, batch)

        def validation_step(self, batch: list[Tensor], number: int) -> None:
            assert not self.net.training
            self.validated += 1

        def configure_optimizers(self) -> dict[str, Any]:
            return {
                "optimizer": self.optimizer,
                "lr_scheduler": LambdaLR(self.optimizer, lambda epoch: 0.5**epoch),
            }

    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        module = model if given == "module" else Module(model, optimizer)
        module.train()
        trainer = lightning.Trainer(
            max_epochs=2, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, **options,
        )  # fmt: skip
        trainer.fit(module, loader(), loader())
        assert module.validated > 6

    def prepare(model: nn.Module, optimizer: Optimizer) -> tuple[nn.Module, Optimizer]:
        return Module(model, optimizer) if given == "module" else model, optimizer

    half = steps // 2
    assert federated(loop, prepare) == [[RATE] * half + [RATE / 2] * half] * 3


def test_restoring_recorded_modes_keeps_frozen_layers_in_eval_mode() -> None:
    """Lightning does so around validation; frozen layers stay in eval mode."""
    model = network().train()
    received = round_config(phase=Phase.CALIBRATION)
    with local_training(model, SGD(model.parameters(), RATE), received, client()):
        modes = {module: module.training for module in model.modules()}
        model.eval()
        for module, mode in modes.items():
            module.training = mode
        assert model[3].training
    assert not model[1].training
    model.train()
    assert model[1].training


# Hugging Face accelerate


@pytest.mark.parametrize("given", ["prepared", "own"])
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_trains_exactly(given: str, precision: str) -> None:
    """local_training accepts both the prepared and the original model and optimiser."""
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(
        cpu=True, mixed_precision=precision, gradient_accumulation_steps=3
    )

    def loop(model: nn.Module, optimizer: Optimizer) -> None:
        if given == "own":
            model, optimizer = accelerator.prepare(model, optimizer)
        assert isinstance(optimizer, accelerate.optimizer.AcceleratedOptimizer)
        batches = accelerator.prepare(loader())
        schedule = LambdaLR(optimizer.optimizer, lambda n: 0.5**n)
        scheduler = accelerator.prepare(schedule)
        for _ in range(2):
            model.train()
            for batch in batches:
                with accelerator.accumulate(model):
                    accelerator.backward(cross_entropy(model, batch))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 0.5)
                    optimizer.step()
                    scheduler.step()
                    optimizer.zero_grad()

    prepare = accelerator.prepare if given == "prepared" else lambda *both: both
    try:
        assert federated(loop, prepare) == [[RATE, RATE / 2]] * 3
    finally:
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
