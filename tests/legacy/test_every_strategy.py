"""Every strategy of flwr.server.strategy in legacy.FixBN, in whole federations beyond T*."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flwr.server.strategy as shipped
import numpy as np
import pytest
import safetensors.numpy
import torch
from flwr.common import ndarrays_to_parameters
from flwr.server.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    DPFedAvgAdaptive,
    DPFedAvgFixed,
    FaultTolerantFedAvg,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgAndroid,
    FedAvgM,
    FedMedian,
    FedOpt,
    FedProx,
    FedTrimmedAvg,
    FedXgbBagging,
    FedXgbCyclic,
    FedXgbNnAvg,
    FedYogi,
    Krum,
    QFedAvg,
    Strategy,
)
from torch import nn

from fixbn_flwr.errors import ConfigError
from tests.support.clients import Batch
from tests.support.older_federation import CLIENTS, NAMES, ROUNDS, STATISTICS, fedavg, fixbn
from tests.support.older_generation import Arrays, Trainer, arrays_of, numpy_app, run_older
from tests.support.small_federation import batches, network

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

FREEZE_AFTER = 2
EXAMPLES = [1, 2, 3, 4]


def choices(**own: Any) -> dict[str, Any]:
    initial = ndarrays_to_parameters(arrays_of(network()))
    return {"initial_parameters": initial, "fraction_evaluate": 0.0, **own}


def no_loss(server_round: int, arrays: Arrays, config: Any) -> Any:
    assert len(arrays) == len(NAMES)  # QFedAvg evaluates while it averages
    return 0.5, {}


def weighted(values: list[np.ndarray]) -> np.ndarray:
    return np.tensordot(np.array(EXAMPLES) / sum(EXAMPLES), np.float64(values), 1)


def unweighted(values: list[np.ndarray]) -> np.ndarray:
    return np.asarray(np.mean(np.float64(values), axis=0))


def median(values: list[np.ndarray]) -> np.ndarray:
    return np.asarray(np.median(np.float64(values), axis=0))


# The expected statistics after a round of exploration; None: those of any one client.
STRATEGIES: dict[str, tuple[Callable[[], Strategy], Callable[..., np.ndarray] | None]] = {
    "FedAvg": (lambda: FedAvg(**choices()), weighted),
    "FaultTolerantFedAvg": (lambda: FaultTolerantFedAvg(**choices()), weighted),
    "FedAvgM": (
        lambda: FedAvgM(**choices(server_momentum=0.9, server_learning_rate=0.5)),
        weighted,
    ),
    "FedOpt": (lambda: WithFedOpt(**choices()), weighted),
    "FedAdam": (lambda: FedAdam(**choices()), weighted),
    "FedAdagrad": (lambda: FedAdagrad(**choices()), weighted),
    "FedYogi": (lambda: FedYogi(**choices()), weighted),
    "FedProx": (lambda: FedProx(**choices(proximal_mu=0.1)), weighted),
    "QFedAvg": (
        lambda: QFedAvg(**choices(q_param=0.5, qffl_learning_rate=0.05, evaluate_fn=no_loss)),
        weighted,
    ),
    "FedMedian": (lambda: FedMedian(**choices()), median),
    "FedTrimmedAvg": (lambda: FedTrimmedAvg(**choices(beta=0.25)), median),
    "Krum": (lambda: Krum(**choices()), None),
    "Bulyan": (lambda: Bulyan(**choices(num_malicious_clients=0, to_keep=0)), unweighted),
    "DifferentialPrivacyServerSideFixedClipping": (
        lambda: DifferentialPrivacyServerSideFixedClipping(fedavg(), 0.1, 0.1, CLIENTS),
        weighted,
    ),
    "DifferentialPrivacyServerSideAdaptiveClipping": (
        lambda: DifferentialPrivacyServerSideAdaptiveClipping(fedavg(), 0.1, CLIENTS),
        weighted,
    ),
}
REFUSED: dict[str, Callable[[], Strategy]] = {
    "FedXgbBagging": FedXgbBagging,
    "FedXgbCyclic": FedXgbCyclic,
    "FedXgbNnAvg": FedXgbNnAvg,
    "FedAvgAndroid": FedAvgAndroid,
    "DifferentialPrivacyClientSideFixedClipping": (
        lambda: DifferentialPrivacyClientSideFixedClipping(fedavg(), 0.1, 0.1, CLIENTS)
    ),
    "DifferentialPrivacyClientSideAdaptiveClipping": (
        lambda: DifferentialPrivacyClientSideAdaptiveClipping(fedavg(), 0.1, CLIENTS)
    ),
    "DPFedAvgFixed": lambda: DPFedAvgFixed(fedavg(), CLIENTS, 0.1, 0.1),
    "DPFedAvgAdaptive": lambda: DPFedAvgAdaptive(fedavg(), CLIENTS, 0.1),
}


class WithFedOpt(FedOpt):
    """FedOpt itself only stores the initial model, from which a user's optimiser would step."""

    def aggregate_fit(self, server_round: int, results: Any, failures: Any) -> Any:
        aggregated = super().aggregate_fit(server_round, results, failures)
        assert len(self.current_weights) == len(NAMES) - len(STATISTICS) - 2  # and two counters
        return aggregated


def test_every_strategy_of_flower_is_tested() -> None:
    assert STRATEGIES.keys() | REFUSED.keys() == set(shipped.__all__) - {"Strategy"}


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_wrapped_strategy_does_not_transform_statistics(name: str) -> None:
    make, rule = STRATEGIES[name]
    returned: dict[int, dict[int, Arrays]] = {}

    def on_reply(partition: int, server_round: int, arrays: Arrays, _: Any) -> None:
        returned.setdefault(server_round, {})[partition] = [array.copy() for array in arrays]

    app = numpy_app(network, batches, examples=EXAMPLES, on_reply=on_reply)
    of_round = run_older(fixbn(make(), freeze_after=FREEZE_AFTER), app, ROUNDS)
    for server_round in range(1, FREEZE_AFTER + 1):
        for place in STATISTICS:
            own = [returned[server_round][client][place] for client in range(CLIENTS)]
            got = of_round[server_round][place]
            assert got.dtype == np.float32
            if rule is not None:
                assert np.allclose(got, rule(own), rtol=1e-5, atol=1e-6), NAMES[place]
            else:
                assert any(np.array_equal(got, chosen) for chosen in own), NAMES[place]
    for server_round in range(FREEZE_AFTER + 1, ROUNDS + 1):
        for place in STATISTICS:
            assert np.array_equal(of_round[server_round][place], of_round[FREEZE_AFTER][place])
    weight = NAMES.index("first.weight")
    for server_round in range(1, ROUNDS + 1):
        assert not np.array_equal(
            of_round[server_round][weight], of_round[server_round - 1][weight]
        )
        assert of_round[server_round][weight].dtype == np.float32


@pytest.mark.parametrize("name", REFUSED)
def test_unsupported_strategies_are_refused_by_the_constructor(name: str) -> None:
    with pytest.raises(ConfigError, match=f"FixBN got {name}"):
        fixbn(REFUSED[name]())


def test_differential_privacy_around_a_defending_strategy_is_refused() -> None:
    strategy = DifferentialPrivacyServerSideFixedClipping(Krum(**choices()), 0.1, 0.1, CLIENTS)
    with pytest.raises(ConfigError, match="around Krum"):
        fixbn(strategy)


def test_pooled_statistics_with_a_defending_strategy_are_refused() -> None:
    with pytest.raises(ConfigError, match='use statistics="mean"'):
        fixbn(FedMedian(**choices()), statistics="pooled")


def test_a_warning_names_the_arrays_that_privacy_does_not_cover(
    caplog: pytest.LogCaptureFixture,
) -> None:
    strategy = DifferentialPrivacyServerSideFixedClipping(fedavg(), 0.1, 0.1, CLIENTS)
    run_older(fixbn(strategy), numpy_app(network, batches), 1)
    assert "Its privacy guarantee does not cover statistics, counters: they" in caplog.text


# Defending strategies: one hostile client among seven

HOSTILE = 3
DEFENDERS: dict[str, Callable[[], Strategy]] = {
    "Krum": lambda: Krum(**choices(num_malicious_clients=1)),
    "MultiKrum": lambda: Krum(**choices(num_malicious_clients=1, num_clients_to_keep=4)),
    "Bulyan": lambda: Bulyan(**choices(num_malicious_clients=1, to_keep=0)),
    "FedMedian": lambda: FedMedian(**choices()),
    "FedTrimmedAvg": lambda: FedTrimmedAvg(**choices(beta=0.2)),
}


def identical_batches(partition: int, server_round: int) -> list[Batch]:
    generator = torch.Generator().manual_seed(100 * server_round + partition)
    x = torch.randn(32, 6, generator=generator)
    return [(x, torch.randint(0, 3, (32,), generator=generator))] * 2


def attacked(strategy: Strategy, name: str, value: float) -> bool:
    """Return whether the global array stays within the range of the honest clients."""
    place = NAMES.index(name)
    honest: list[np.ndarray] = []

    def on_reply(partition: int, _: int, arrays: Arrays, __: Any) -> None:
        if partition == HOSTILE:
            arrays[place] = np.full_like(arrays[place], value)
        else:
            honest.append(arrays[place].copy())

    app = numpy_app(network, identical_batches, on_reply=on_reply)
    got = run_older(strategy, app, 1, clients=7, shuffle_seed=1)[1][place]
    slack = 1e-6 + 1e-5 * np.abs(honest).max(axis=0)
    return bool(
        np.all(got >= np.min(honest, axis=0) - slack)
        and np.all(got <= np.max(honest, axis=0) + slack)
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("norm.running_mean", 1e6), ("norm.running_var", 0.0), ("first.bias", 1e6)],
)
def test_a_hostile_client_cannot_move_arrays_beyond_the_honest_range(
    name: str, value: float
) -> None:
    for make in DEFENDERS.values():
        strategy = make()
        assert attacked(fixbn(strategy), name, value), type(strategy)
    assert not attacked(fixbn(), name, value)  # the attack works without a defence


@pytest.mark.parametrize("name", DEFENDERS)
def test_averaged_momentum_is_defended_by_name(name: str) -> None:
    """Three arrays have the same shape, so buffers in a wrong order would cause no error."""
    sent: dict[int, dict[str, np.ndarray]] = {}
    returned: dict[int, list[dict[str, np.ndarray]]] = {}

    class Watching(Trainer):
        def fit(self, parameters: Any, config: Any) -> Any:
            if blob := config.get("fixbn-momentum-buffers"):
                sent[config["server-round"]] = safetensors.numpy.load(blob)
            return super().fit(parameters, config)

    def on_reply(partition: int, server_round: int, _: Any, metrics: dict[str, Any]) -> None:
        buffers = safetensors.numpy.load(metrics["fixbn-momentum-buffers"])
        if partition == HOSTILE:
            buffers = {key: np.full_like(value, 1e6) for key, value in buffers.items()}
            metrics["fixbn-momentum-buffers"] = safetensors.numpy.save(buffers)
        else:
            returned.setdefault(server_round, []).append(buffers)

    app = numpy_app(network, identical_batches, on_reply=on_reply, client=Watching)
    run_older(fixbn(DEFENDERS[name](), momentum="global"), app, 3, clients=7)
    assert sent.keys() == {2, 3}
    for server_round, buffers in sent.items():
        for key, got in buffers.items():
            own = [got for buffers in returned[server_round - 1]]
            slack = 1e-6 + 1e-5 * np.abs(own).max(axis=0)
            assert np.all(got >= np.min(own, axis=0) - slack), key
            assert np.all(got <= np.max(own, axis=0) + slack), key


def test_a_hostile_count_does_not_change_the_counter() -> None:
    place = NAMES.index("norm.num_batches_tracked")

    def on_reply(partition: int, _: int, arrays: Arrays, __: Any) -> None:
        if partition == HOSTILE:
            arrays[place] = np.int64(2**62) + arrays[place] * 0

    app = numpy_app(network, identical_batches, on_reply=on_reply)
    got = run_older(fixbn(FedMedian(**choices())), app, 1, clients=7)[1][place]
    assert got == 2


def test_server_optimisers_step_from_the_initial_parameters() -> None:
    """FedAvgM with rate 1 and no momentum equals FedAvg, but uses its own copy of the model."""
    app = numpy_app(network, batches)
    one = run_older(fixbn(FedAvgM(**choices(server_learning_rate=0.999999))), app, ROUNDS)[ROUNDS]
    other = run_older(fixbn(), app, ROUNDS)[ROUNDS]
    for name, *pair in zip(NAMES, one, other, strict=True):
        assert np.allclose(*pair, rtol=1e-3, atol=1e-5), name


def test_the_error_names_a_wrong_size_of_the_initial_model() -> None:
    initial = ndarrays_to_parameters(arrays_of(nn.Linear(2, 2)))
    with pytest.raises(ConfigError, match="has 2 arrays and parameter_names has 11 names"):
        fixbn(FedAdam(initial_parameters=initial))
