"""freeze_statistics: what a frozen layer computes, and how freezing ends."""

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
from tests.support.batch_norm import network, rows, statistics_unchanged


def normalised_by_statistics(layer: nn.Module, x: Tensor) -> Tensor:
    """Return the output of a frozen BatchNorm1d, computed explicitly."""
    scale = layer.weight / torch.sqrt(layer.running_var + layer.eps)
    return (x - layer.running_mean) * scale + layer.bias


# Frozen layers


def test_a_frozen_layer_uses_its_statistics_and_does_not_change_them() -> None:
    layer, x = network()[1], torch.randn(5, 8)
    before = statistics(layer)
    with freeze_statistics(layer):
        layer.train()
        for _ in range(3):
            torch.testing.assert_close(layer(x), normalised_by_statistics(layer, x))
    assert statistics_unchanged(layer, before)
    assert layer.num_batches_tracked == 0
    layer(x)
    assert not statistics_unchanged(layer, before)  # thawed
    assert layer.num_batches_tracked == 1


def test_the_backward_pass_uses_the_statistics_too() -> None:
    """The gradient of a frozen layer is its scale, and does not depend on the rest of the batch."""
    layer, x = network()[1], torch.randn(5, 8, requires_grad=True)
    with freeze_statistics(layer):
        layer(x).sum().backward()
    scale = (layer.weight / torch.sqrt(layer.running_var + layer.eps)).detach()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, scale.expand(5, 8))


def test_model_train_does_not_thaw() -> None:
    """This holds for any number of calls, on the model or on the layer itself."""
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
    assert statistics_unchanged(model, before)


@pytest.mark.parametrize("last_mode", [True, False])
@pytest.mark.parametrize("first_mode", [True, False])
def test_thawed_layers_have_the_mode_that_the_loop_set_last(
    last_mode: bool, first_mode: bool
) -> None:
    model = network().train(first_mode)
    with freeze_statistics(model):
        model.train(last_mode)
    assert all(module.training is last_mode for module in model.modules())
    assert type(model[1]) is nn.BatchNorm1d


@pytest.mark.parametrize("first_mode", [True, False])
def test_thawed_layers_keep_their_mode_if_the_loop_sets_none(first_mode: bool) -> None:
    model = network().train(first_mode)
    with freeze_statistics(model):
        pass
    assert all(module.training is first_mode for module in model.modules())


def test_dropout_stays_active() -> None:
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
        in_batch = model(torch.cat([alone, 100 * x]))[:1]
        torch.testing.assert_close(model(alone), in_batch)
    assert not torch.allclose(model(torch.cat([alone, 100 * x]))[:1], in_batch)


def test_a_batch_of_one_trains_while_exploration_fails() -> None:
    model = network().train()
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(rows(1))
    with freeze_statistics(model):
        model(rows(1)).sum().backward()


def test_hooks_parameters_and_names_do_not_change() -> None:
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


# The end of the block


def test_an_exception_thaws_the_model_and_propagates() -> None:
    model = network()

    def loop() -> None:
        with freeze_statistics(model):
            model[1].running_mean.zero_()  # the loop's own exception takes precedence
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        loop()
    assert type(model[1]) is nn.BatchNorm1d
    before = statistics(model)
    model.train()(rows())
    assert not statistics_unchanged(model, before)


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
def test_changing_statistics_in_the_block_fails(move: Callable[[nn.Module], None]) -> None:
    model = network()
    with pytest.raises(StatisticsMovedError, match=r"of 2 .*'1\.running"), freeze_statistics(model):
        move(model)
    assert type(model[1]) is not type(network()) or model[1].training
    assert not type(model[1]).__name__.startswith("Frozen")


def test_loading_the_same_statistics_does_not_fail() -> None:
    model = network()
    state = copy.deepcopy(model.state_dict())
    with freeze_statistics(model):
        model.load_state_dict(state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_moving_the_model_to_the_gpu_in_the_block_does_not_fail() -> None:
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
def test_a_model_without_statistics_fails(model: nn.Module) -> None:
    with pytest.raises(NoStatisticsError, match=type(model).__name__), freeze_statistics(model):
        pytest.fail("entered")


def test_the_error_names_a_change_of_type() -> None:
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
        assert statistics_unchanged(model, before)
    model.train()(rows())
    assert not statistics_unchanged(model, before)


def test_an_outer_block_on_a_part_keeps_only_that_part_frozen() -> None:
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
@pytest.mark.parametrize("last_mode", [True, False])
def test_a_copy_made_in_the_block_is_an_ordinary_layer(
    duplicate: Callable[[nn.Module], nn.Module], last_mode: bool
) -> None:
    layer = network()[1]
    with freeze_statistics(layer):
        layer.train(last_mode)
        twin = duplicate(layer)
        assert type(twin) is nn.BatchNorm1d
        assert twin.training is last_mode
        assert not layer.training
    before = statistics(twin)
    assert before.keys() == {"running_mean", "running_var"}
    twin.train()(torch.randn(3, 8))
    assert not statistics_unchanged(twin, before)


def test_freezing_a_copy_does_not_freeze_the_original() -> None:
    model = network()
    twin = copy.deepcopy(model)
    with freeze_statistics(twin):
        model.train()
        twin.train()
        assert model[1].training
        assert not twin[1].training


def test_a_model_saved_in_the_block_loads_as_an_ordinary_model() -> None:
    model, file = network(), io.BytesIO()
    with freeze_statistics(model):
        torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert type(loaded[1]) is nn.BatchNorm1d
    assert loaded[1].training
