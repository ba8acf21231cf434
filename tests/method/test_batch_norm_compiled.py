"""freeze_statistics with torch.compile."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from fixbn_flwr import freeze_statistics
from fixbn_flwr.method.batch_norm import statistics, statistics_layers
from tests.support.batch_norm import network, rows, statistics_unchanged


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # from torch's compiler
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("when", ["before", "inside"])
def test_a_compiled_model_freezes_and_thaws(backend: str, when: str) -> None:
    """Freezing affects code compiled for training; thawing affects code compiled when frozen."""
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
        compiled.train()(rows())  # compiled for training, statistics change
        model.load_state_dict(moved)
    with freeze_statistics(model if compiled is None else compiled):
        compiled = compiled if compiled is not None else compile_(model)
        for _ in range(2):
            output = compiled.train()(rows())
            torch.testing.assert_close(output, expected)
            output.sum().backward()
    assert statistics_unchanged(model, before)
    assert model[1].weight.grad is not None
    compiled.train()(rows())
    assert not statistics_unchanged(model, before)  # thawed again in compiled code
    assert model[1].num_batches_tracked == 1


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_code_is_reused_in_later_rounds() -> None:
    """Each class has one frozen class; a new one in each round would recompile up to a limit."""
    counter = CompileCounter()
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
    assert statistics_unchanged(model, before)
    compiled.train()(rows())
    assert not statistics_unchanged(model, before)
