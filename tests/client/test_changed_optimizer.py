"""Saved momentum fits the optimizer of the next round, or is dropped with a warning."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from fixbn_flwr import local_training
from fixbn_flwr.method.optimizer_buffers import read_buffers
from tests.support.clients import sgd_step
from tests.support.rounds import client, round_config
from tests.support.small_federation import batches, network

Build = Callable[[Iterable[Tensor]], Optimizer]

BUILD: dict[str, Build] = {
    "SGD": lambda p: SGD(p, 0.1),
    "SGD momentum": lambda p: SGD(p, 0.1, momentum=0.9),
    "Adam": lambda p: Adam(p, 0.01),
    "Adam amsgrad": lambda p: Adam(p, 0.01, amsgrad=True),
    "AdamW": lambda p: AdamW(p, 0.01),
    "RMSprop": lambda p: RMSprop(p, 0.01),
    "RMSprop momentum": lambda p: RMSprop(p, 0.01, momentum=0.9),
}


def buffers_at_the_start_of_round_two(before: str, after: str) -> tuple[int, int]:
    """Return how many buffers the first round saved and the second got, and train both."""
    context = client()
    for server_round, name in enumerate((before, after), start=1):
        model = network()
        optimizer = BUILD[name](model.parameters())
        with local_training(model, optimizer, round_config(server_round), context):
            got = read_buffers(model, optimizer)
            sgd_step(model, optimizer, batches(0, server_round)[0])
        if server_round == 1:
            saved = read_buffers(model, optimizer)
    assert all(torch.equal(got[key], saved[key]) for key in got)
    return len(saved), len(got)


@pytest.mark.parametrize(
    ("before", "after", "missing"),
    [
        ("SGD momentum", "Adam", "exp_avg"),
        ("SGD momentum", "RMSprop", "square_avg"),
        ("Adam", "SGD momentum", "momentum_buffer"),
        ("Adam", "Adam amsgrad", "max_exp_avg_sq"),
        ("RMSprop", "RMSprop momentum", "momentum_buffer"),
    ],
)
def test_momentum_of_another_optimizer_is_dropped(
    before: str, after: str, missing: str, caplog: pytest.LogCaptureFixture
) -> None:
    saved, got = buffers_at_the_start_of_round_two(before, after)
    assert saved
    assert not got
    optimizer = after.split(maxsplit=1)[0]
    assert f"not that of {optimizer} with these options: it has no '{missing}'" in caplog.text


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("Adam", "AdamW"),
        ("Adam amsgrad", "Adam"),
        ("RMSprop momentum", "RMSprop"),
        ("SGD momentum", "SGD momentum"),
        ("SGD momentum", "SGD"),
        ("SGD", "Adam"),
    ],
)
def test_momentum_with_all_that_the_optimizer_needs_is_kept(
    before: str, after: str, caplog: pytest.LogCaptureFixture
) -> None:
    saved, got = buffers_at_the_start_of_round_two(before, after)
    assert saved == got
    assert "dropped" not in caplog.text
