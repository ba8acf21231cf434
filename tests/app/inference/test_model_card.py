"""The model card: what it says of data, clients, T* and metrics, and that the Hub can read it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from fixbn_flwr.app.inference.loading import load
from fixbn_flwr.app.inference.model_card import model_card
from fixbn_flwr.app.inference.trained_model import TrainedModel
from fixbn_flwr.app.runs.reader import read_config, read_metrics
from fixbn_flwr.method.schedule import Phase
from fixbn_flwr.tasks.signature import Signature
from tests.support.pages import table_rows


def card_of(folder: Path, which: Any = "best", **changes: Any) -> str:
    config = read_config(folder)
    config["run_config"] |= changes.pop("run_config", {})
    metrics = changes.pop("metrics", read_metrics(folder))
    model = changes.pop("model", None) or load(folder)
    return model_card("digits-run", config | changes, metrics, model, which)


def rows_of(card: str) -> dict[str, str]:
    return {row[0]: " ".join(row[1:]) for row in table_rows(card) if len(row) > 1}


def test_it_says_data_partition_clients_freeze_and_metrics(run_folder: Path) -> None:
    rows = rows_of(card_of(run_folder, "final"))
    metrics = read_metrics(run_folder)
    assert rows["task"] == "`digits`"
    assert rows["images"] == "grey, 8x8 pixels"
    assert rows["partition"] == "`classes`: 2 classes per client"
    assert rows["clients"] == "5"
    assert rows["T\\*, the last round before the statistics freeze"] == "2"
    assert rows["rounds"] == "5 of 5"
    for label, of in (("this model", metrics[4]), ("at T\\*", metrics[1])):
        assert rows[label] == f"{of.round} {of.test_accuracy:.1%} {of.test_loss:.3f}"


def test_the_licence_is_a_placeholder(run_folder: Path) -> None:
    card = card_of(run_folder)
    assert "license: other\nlicense_name: to-be-chosen\n" in card
    assert "## Licence\n\n**To be chosen.**" in card


def test_the_hub_can_read_its_metadata(run_folder: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    data = hub.ModelCard(card_of(run_folder)).data
    best = max(read_metrics(run_folder), key=lambda m: m.validation_accuracy or 0).test_accuracy
    assert (data.license, data.license_name) == ("other", "to-be-chosen")
    assert (data.library_name, data.pipeline_tag) == ("fixbn-flwr", "image-classification")
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_type) == ("digits", "accuracy")
    assert result.metric_value == pytest.approx(best, abs=1e-4)
    assert data.model_name == "digits-run"


@pytest.mark.parametrize(
    ("changes", "partition"),
    [
        ({"own_data": True}, "each client has its own data"),
        ({"method": "centralised"}, "none: all images are in one place"),
        ({"run_config": {"partition": "iid"}}, "`iid`: at random"),
        ({"run_config": {"partition": "dirichlet"}}, "`dirichlet`: unequal classes, concent"),
        ({"run_config": {"partition": "natural"}}, "`natural`: by the origin of the images"),
    ],
)
def test_the_partition_is_the_runs(
    changes: dict[str, Any], partition: str, run_folder: Path
) -> None:
    assert rows_of(card_of(run_folder, **changes))["partition"].startswith(partition)


def test_it_says_whether_the_model_is_from_before_the_freeze(run_folder: Path) -> None:
    metrics = read_metrics(run_folder)
    frozen = "statistics are those of round 2, frozen since"
    assert frozen in card_of(run_folder, "final")
    early = [replace(m, validation_accuracy=0.9 if m.round == 1 else 0.1) for m in metrics]
    card = card_of(run_folder, metrics=early)
    assert "It is from round 1, before the statistics froze." in card
    assert frozen not in card


def test_it_says_what_chose_the_model(run_folder: Path) -> None:
    rounds = read_metrics(run_folder)
    best = max(rounds, key=lambda m: m.validation_accuracy or 0)
    card = " ".join(card_of(run_folder).split())
    assert (
        "On images that the clients held out, this model reaches "
        f"{best.validation_accuracy:.1%} on average and {best.validation_worst:.1%} at the worst "
        "client. That average chose it among the rounds; the tests did not."
    ) in card
    older = [replace(m, validation_accuracy=None, test_accuracy=0.1 * m.round) for m in rounds]
    card = card_of(run_folder, metrics=[*older[:2], older[4], older[3]])
    assert "These tests also chose the model, so its result is better than on new images." in card
    assert rows_of(card)["this model"].startswith("5 50.0%")
    assert "chose " not in card_of(run_folder, "final")


def test_a_run_that_froze_nothing_has_no_freeze(run_folder: Path) -> None:
    rounds = read_metrics(run_folder)
    metrics = [replace(of_round, phase=Phase.EXPLORATION) for of_round in rounds]
    card = card_of(run_folder, method="BN", metrics=metrics)
    assert rows_of(card)["T\\*, the last round before the statistics freeze"] == "none"
    assert "at T" not in "".join(rows_of(card))
    assert "frozen" not in card
    assert "by federated learning, BN, using" in card


def test_a_run_that_gave_up_freezing_has_no_freeze(run_folder: Path) -> None:
    *before, last = read_metrics(run_folder)
    assert last.phase is Phase.CALIBRATION
    card = card_of(run_folder, metrics=[*before, replace(last, phase=Phase.EXPLORATION)])
    assert rows_of(card)["T\\*, the last round before the statistics freeze"] == "none"
    assert "froze" not in card


def test_a_model_that_was_not_tested_has_no_result(run_folder: Path) -> None:
    hub = pytest.importorskip("huggingface_hub")
    *before, last = read_metrics(run_folder)
    untested = [*before, replace(last, test_accuracy=None, test_loss=None)]
    card = card_of(run_folder, "final", metrics=untested)
    assert rows_of(card)["this model"] == "5 - -"
    assert "The server did not test this model." in card
    assert "tested the global model" not in card
    untested = [replace(m, test_accuracy=None, test_loss=None) for m in read_metrics(run_folder)]
    card = card_of(run_folder, metrics=untested)
    assert "That average chose it among the rounds.\n" in card
    assert hub.ModelCard(card).data.eval_results is None


def test_a_segmentation_model_has_its_metric_and_output(run_folder: Path) -> None:
    signature = Signature(("sky", "road"), (3, 32, 48), (1.0,) * 3, (1.0,) * 3, 255)
    model = TrainedModel(nn.Identity(), signature, per_pixel=True)
    card = card_of(run_folder, model=model)
    assert "pipeline_tag: image-segmentation" in card
    assert "| round | mean IoU | loss |" in card
    assert "`[n, 2, 32, 48]`" in card
    assert rows_of(card)["images"] == "colour, 32x48 pixels"
