"""FedBN and SiloBN: what stays at a client, and how its model is tested."""

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from fixbn_flwr.app.client.image_client import workbench_of
from fixbn_flwr.app.training import evaluate
from fixbn_flwr.array_records import record_of
from fixbn_flwr.tasks import load_splits
from tests.simulation.peers.peer_clients import client, initial, message, reply_of, trained_model

OF_A_LAYER = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def private(arrays, kinds):
    return [n for n in arrays if "norm" in n and n.rpartition(".")[2] in kinds]


@pytest.mark.parametrize(("peer", "kinds"), [("fedbn", OF_A_LAYER), ("silobn", OF_A_LAYER[2:])])
def test_own_arrays_stay_at_the_client_and_the_others_are_sent(peer, kinds):
    made, sent = client(peer), initial(peer)
    own = private(sent, kinds)
    assert len(own) == 5 * len(kinds)  # digits' network has five layers

    replied = reply_of(made, sent)
    trained = trained_model(made)

    for name, array in replied.items():
        expected = sent if name in own else trained
        np.testing.assert_array_equal(array, expected[name])
        assert not np.array_equal(trained[name], sent[name])  # all arrays have been trained


@pytest.mark.parametrize(("peer", "kinds"), [("fedbn", OF_A_LAYER), ("silobn", OF_A_LAYER[2:])])
def test_a_later_round_starts_from_the_clients_own_arrays(peer, kinds):
    made, sent = client(peer), initial(peer)
    own = private(sent, kinds)
    reply_of(made, sent)
    kept = trained_model(made)

    changed = {name: array + 1 for name, array in sent.items()}
    made._bench(message(changed))
    start = trained_model(made)

    for name, array in start.items():
        np.testing.assert_array_equal(array, (kept if name in own else changed)[name])


def test_a_client_tests_its_own_model_on_all_test_images_and_on_its_classes():
    made, sent = client("fedbn"), initial("fedbn")
    for server_round in range(1, 6):
        sent = reply_of(made, sent, server_round)
    content = RecordDict({"arrays": record_of(sent), "config": ConfigRecord()})
    metrics = made.evaluate(content).metric_records["metrics"]

    bench = workbench_of(made.task, made.settings)
    train, test = load_splits(made.task)
    assert metrics["accuracy"] == evaluate(bench, made.task, test)[1]
    held, counts = np.unique(train.labels[made.partition], return_counts=True)
    assert len(held) == 2
    rights = [_right(bench, made.task, test, c) for c in held]
    assert metrics["own-accuracy"] == pytest.approx(np.average(rights, weights=counts))
    assert metrics["own-accuracy"] > metrics["accuracy"] + 0.2


def _right(bench, task, test, label) -> float:
    from fixbn_flwr.tasks import normalise

    images = normalise(task, test.images[test.labels == label])
    return float((bench.model(images).argmax(1) == int(label)).float().mean())
