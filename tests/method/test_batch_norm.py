"""freeze_statistics: what frozen means and how it ends."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fixbn_flwr import freeze_statistics
from fixbn_flwr.errors import NoStatisticsError, StatisticsMovedError
from fixbn_flwr.method.batch_norm import statistics
from tests.support.batch_norm import network, rows, unmoved


def normalised_by_statistics(layer: nn.Module, x: Tensor) -> Tensor:
    """What a frozen BatchNorm1d must give, written out."""
    scale = layer.weight / torch.sqrt(layer.running_var + layer.eps)
    return (x - layer.running_mean) * scale + layer.bias


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


def test_a_change_of_type_inside_is_named() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    model(torch.randn(8, 4))
    with (
        pytest.raises(StatisticsMovedError, match=r"from torch\.float32 to torch\.bfloat16"),
        freeze_statistics(model),
    ):
        model.bfloat16()


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
