from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from fixbn_flwr import freeze_statistics
from fixbn_flwr.errors import NoStatisticsError, StatisticsMovedError
from fixbn_flwr.method.batch_norm import statistics, statistics_layers


def network() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    )
    model[1].running_mean.normal_()
    model[1].running_var.uniform_(0.5, 2)
    return model


def rows(n: int = 6) -> Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1))


def normalised_by_statistics(layer: nn.Module, x: Tensor) -> Tensor:
    """What a frozen BatchNorm1d must give, written out."""
    scale = layer.weight / torch.sqrt(layer.running_var + layer.eps)
    return (x - layer.running_mean) * scale + layer.bias


def unmoved(model: nn.Module, before: dict[str, Tensor]) -> bool:
    after = statistics(model)
    return before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)


# What frozen means


def test_normalises_with_the_statistics_and_leaves_them_and_the_counter_alone() -> None:
    layer, x = network()[1], torch.randn(5, 8)
    before = statistics(layer)
    with freeze_statistics(layer):
        layer.train()
        for _ in range(3):
            torch.testing.assert_close(layer(x), normalised_by_statistics(layer, x))
    assert unmoved(layer, before)
    assert layer.num_batches_tracked == 0
    layer(x)
    assert not unmoved(layer, before)  # thawed
    assert layer.num_batches_tracked == 1


def test_the_backward_pass_uses_the_statistics_too() -> None:
    """d/dx of a frozen layer is its scale, whatever the rest of the batch is."""
    layer, x = network()[1], torch.randn(5, 8, requires_grad=True)
    with freeze_statistics(layer):
        layer(x).sum().backward()
    scale = (layer.weight / torch.sqrt(layer.running_var + layer.eps)).detach()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, scale.expand(5, 8))


def test_model_train_does_not_thaw() -> None:
    """At any time and however often, on the model or on the layer itself."""
    model, before = network().eval(), statistics(network())
    with freeze_statistics(model):
        model(rows())
        for _ in range(3):
            model.train()
            model(rows())
            model[1].train()
            model(rows())
            model.train(False).train(True)
            model(rows())
            model[1].training = True
            model(rows())
            assert not model[1].training
    assert unmoved(model, before)


@pytest.mark.parametrize("asked_for", [True, False])
@pytest.mark.parametrize("started_as", [True, False])
def test_comes_back_in_the_mode_that_the_loop_asked_for(asked_for: bool, started_as: bool) -> None:
    model = network().train(started_as)
    with freeze_statistics(model):
        model.train(asked_for)
    assert all(module.training is asked_for for module in model.modules())
    assert type(model[1]) is nn.BatchNorm1d


@pytest.mark.parametrize("started_as", [True, False])
def test_keeps_its_mode_when_the_loop_asks_for_none(started_as: bool) -> None:
    model = network().train(started_as)
    with freeze_statistics(model):
        pass
    assert all(module.training is started_as for module in model.modules())


def test_dropout_still_drops() -> None:
    model = network()
    with freeze_statistics(model):
        model.train()
        assert model[3].training
        assert not torch.equal(model(rows()), model(rows()))
        model.eval()
        assert torch.equal(model(rows()), model(rows()))


def test_affine_parameters_get_gradients() -> None:
    model = network()
    with freeze_statistics(model):
        model.train()(rows()).square().sum().backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.any()


def test_the_output_for_one_input_does_not_depend_on_its_batch() -> None:
    model = network()
    model[3].p = 0.0
    alone, x = rows(1), rows()
    with freeze_statistics(model):
        model.train()
        in_company = model(torch.cat([alone, 100 * x]))[:1]
        torch.testing.assert_close(model(alone), in_company)
    assert not torch.allclose(model(torch.cat([alone, 100 * x]))[:1], in_company)


def test_a_batch_of_one_trains_where_exploration_raises() -> None:
    model = network().train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(rows(1))
    with freeze_statistics(model):
        model(rows(1)).sum().backward()


def test_hooks_parameters_and_names_stay() -> None:
    model = network()
    called: list[int] = []
    model[1].register_forward_hook(lambda *_: called.append(1))
    names, parameters = list(model.state_dict()), list(model.parameters())
    with freeze_statistics(model):
        model(rows())
        assert list(model.state_dict()) == names
        assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
        assert isinstance(model[1], nn.BatchNorm1d)
    assert called == [1]


# Ends


def test_an_exception_thaws_and_passes_through() -> None:
    model = network()

    def loop() -> None:
        with freeze_statistics(model):
            model[1].running_mean.zero_()  # moved as well: the loop's own exception is what counts
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        loop()
    assert type(model[1]) is nn.BatchNorm1d
    before = statistics(model)
    model.train()(rows())
    assert not unmoved(model, before)


def _load(model: nn.Module) -> None:
    model.load_state_dict({**model.state_dict(), "1.running_var": torch.full((8,), 3.0)})


def _reset(model: nn.Module) -> None:
    model[1].reset_running_stats()


def _write(model: nn.Module) -> None:
    model[1].running_mean.add_(1)


def _replace(model: nn.Module) -> None:
    model[1] = nn.BatchNorm1d(8)


def _remove(model: nn.Module) -> None:
    model[1] = nn.Identity()


@pytest.mark.parametrize("move", [_load, _reset, _write, _replace, _remove])
def test_statistics_written_in_the_block_are_an_error(move: Callable[[nn.Module], None]) -> None:
    model = network()
    with pytest.raises(StatisticsMovedError, match=r"of 2 .*'1\.running"), freeze_statistics(model):
        move(model)
    assert type(model[1]) is not type(network()) or model[1].training
    assert not type(model[1]).__name__.startswith("Frozen")


def test_loading_the_same_statistics_is_none() -> None:
    model = network()
    state = copy.deepcopy(model.state_dict())
    with freeze_statistics(model):
        model.load_state_dict(state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_moved_to_the_gpu_inside_is_none() -> None:
    model = network()
    with freeze_statistics(model):
        model.to("cuda").train()(rows().to("cuda"))


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(2, 2),
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)),
        nn.BatchNorm1d(4, track_running_stats=False),
        nn.InstanceNorm2d(4),
        nn.LayerNorm(4),
    ],
)
def test_a_model_without_statistics_is_an_error(model: nn.Module) -> None:
    with pytest.raises(NoStatisticsError, match=type(model).__name__), freeze_statistics(model):
        pytest.fail("entered")


# Nested, copied, pickled


def test_nested_blocks_thaw_at_the_end_of_the_outermost() -> None:
    model, before = network(), statistics(network())
    with freeze_statistics(model):
        with freeze_statistics(model[1]), freeze_statistics(model):
            model.train()(rows())
        model.train()(rows())
        assert unmoved(model, before)
    model.train()(rows())
    assert not unmoved(model, before)


def test_an_inner_block_on_a_part_thaws_that_part_only() -> None:
    model = nn.ModuleList([network(), network()])
    with freeze_statistics(model[0]):
        with freeze_statistics(model):
            model.train()
            assert not model[1][1].training
        model.train()
        assert not model[0][1].training
        assert model[1][1].training


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, copy.copy, lambda model: pickle.loads(pickle.dumps(model))]
)
@pytest.mark.parametrize("asked_for", [True, False])
def test_a_copy_made_inside_is_an_ordinary_layer(
    duplicate: Callable[[nn.Module], nn.Module], asked_for: bool
) -> None:
    layer = network()[1]
    with freeze_statistics(layer):
        layer.train(asked_for)
        twin = duplicate(layer)
        assert type(twin) is nn.BatchNorm1d
        assert twin.training is asked_for
        assert not layer.training
    before = statistics(twin)
    assert before.keys() == {"running_mean", "running_var"}
    twin.train()(torch.randn(3, 8))
    assert not unmoved(twin, before)


def test_a_copied_model_freezes_apart_from_its_original() -> None:
    model = network()
    twin = copy.deepcopy(model)
    with freeze_statistics(twin):
        model.train()
        twin.train()
        assert model[1].training
        assert not twin[1].training


def test_a_whole_model_saved_inside_loads_as_an_ordinary_one() -> None:
    model, file = network(), io.BytesIO()
    with freeze_statistics(model):
        torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert type(loaded[1]) is nn.BatchNorm1d
    assert loaded[1].training


# Kinds of layer


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.BatchNorm1d(4), (3, 4)),
        (nn.BatchNorm1d(4), (3, 4, 5)),
        (nn.BatchNorm2d(4), (3, 4, 5, 5)),
        (nn.BatchNorm3d(4), (3, 4, 5, 5, 5)),
        (nn.SyncBatchNorm(4), (3, 4, 5, 5)),
        (nn.BatchNorm2d(4, momentum=None), (3, 4, 5, 5)),
        (nn.BatchNorm2d(4, affine=False), (3, 4, 5, 5)),
        (nn.InstanceNorm1d(4, track_running_stats=True), (3, 4, 5)),
        (nn.InstanceNorm2d(4, track_running_stats=True, affine=True), (3, 4, 5, 5)),
        (nn.InstanceNorm3d(4, track_running_stats=True), (3, 4, 5, 5, 5)),
    ],
)
def test_every_layer_of_torch_with_running_statistics(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    layer.running_mean.fill_(0.5)
    x = 2 + torch.randn(shape)
    expected = copy.deepcopy(layer).eval()(x)
    before = statistics(layer)
    own_class = type(layer)
    with freeze_statistics(layer):
        torch.testing.assert_close(layer.train()(x), expected)
    assert unmoved(layer, before)
    assert type(layer) is own_class
    layer.train()(x)
    assert not unmoved(layer, before)


class Block(nn.BatchNorm2d):
    """A user's subclass: own forward, own children, own attribute, own constructor."""

    def __init__(self, channels: int, *, gain: float) -> None:
        super().__init__(channels)
        self.gain = gain
        self.inner = nn.BatchNorm2d(channels)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        assert self.dropout.training  # it was asked to train
        return self.gain * self.dropout(self.inner(super().forward(x)))


def test_a_subclass_with_its_own_forward_and_children() -> None:
    model = nn.Sequential(Block(3, gain=2.0))
    x = torch.randn(2, 3, 4, 4)
    before = statistics(model)
    assert len(before) == 4
    with freeze_statistics(model):
        model.train()
        assert not torch.equal(model(x), model(x))  # its dropout drops
        twin = copy.deepcopy(model)
        assert isinstance(model[0], Block)
        assert model[0].gain == 2.0
    assert unmoved(model, before)
    assert type(model[0]) is type(twin[0]) is Block
    model(x)
    assert not unmoved(model, before)


def test_a_lazy_layer_that_knows_no_shapes_is_an_error_that_says_so() -> None:
    model = nn.Sequential(nn.LazyBatchNorm1d())
    with (
        pytest.raises(
            NoStatisticsError, match=r"'0' is a LazyBatchNorm1d .*load the global arrays"
        ),
        freeze_statistics(model),
    ):
        pytest.fail("entered")
    assert type(model[0]) is nn.LazyBatchNorm1d


@pytest.mark.parametrize("loaded", [True, False])
def test_a_lazy_layer_is_frozen_once_it_has_statistics(loaded: bool) -> None:
    """One loaded from the server changes its class at its first batch, which must not thaw it."""
    model = nn.Sequential(nn.LazyBatchNorm1d())
    if loaded:
        model.load_state_dict(nn.Sequential(nn.BatchNorm1d(4)).state_dict())
    else:
        model(rows())
    before = statistics(model)
    with freeze_statistics(model):
        model.train()
        torch.testing.assert_close(model(rows()[:1]), model(rows())[:1])
    assert unmoved(model, before)
    assert type(model[0]) is nn.BatchNorm1d
    model(rows())
    assert not unmoved(model, before)


def test_a_layer_used_under_two_names_is_frozen_once_and_thawed() -> None:
    layer = nn.BatchNorm1d(4)
    model = nn.ModuleDict({"a": layer, "b": layer})
    with freeze_statistics(model):
        assert not layer.training
    assert type(layer) is nn.BatchNorm1d


def test_names_are_those_of_the_state_dict() -> None:
    model = nn.ModuleDict({"stem": network(), "head": nn.BatchNorm2d(2)})
    expected = {name for name in model.state_dict() if "running_" in name}
    assert statistics(model).keys() == expected
    assert statistics(nn.BatchNorm1d(2)).keys() == {"running_mean", "running_var"}


# torch.compile


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler about itself
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("when", ["before", "inside"])
def test_compiled(backend: str, when: str) -> None:
    """Freezing must reach code compiled for training, and thawing code compiled when frozen."""
    model = network()
    model[3].p = 0.0
    frozen = copy.deepcopy(model)
    expected = nn.Sequential(frozen[0], frozen[1].eval(), *frozen[2:])(rows())

    def compile_(model: nn.Module) -> Any:
        return torch.compile(model, backend=backend, fullgraph=True)

    before = statistics(model)
    compiled = compile_(model) if when == "before" else None
    if compiled is not None:
        with torch.no_grad():
            compiled.eval()(rows())
        moved = copy.deepcopy(model.state_dict())
        compiled.train()(rows())  # compiled for training, statistics move
        model.load_state_dict(moved)
    with freeze_statistics(model if compiled is None else compiled):
        compiled = compiled if compiled is not None else compile_(model)
        for _ in range(2):
            output = compiled.train()(rows())
            torch.testing.assert_close(output, expected)
            output.sum().backward()
    assert unmoved(model, before)
    assert model[1].weight.grad is not None
    compiled.train()(rows())
    assert not unmoved(model, before)  # thawed again in compiled code
    assert model[1].num_batches_tracked == 1


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_code_is_used_again_in_later_rounds() -> None:
    """One frozen class for each class: a new one each round would recompile up to a limit."""
    counter = torch._dynamo.testing.CompileCounter()
    model = network()
    compiled = torch.compile(model, backend=counter)
    for _ in range(12):
        with freeze_statistics(model):
            compiled.train()(rows())
        compiled.train()(rows())
    assert counter.frame_count == 2  # frozen and thawed


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_models_statistics_are_found_and_thawed_after_an_exception() -> None:
    model = network()
    compiled = torch.compile(model, backend="eager")
    assert len(statistics_layers(compiled)) == 1
    before = statistics(model)

    def loop() -> None:
        with freeze_statistics(compiled):
            compiled.train()(rows())
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        loop()
    assert unmoved(model, before)
    compiled.train()(rows())
    assert not unmoved(model, before)


# The zoo

ZOO = [name for name in torchvision.models.list_models() if not name.startswith("quantized_")]
WITHOUT_STATISTICS = (
    "alexnet", "convnext", "mvit", "raft_small", "squeezenet", "ssd300", "swin", "vit",
    *(f"vgg{layers}" for layers in (11, 13, 16, 19)),
)  # fmt: skip


class _WeightsOnMeta(TorchFunctionMode):
    """Layers' weights cost nothing; statistics, made with torch.zeros and torch.ones, are real."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty:
            kwargs["device"] = "meta"
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)


@contextmanager
def _real() -> Iterator[None]:
    yield


def _zoo_model(name: str, *, real: bool = False, **choices: Any) -> nn.Module:
    build = torchvision.models.get_model_builder(name)
    if "weights_backbone" in inspect.signature(build).parameters:
        choices["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        choices["init_weights"] = False  # they warn otherwise
    # This one runs itself when it is built.
    real = real or name == "ssdlite320_mobilenet_v3_large"
    with _real() if real else _WeightsOnMeta():
        return build(weights=None, **choices)


@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_zoo(name: str) -> None:
    model = _zoo_model(name)
    expected = {name for name in model.state_dict() if "running_" in name}
    if not expected:
        assert name.startswith(WITHOUT_STATISTICS)
        with pytest.raises(NoStatisticsError), freeze_statistics(model):
            pytest.fail("entered")
        return
    assert not name.startswith(WITHOUT_STATISTICS) or name.endswith("_bn")
    assert statistics(model).keys() == expected
    layers = [layer for layer in model.modules() if hasattr(layer, "num_batches_tracked")]
    layers = [layer for layer in layers if layer.num_batches_tracked is not None]
    assert 2 * len(layers) == len(expected)
    classes = [type(layer) for layer in layers]
    with freeze_statistics(model):
        model.train()
        assert not any(layer.training for layer in layers)
        assert all(module.training for module in set(model.modules()) - set(layers))
    assert all(layer.training for layer in layers)
    assert [type(layer) for layer in layers] == classes


def test_the_zoo_is_whole() -> None:
    """The excluded names are known, so that a new torchvision's models are tested or noticed."""
    assert sum(not name.startswith(WITHOUT_STATISTICS) for name in ZOO) >= 60
    assert {"deeplabv3_resnet50", "fasterrcnn_resnet50_fpn_v2", "r3d_18"} <= set(ZOO)


@pytest.mark.parametrize(
    ("name", "arrays", "missed"),
    [
        ("resnet18", 100, 15),
        ("mobilenet_v2", 260, 260),
        ("vgg11_bn", 40, 40),
        ("densenet121", 605, 605),
        ("deeplabv3_mobilenet_v3_large", 265, 265),
    ],
)
def test_names_miss_layers_that_the_class_finds(name: str, arrays: int, missed: int) -> None:
    """The search that published code does, `"bn" in name`, and ours."""
    model = _zoo_model(name)
    of_layers = {
        f"{layer_name}.{array}"
        for layer_name, layer in statistics_layers(model).items()
        for array in layer.state_dict()
    }
    by_name = {array for array in model.state_dict() if "bn" in array}
    assert len(of_layers) == arrays
    assert len(of_layers - by_name) == missed


def _image(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(2))


def _classify(model: nn.Module) -> Tensor:
    loss: Tensor = model(_image(2, 3, 64, 64)).square().mean()
    return loss


def _segment(model: nn.Module) -> Tensor:
    outputs = model(_image(1, 3, 64, 64))  # one image: DeepLab's pooled branch has 1x1 maps
    loss: Tensor = sum(output.square().mean() for output in outputs.values())
    return loss


def _detect(model: nn.Module) -> Tensor:
    boxes = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]), "labels": torch.tensor([1])}
    losses = model([_image(3, 64, 64)] * 2, [boxes] * 2)
    loss: Tensor = sum(losses.values())
    return loss


def _watch(model: nn.Module) -> Tensor:
    loss: Tensor = model(_image(1, 3, 4, 32, 32)).square().mean()
    return loss


@pytest.mark.parametrize(
    ("name", "train", "choices"),
    [
        ("resnet18", _classify, {}),
        ("mobilenet_v2", _classify, {}),
        ("shufflenet_v2_x0_5", _classify, {}),
        ("lraspp_mobilenet_v3_large", _segment, {}),
        ("deeplabv3_mobilenet_v3_large", _segment, {}),
        ("ssdlite320_mobilenet_v3_large", _detect, {"num_classes": 3}),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", _detect, {"num_classes": 3, "min_size": 64}),
        ("mc3_18", _watch, {}),
    ],
)
def test_models_of_the_zoo_train(
    name: str, train: Callable[[nn.Module], Tensor], choices: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = _zoo_model(name, real=True, **choices)
    before = statistics(model)
    with freeze_statistics(model):
        model.train()
        loss = train(model)
        loss.backward()
    assert torch.isfinite(loss)
    assert unmoved(model, before)
    for layer in statistics_layers(model).values():
        assert layer.num_batches_tracked == 0
        assert layer.training
        assert layer.weight.grad is not None


def test_a_change_of_type_inside_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model(torch.randn(8, 4))
    with (
        pytest.raises(StatisticsMovedError, match=r"from torch\.float32 to torch\.bfloat16"),
        freeze_statistics(model),
    ):
        model.bfloat16()
