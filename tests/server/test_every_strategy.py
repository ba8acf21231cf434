"""Every strategy of Flower's Message API inside FixBN, in a whole federation beyond round T*."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import flwr.serverapp.strategy as shipped
import numpy as np
import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DifferentialPrivacyServerSideAdaptiveClipping,
    DifferentialPrivacyServerSideFixedClipping,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedXgbBagging,
    FedXgbCyclic,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
    Strategy,
)
from torch import nn

from fixbn_flwr import FixBN
from fixbn_flwr.client.parameters_only import parameters_only
from fixbn_flwr.errors import ConfigError, NoStatisticsError, RoundsFailedError
from fixbn_flwr.flower_compat import Mod
from fixbn_flwr.testing import FIRST_NODE_ID, SerializingGrid
from tests.support.clients import initial_arrays, training_app
from tests.support.small_federation import batches, fedavg, federation, network, same, statistics_of

CLIENTS, ROUNDS, FREEZE_AFTER = 4, 4, 2
EXAMPLES = [1, 2, 3, 4]

Arrays = dict[str, np.ndarray]
Rule = Callable[[Sequence[np.ndarray]], list[np.ndarray]]  # all valid results


def weighted(values: Sequence[np.ndarray], clients: Sequence[int] = range(CLIENTS)) -> np.ndarray:
    weights = np.float64([EXAMPLES[client] for client in clients])
    shares = weights / weights.sum()
    return np.sum(
        [share * np.float64(values[client]) for share, client in zip(shares, clients, strict=True)],
        axis=0,
    )


def mean(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [weighted(values)]


def median(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    _, low, high, _ = np.sort(np.float64(values), axis=0)
    return [(low + high) / 2]


def trimmed(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Trimming a quarter at each end of four values leaves two."""
    return median(values)


def unweighted(values: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.mean(np.float64(values), axis=0)]


def chosen(count: int) -> Rule:
    def rule(values: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [
            weighted(values, clients) for clients in itertools.combinations(range(CLIENTS), count)
        ]

    return rule


EVALUATE: dict[str, Any] = {"fraction_evaluate": 0.0}

# The expected average of the statistics; if a strategy chooses clients, one for each choice.
STRATEGIES: dict[str, tuple[Callable[[], Strategy], Rule]] = {
    "FedAvg": (lambda: FedAvg(**EVALUATE), mean),
    "FedAvgM": (
        lambda: FedAvgM(server_momentum=0.9, server_learning_rate=0.5, **EVALUATE),
        mean,
    ),
    "FedAdam": (lambda: FedAdam(**EVALUATE), mean),
    "FedAdagrad": (lambda: FedAdagrad(**EVALUATE), mean),
    "FedYogi": (lambda: FedYogi(**EVALUATE), mean),
    "FedProx": (lambda: FedProx(proximal_mu=0.1, **EVALUATE), mean),
    "QFedAvg": (lambda: QFedAvg(client_learning_rate=0.05, q=0.5, **EVALUATE), mean),
    "FedMedian": (lambda: FedMedian(**EVALUATE), median),
    "FedTrimmedAvg": (lambda: FedTrimmedAvg(beta=0.25, **EVALUATE), trimmed),
    "Krum": (lambda: Krum(**EVALUATE), chosen(1)),
    "MultiKrum": (lambda: MultiKrum(num_nodes_to_select=3, **EVALUATE), chosen(3)),
    "Bulyan": (lambda: Bulyan(num_malicious_nodes=0, **EVALUATE), unweighted),
    "DifferentialPrivacyServerSideFixedClipping": (
        lambda: DifferentialPrivacyServerSideFixedClipping(fedavg(), 0.1, 0.1, CLIENTS),
        mean,
    ),
    "DifferentialPrivacyServerSideAdaptiveClipping": (
        lambda: DifferentialPrivacyServerSideAdaptiveClipping(fedavg(), 0.1, CLIENTS),
        mean,
    ),
    "DifferentialPrivacyClientSideFixedClipping": (
        lambda: DifferentialPrivacyClientSideFixedClipping(fedavg(), 0.1, 0.1, CLIENTS),
        mean,
    ),
    "DifferentialPrivacyClientSideAdaptiveClipping": (
        lambda: DifferentialPrivacyClientSideAdaptiveClipping(fedavg(), 0.1, CLIENTS),
        mean,
    ),
}
MODS: dict[str, list[Mod]] = {
    "DifferentialPrivacyClientSideFixedClipping": [parameters_only(fixedclipping_mod)],
    "DifferentialPrivacyClientSideAdaptiveClipping": [parameters_only(adaptiveclipping_mod)],
}
REFUSED: dict[str, Callable[[], Strategy]] = {
    "FedXgbBagging": FedXgbBagging,
    "FedXgbCyclic": FedXgbCyclic,
}


def test_every_strategy_of_flower_is_tested() -> None:
    assert STRATEGIES.keys() | REFUSED.keys() == set(shipped.__all__) - {"Result", "Strategy"}


def recording_app(replies: dict[int, dict[int, Arrays]], mods: list[Mod]) -> ClientApp:
    """Return ordinary clients; record the arrays of each reply before any mod, by round."""

    def on_reply(partition: int, server_round: int, _: nn.Module, content: RecordDict) -> None:
        content.metric_records["metrics"]["train_loss"] = 0.3 + 0.2 * partition  # QFedAvg's
        record = content.array_records["arrays"]
        replies.setdefault(server_round, {})[partition] = {n: a.numpy() for n, a in record.items()}

    trainer = training_app(network, batches, examples=EXAMPLES, on_reply=on_reply)
    app = ClientApp(mods=mods)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return trainer(message, context)

    return app


@pytest.mark.parametrize("momentum", ["local", "global"])
@pytest.mark.parametrize("name", STRATEGIES)
def test_statistics_are_averaged_by_the_rule_and_frozen_bit_for_bit(
    name: str, momentum: str
) -> None:
    make, rule = STRATEGIES[name]
    replies: dict[int, dict[int, Arrays]] = {}
    np.random.seed(0)  # Flower's noise
    result, of_round = federation(
        FixBN(make(), freeze_after=FREEZE_AFTER, momentum=momentum),
        grid=SerializingGrid(recording_app(replies, MODS.get(name, [])), CLIENTS, shuffle_seed=1),
    )
    for server_round in range(1, ROUNDS + 1):
        before, after = of_round[server_round - 1], of_round[server_round]
        returned = [replies[server_round][client] for client in range(CLIENTS)]
        assert result.train_metrics_clientapp[server_round]["fixbn-dropped"] == 0
        assert {n: (a.dtype, a.shape) for n, a in after.items()} == {
            n: (a.dtype, a.shape) for n, a in before.items()
        }
        assert not np.array_equal(before["first.weight"], after["first.weight"])
        if server_round > FREEZE_AFTER:
            frozen = statistics_of(of_round[FREEZE_AFTER])
            assert same(statistics_of(after), frozen)
            assert all(same(statistics_of(own), frozen) for own in returned)
            continue
        # The choice is the same for all arrays: clients chosen for weights also give statistics.
        candidates = {n: rule([own[n] for own in returned]) for n in statistics_of(after)}
        assert any(
            all(
                np.allclose(after[n], values[choice], rtol=1e-6, atol=1e-7)
                for n, values in candidates.items()
            )
            for choice in range(len(next(iter(candidates.values()))))
        )
        assert not same(statistics_of(after), statistics_of(before))


TRANSFORMING = [name for name in STRATEGIES if name not in ("FedAvg", "FedProx")]


@pytest.mark.parametrize("name", TRANSFORMING)
def test_the_strategy_transforms_the_parameters(name: str) -> None:
    """Otherwise the tests above would prove nothing, as an average does not harm statistics."""
    replies: dict[int, dict[int, Arrays]] = {}
    app = recording_app(replies, MODS.get(name, []))
    make, _ = STRATEGIES[name]
    result, _ = federation(
        FixBN(make(), freeze_after=1.0), grid=SerializingGrid(app, CLIENTS), rounds=1
    )
    average = weighted([replies[1][client]["first.weight"] for client in range(CLIENTS)])
    assert not np.allclose(result.arrays["first.weight"].numpy(), average, rtol=1e-3)


@pytest.mark.parametrize("name", REFUSED)
def test_boosted_trees_are_refused(name: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"{name}, which does not average a PyTorch model's arrays"
    ):
        FixBN(REFUSED[name](), freeze_after=1)


@pytest.mark.parametrize(("metric", "value"), [("train_loss", float("nan")), ("train_loss", -1.0)])
def test_an_invalid_loss_is_dropped_before_qfedavg(
    metric: str, value: float, caplog: pytest.LogCaptureFixture
) -> None:
    def on_reply(partition: int, _: int, __: nn.Module, content: RecordDict) -> None:
        content.metric_records["metrics"][metric] = value if partition == 1 else 0.5

    strategy = FixBN(QFedAvg(client_learning_rate=0.05, **EVALUATE), freeze_after=1)
    result, of_round = federation(strategy, on_reply=on_reply, rounds=2)
    assert result.train_metrics_clientapp[2]["fixbn-dropped"] == 1
    assert np.isfinite(of_round[2]["first.weight"]).all()
    assert f"client {FIRST_NODE_ID + 1}: its metric 'train_loss'" in caplog.text


def test_qfedavg_without_losses_fails_with_the_remedy() -> None:
    strategy = FixBN(QFedAvg(client_learning_rate=0.05, **EVALUATE), freeze_after=1)
    with pytest.raises(RoundsFailedError, match=r"'train_loss' is None.*mean training loss"):
        federation(strategy)


@pytest.mark.parametrize(
    ("momentum", "uncovered"),
    [("local", "statistics, counters: they"), ("global", "counters, momentum buffers: they")],
)
def test_a_warning_names_the_arrays_that_privacy_does_not_cover(
    momentum: str, uncovered: str, caplog: pytest.LogCaptureFixture
) -> None:
    strategy = DifferentialPrivacyServerSideFixedClipping(fedavg(), 0.1, 0.1, CLIENTS)
    federation(FixBN(strategy, freeze_after=1, momentum=momentum), rounds=2)
    (warning,) = [r.getMessage() for r in caplog.records if "privacy guarantee" in r.getMessage()]
    assert "DifferentialPrivacyServerSideFixedClipping" in warning
    assert uncovered in warning


def test_a_wrapper_around_fixbn_that_changes_statistics_is_refused() -> None:
    inside = FixBN(fedavg(), freeze_after=2)
    outside = DifferentialPrivacyClientSideFixedClipping(inside, 0.1, 0.1, CLIENTS)
    with pytest.raises(ConfigError, match=r"Put FixBN outermost: FixBN\(DifferentialPrivacy"):
        federation(outside)
    with pytest.raises(ConfigError, match="not FixBN itself"):
        FixBN(outside, freeze_after=2)


def test_a_strategy_that_returns_no_model_ends_the_run() -> None:
    """Flower would complete the run. Bulyan against one client needs 4 * 1 + 3 clients."""
    strategy = FixBN(Bulyan(num_malicious_nodes=1, **EVALUATE), freeze_after=1)
    with pytest.raises(RoundsFailedError, match="round 1: Bulyan made no model from 4 usable"):
        federation(strategy)


# Server and clients that do not match


def test_arrays_without_names_are_refused_with_the_remedy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    nameless = ArrayRecord([array.numpy() for array in initial_arrays(network()).values()])
    with pytest.raises(NoStatisticsError, match=r"named 0, 1, 2.*ArrayRecord\(model\.state_dict"):
        FixBN(fedavg(), freeze_after=1).start(SerializingGrid(ClientApp(), 2), nameless, 3)
    FixBN(fedavg(), freeze_after=1.0).start(SerializingGrid(ClientApp(), 2), nameless, 0)
    assert "Every array is treated as a parameter" in caplog.text


class Silent(NumPyClient):
    pass


def test_a_numpy_client_without_the_mod_fails_with_the_remedy() -> None:
    app = ClientApp(client_fn=lambda _: Silent().to_client())
    with pytest.raises(RoundsFailedError) as caught:
        federation(FixBN(fedavg(), freeze_after=1), grid=SerializingGrid(app, CLIENTS))
    assert "mods=[numpy_client_mod]" in str(caught.value)
    assert str(caught.value).count("NumPyClients") == 1  # not once for every client


def test_a_client_that_looks_for_another_record_fails_with_its_name() -> None:
    strategy = FixBN(fedavg(arrayrecord_key="weights"), freeze_after=1)
    with pytest.raises(RoundsFailedError, match="unless its arrayrecord_key or configrecord_key"):
        federation(strategy)


def test_a_client_without_fixbn_causes_a_warning_that_names_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        model = network()
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        model.train()(batches(0, 1)[0][0])
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    _, of_round = federation(
        FixBN(fedavg(), freeze_after=1), grid=SerializingGrid(app, CLIENTS), rounds=2
    )
    assert same(statistics_of(of_round[2]), statistics_of(of_round[1]))
    warned = [r.getMessage() for r in caplog.records if "it did not freeze them" in r.getMessage()]
    assert len(warned) == CLIENTS
    for client in range(CLIENTS):
        assert any(f"client {FIRST_NODE_ID + client} " in line for line in warned)
    assert all("with local_training(" in line for line in warned)
