"""FixBN around real strategies with real clients, without Ray: the two phases and resuming."""

from __future__ import annotations

import copy
import itertools
import logging
import random

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import nn

from fixbn_flwr import FixBN, Phase
from fixbn_flwr.errors import (
    ConfigError,
)
from fixbn_flwr.method.averaging import Kind, kind_of
from fixbn_flwr.testing import SerializingGrid
from tests.support.clients import initial_arrays, training_app
from tests.support.small_federation import (
    CLIENTS,
    ROUNDS,
    WatchedFedAvg,
    batches,
    fedavg,
    federation,
    network,
    same,
    statistics_of,
)

# The two phases


def test_exploration_averages_the_statistics() -> None:
    returned: dict[int, dict[str, np.ndarray]] = {}

    def on_reply(partition: int, server_round: int, _: nn.Module, content: RecordDict) -> None:
        record = content.array_records["arrays"]
        returned[partition] = {name: a.numpy() for name, a in record.items()}

    examples = [1, 2, 3, 4]
    app = training_app(network, batches, on_reply=on_reply, examples=examples)
    grid = SerializingGrid(app, CLIENTS)
    result, _ = federation(FixBN(fedavg(), freeze_after=1.0), grid=grid, rounds=1)
    for name, array in result.arrays.items():
        own = [returned[partition][name].astype(np.float64) for partition in range(CLIENTS)]
        if kind_of(name, own[0].dtype) is not Kind.COUNTER and name != "positions":
            expected = sum(x * n / 10 for x, n in zip(own, examples, strict=True))
            np.testing.assert_allclose(array.numpy(), expected, rtol=1e-5, atol=1e-7)
    assert result.arrays["norm.running_mean"].numpy().any()


def test_pooled_statistics_have_the_larger_variance() -> None:
    mean, _ = federation(FixBN(fedavg(), freeze_after=1.0), rounds=1)
    pooled, _ = federation(FixBN(fedavg(), freeze_after=1.0, statistics="pooled"), rounds=1)
    assert np.all(
        pooled.arrays["norm.running_var"].numpy() > mean.arrays["norm.running_var"].numpy()
    )
    assert np.array_equal(
        pooled.arrays["norm.running_mean"].numpy(), mean.arrays["norm.running_mean"].numpy()
    )
    assert np.array_equal(
        pooled.arrays["first.weight"].numpy(), mean.arrays["first.weight"].numpy()
    )


@pytest.mark.parametrize("momentum", ["reset", "local", "global"])
@pytest.mark.parametrize("statistics", ["mean", "pooled"])
def test_statistics_are_bit_identical_after_the_freeze(momentum: str, statistics: str) -> None:
    trained_with: dict[int, list[dict[str, np.ndarray]]] = {}

    def on_reply(_: int, server_round: int, model: nn.Module, __: RecordDict) -> None:
        state = {name: tensor.numpy().copy() for name, tensor in model.state_dict().items()}
        trained_with.setdefault(server_round, []).append(statistics_of(state))

    strategy = FixBN(fedavg(), freeze_after=2, momentum=momentum, statistics=statistics)
    result, of_round = federation(strategy, on_reply=on_reply)
    frozen = statistics_of(of_round[2])
    assert strategy.frozen_statistics is not None
    assert same(strategy.frozen_statistics, frozen)
    for server_round in (3, 4):
        assert same(statistics_of(of_round[server_round]), frozen)
        assert len(trained_with[server_round]) == CLIENTS
        assert all(same(own, frozen) for own in trained_with[server_round])
        # All trained parameters change, including BN's affine parameters.
        for name in ("first.weight", "norm.weight", "norm.bias", "last.weight", "scale"):
            before, after = of_round[server_round - 1][name], of_round[server_round][name]
            assert not np.array_equal(before, after), name
    # In exploration each client has its own statistics, and the server a new average per round.
    assert not any(same(own, frozen) for own in trained_with[2])
    assert not same(statistics_of(of_round[1]), frozen)
    assert same({n: a.numpy() for n, a in result.arrays.items()}, of_round[4])


def test_phase_and_frozen_statistics_change_after_the_freeze_round() -> None:
    seen: list[tuple[Phase, bool]] = []
    strategy = FixBN(fedavg(), freeze_after=0.5)

    def on_reply(partition: int, *_: object) -> None:
        if partition == 0:
            seen.append((strategy.phase, strategy.frozen_statistics is not None))

    federation(strategy, on_reply=on_reply)
    assert seen == [(Phase.EXPLORATION, False)] * 2 + [(Phase.CALIBRATION, True)] * 2


def test_an_int_counts_rounds_and_a_float_is_a_fraction() -> None:
    phases = {}
    for freeze_after in (1, 1.0, 0.25, 3):
        strategy = FixBN(fedavg(), freeze_after=freeze_after)
        _, of_round = federation(strategy)
        same_as_before = [
            same(statistics_of(of_round[t]), statistics_of(of_round[t - 1]))
            for t in range(1, ROUNDS + 1)
        ]
        phases[repr(freeze_after)] = same_as_before
    assert phases == {
        "1": [False, True, True, True],
        "1.0": [False] * 4,
        "0.25": [False, True, True, True],
        "3": [False, False, False, True],
    }


def test_the_model_is_complete_and_keeps_its_order_and_types() -> None:
    expected = {name: (str(a.dtype), a.shape) for name, a in initial_arrays(network()).items()}
    result, _ = federation(FixBN(fedavg(), freeze_after=1))
    got = {name: (str(a.dtype), a.shape) for name, a in result.arrays.items()}
    assert list(got.items()) == list(expected.items())
    network().load_state_dict(result.arrays.to_torch_state_dict())


def test_counters_stay_integers() -> None:
    _, of_round = federation(FixBN(fedavg(), freeze_after=2))
    counts = [of_round[t]["norm.num_batches_tracked"] for t in range(ROUNDS + 1)]
    assert [int(count) for count in counts] == [0, 2, 4, 4, 4]  # two batches per round, then frozen
    assert all(count.dtype == np.int64 and count.shape == () for count in counts)


def test_other_integers_keep_their_values() -> None:
    """Flower's average turns 1 into 0.999..., which torch truncates to 0 on loading."""
    app = training_app(network, batches, examples=[1, 2, 3, 1])
    result, _ = federation(FixBN(fedavg(), freeze_after=1), grid=SerializingGrid(app, CLIENTS))
    assert result.arrays["positions"].numpy().tolist() == list(range(7))
    assert result.arrays["positions"].dtype == "int64"
    assert result.train_metrics_clientapp[ROUNDS]["fixbn-clients"] == CLIENTS


# Reproducibility


@pytest.mark.parametrize("momentum", ["reset", "local", "global"])
def test_the_order_of_messages_and_replies_changes_no_bit(momentum: str) -> None:
    app = training_app(network, batches, examples=[1, 7, 3, 5])
    results = []
    for seed in (None, 1, 2):
        random.seed(seed)  # determines the order of FedAvg's clients
        grid = SerializingGrid(app, CLIENTS, shuffle_seed=seed)
        strategy = FixBN(fedavg(), freeze_after=2, momentum=momentum, statistics="pooled")
        results.append(federation(strategy, grid=grid)[1][ROUNDS])
    assert all(same(one, other) for one, other in itertools.pairwise(results))


@pytest.mark.parametrize(
    ("freeze_after", "done"), [(2, 1), (2, 2), (2, 3), (0.5, 3), (1, 2), (3, 2)]
)
def test_a_resumed_run_equals_an_uninterrupted_one(freeze_after: int | float, done: int) -> None:
    """With momentum "reset", the runs agree bit for bit, and in their round numbers."""
    uninterrupted, of_uninterrupted = federation(
        FixBN(fedavg(), freeze_after=freeze_after, momentum="reset")
    )
    checkpoint = ArrayRecord({name: Array(a) for name, a in of_uninterrupted[done].items()})
    inner = WatchedFedAvg()
    random.seed(5)  # other samples than in the uninterrupted run
    rest, of_rest = federation(
        FixBN(inner, freeze_after=freeze_after, momentum="reset"),
        arrays=copy.deepcopy(checkpoint),
        first_round=done + 1,
    )
    assert same(of_rest[ROUNDS], of_uninterrupted[ROUNDS])
    assert sorted(of_rest) == list(range(done, ROUNDS + 1))
    assert sorted(rest.train_metrics_clientapp) == list(range(done + 1, ROUNDS + 1))
    assert sorted(rest.evaluate_metrics_clientapp) == list(range(done + 1, ROUNDS + 1))
    assert rest.evaluate_metrics_serverapp[ROUNDS] == {"round": ROUNDS}
    assert inner.rounds[0] == ("train", done + 1)
    assert sorted(uninterrupted.train_metrics_clientapp) == list(range(1, ROUNDS + 1))


def test_zero_rounds_return_the_initial_arrays() -> None:
    arrays = initial_arrays(network())
    result = FixBN(fedavg(), freeze_after=1.0).start(SerializingGrid(ClientApp(), 2), arrays, 0)
    assert result.arrays == arrays


def test_a_fraction_requires_start() -> None:
    strategy = FixBN(fedavg(), freeze_after=0.5)
    grid = SerializingGrid(ClientApp(), 2)
    with pytest.raises(ConfigError, match="start"):
        strategy.configure_train(1, initial_arrays(network()), ConfigRecord(), grid)


def test_the_summary_lists_the_options(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flwr")
    FixBN(fedavg(), freeze_after=7, momentum="global", learning_rate_factor=0.1).summary()
    assert "freeze_after 7 | momentum global | statistics mean | learning rate x 0.1" in caplog.text
    assert "Sampling" in caplog.text


def test_flowers_log_names_fixbn(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="flwr")
    federation(FixBN(fedavg(), freeze_after=1), rounds=1)
    assert "Starting FixBN strategy:" in caplog.text
