from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from fixbn_flwr.method.signals import SignalTracker
from fixbn_flwr.method.update import Update

SENT = {"w": np.zeros(2, np.float32)}


def update(
    mean: Any = (0.0, 0.0),
    variance: Any = (1.0, 1.0),
    *,
    weights: Any = (0.0, 0.0),
    weight: float = 1.0,
    loss: float | None = None,
) -> Update:
    arrays = {
        "bn.running_mean": np.array(mean, np.float32),
        "bn.running_var": np.array(variance, np.float32),
        "bn.num_batches_tracked": np.array(3),
    }
    return Update(arrays, {}, weight, {"w": np.array(weights, np.float32)}, loss)


def observed(*updates: Update, tracker: SignalTracker | None = None, frozen: bool = False) -> Any:
    return (tracker or SignalTracker()).observe(dict(enumerate(updates)), SENT, frozen=frozen)


def test_equal_clients_do_not_disagree() -> None:
    signals = observed(update(weights=(1.0, 2.0)), update(weights=(1.0, 2.0)))
    assert (signals.mean_disagreement, signals.variance_disagreement) == (0.0, 0.0)
    assert signals.update_agreement == pytest.approx(2.0)
    assert signals.update_norm == pytest.approx(math.sqrt(5))


def test_running_means_are_compared_in_units_of_the_variance() -> None:
    # Channel 1: means 1 and 3, so a variance of 1 between clients; channel 2: none. Variance 4.
    signals = observed(update((1.0, 5.0), (4.0, 4.0)), update((3.0, 5.0), (4.0, 4.0)))
    assert signals.mean_disagreement == pytest.approx((1 / 4 + 0) / 2, rel=1e-4)
    assert signals.variance_disagreement == 0.0


def test_running_variances_are_compared_by_their_logarithms() -> None:
    # ln 1 and ln e^2 differ by 1 from their mean.
    signals = observed(update(variance=(1.0, 1.0)), update(variance=(math.e**2, 1.0)))
    assert signals.variance_disagreement == pytest.approx((1 + 0) / 2, rel=1e-4)
    assert signals.by_layer == {"bn": signals.variance_disagreement}


def test_clients_count_with_their_weights() -> None:
    signals = observed(update((0.0, 0.0), weight=3.0), update((4.0, 4.0), weight=1.0))
    assert signals.mean_disagreement == pytest.approx(3.0, rel=1e-4)  # mean 1: 3/4 * 1 + 1/4 * 9


def test_each_layer_has_its_own_disagreement_and_large_layers_count_more() -> None:
    def of(one: float, three: float) -> Update:
        arrays = {
            "a.running_mean": np.zeros(1), "a.running_var": np.full(1, one),
            "b.running_mean": np.zeros(3), "b.running_var": np.full(3, three),
        }  # fmt: skip
        return Update(arrays, {}, 1.0, {"w": np.zeros(2)})

    signals = observed(of(1.0, 1.0), of(math.e**2, 1.0))
    assert signals.by_layer == {"a": pytest.approx(1.0, rel=1e-4), "b": 0.0}
    assert signals.variance_disagreement == pytest.approx(1 / 4, rel=1e-4)


def test_noise_cancels_and_a_lasting_difference_stays() -> None:
    """In one channel the clients always differ, in the other by chance, with either sign."""
    tracker = SignalTracker()
    e = math.e
    first = observed(update(variance=(e, e)), update(variance=(1 / e, 1 / e)), tracker=tracker)
    assert first.systematic_disagreement is None
    second = observed(update(variance=(e, 1 / e)), update(variance=(1 / e, e)), tracker=tracker)
    assert second.disagreement == pytest.approx(1 / 2, rel=1e-4)  # the means are equal
    assert second.systematic_disagreement == pytest.approx((1 - 1) / 4, abs=1e-4)
    third = observed(update(variance=(e, e)), update(variance=(1 / e, 1 / e)), tracker=tracker)
    assert third.systematic_disagreement == pytest.approx(0.0, abs=1e-4)
    fourth = observed(update(variance=(e, e)), update(variance=(1 / e, 1 / e)), tracker=tracker)
    assert fourth.systematic_disagreement == pytest.approx(1 / 2, rel=1e-4)


def test_means_count_as_much_as_variances() -> None:
    tracker = SignalTracker()
    for _ in range(2):
        signals = observed(update((1.0, 1.0)), update((-1.0, -1.0)), tracker=tracker)
    assert signals.disagreement == pytest.approx(1 / 2, rel=1e-4)
    assert signals.systematic_disagreement == pytest.approx(1 / 2, rel=1e-4)


def test_a_client_is_compared_with_its_own_last_round_only() -> None:
    tracker = SignalTracker()
    e = math.e
    tracker.observe({1: update(variance=(e, e)), 2: update(variance=(1 / e, 1 / e))}, SENT)
    others = {3: update(variance=(e, e)), 4: update(variance=(1 / e, 1 / e))}
    assert tracker.observe(others, SENT).systematic_disagreement is None
    one_again = {1: update(variance=(e, e)), 5: update(variance=(1 / e, 1 / e))}
    again = tracker.observe(one_again, SENT).systematic_disagreement
    assert again == pytest.approx(1 / 2, rel=1e-4)


def test_the_oldest_deviations_go_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fixbn_flwr.method.signals._LARGEST", 3 * 16)  # four float32 each
    tracker = SignalTracker()
    for client in range(5):
        tracker.observe({client: update()}, SENT)
    assert list(tracker.state()["deviations"]) == ["2", "3", "4"]


def test_drift_is_the_change_of_the_average_since_the_last_round() -> None:
    tracker = SignalTracker()
    first = observed(update((0.0, 0.0)), update((2.0, 0.0)), tracker=tracker)
    assert first.drift is None
    second = observed(update((3.0, 0.0)), update((3.0, 0.0)), tracker=tracker)
    assert second.drift == pytest.approx(((3 - 1) ** 2 + 0) / 2, rel=1e-4)


def test_updates_that_cancel_do_not_agree_at_all() -> None:
    signals = observed(update(weights=(3.0, 4.0)), update(weights=(-3.0, -4.0)))
    assert (signals.update_norm, signals.update_agreement) == (5.0, 0.0)


@pytest.mark.parametrize("weight", [1.0, 5.0])
def test_orthogonal_updates_agree_as_unrelated_ones_do(weight: float) -> None:
    signals = observed(update(weights=(1.0, 0.0), weight=weight), update(weights=(0.0, 2.0)))
    assert signals.update_agreement == pytest.approx(1.0)


def test_a_sample_of_a_large_model_tells_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    sent = {"a": np.zeros((40, 50), np.float32), "b": np.zeros(3000, np.float32)}
    common = {name: random.normal(size=array.shape) for name, array in sent.items()}
    updates = {
        client: Update(
            {}, {}, 1.0,
            {n: (v + random.normal(size=v.shape)).astype(np.float32) for n, v in common.items()},
        )
        for client in range(4)
    }  # fmt: skip
    whole = SignalTracker().observe(updates, sent)
    monkeypatch.setattr("fixbn_flwr.method.signals._SAMPLED", 1000)
    sample = SignalTracker().observe(updates, sent)
    assert whole.update_agreement == pytest.approx(2.5, rel=0.1)  # (4 * 1 + 1) / 2
    assert sample.update_agreement == pytest.approx(whole.update_agreement, rel=0.1)
    assert sample.update_norm == pytest.approx(whole.update_norm, rel=0.05)
    assert sample.update_norm != whole.update_norm


def test_one_client_cannot_feign_a_loss_or_a_long_update() -> None:
    honest = [update(weights=(3.0, 4.0), loss=1.0) for _ in range(3)]
    signals = observed(*honest, update(weights=(1e6, 1e6), loss=1e9))
    assert (signals.train_loss, signals.update_norm) == (1.0, 5.0)


def test_the_loss_is_that_of_the_clients_that_have_one_unless_most_have_none() -> None:
    lost = update(loss=math.nan)
    assert observed(update(loss=1.0), update(loss=3.0), lost, update()).train_loss == 2.0
    assert math.isnan(observed(update(loss=1.0), lost, lost).train_loss)


def test_half_precision_does_not_overflow() -> None:
    sent = {"w": np.zeros(2, np.float16)}
    large = Update({}, {}, 1.0, {"w": np.full(2, 3e4, np.float16)})
    signals = SignalTracker().observe({1: large, 2: large}, sent)
    assert signals.update_norm == pytest.approx(math.sqrt(2) * 3e4, rel=1e-3)
    assert signals.update_agreement == pytest.approx(2.0, rel=1e-3)


def test_frozen_statistics_and_models_without_any_have_no_disagreement() -> None:
    without = Update({}, {}, 1.0, {"w": np.ones(2)})
    for signals in (observed(update(), frozen=True), observed(without)):
        metrics = signals.as_metrics()
        assert metrics.keys() == {"fixbn-update-norm", "fixbn-update-agreement"}


@pytest.mark.parametrize("mean", [{}, {"evo.running_mean": np.zeros(3)}])
def test_a_variance_without_a_mean_is_not_compared(mean: dict[str, Any]) -> None:
    own = update((1.0, 5.0), (4.0, 4.0))
    evonorm = Update({"evo.running_var": np.ones(2), **mean}, {}, 1.0, {"w": np.zeros(2)})
    assert observed(evonorm, evonorm).disagreement is None
    both = replace(own, arrays={**evonorm.arrays, **own.arrays})
    assert observed(both, both) == observed(own, own)


def test_infinity_by_design_is_not_compared() -> None:
    sent = {"mask": np.array([0.0, -math.inf]), "w": np.zeros(2)}
    updates = {
        client: replace(update(), parameters={**sent, "w": np.array(weights)})
        for client, weights in enumerate([(3.0, 0.0), (0.0, 3.0)])
    }
    signals = SignalTracker().observe(updates, sent)
    assert (signals.update_norm, signals.update_agreement) == (3.0, 1.0)


def test_a_restored_tracker_goes_on_with_the_same_bits() -> None:
    e = math.e
    rounds = [
        (update((0.1, 0.2), (e, 1.3)), update((0.3, 0.1), (0.7, 1.1))),
        (update((0.2, 0.2), (e, 1.2)), update((0.1, 0.1), (0.6, 1.0))),
    ]
    whole, first, second = SignalTracker(), SignalTracker(), SignalTracker()
    observed(*rounds[0], tracker=whole)
    observed(*rounds[0], tracker=first)
    second.restore(first.state())
    assert observed(*rounds[1], tracker=second) == observed(*rounds[1], tracker=whole)


def test_a_huge_finite_update_has_a_finite_length() -> None:
    signals = observed(update(weights=(3e38, 0.0)), update())
    assert signals.update_norm == pytest.approx(1.5e38)
    assert signals.update_agreement == pytest.approx(1.0)
