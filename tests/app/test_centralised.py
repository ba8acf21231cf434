"""Centralised training: one model on all data, with the federation's number of steps and images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim import SGD

from fixbn_flwr.app import centralised, training
from fixbn_flwr.app.centralised import train_centrally
from fixbn_flwr.app.client.image_client import held_out_of, partitions_of
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.inference.loading import load
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import get_task, load_splits
from tests.support.image_trees import write_images
from tests.support.whole_app import SMALL, rounds_of


def settings(tmp_path: Path, **changes: Any) -> Settings:
    changed = {key.replace("_", "-"): value for key, value in changes.items()}
    return Settings.from_run_config(SMALL | {"output-dir": str(tmp_path)} | changed)


@pytest.fixture(autouse=True)
def batches(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The sizes of each round's batches."""
    sizes: list[list[int]] = []
    train = training.train

    def record(bench: Any, task: Any, data: Any, batches: Any, *rest: Any) -> float:
        drawn = list(batches)
        sizes.append([len(batch) for batch in drawn])
        return train(bench, task, data, iter(drawn), *rest)

    monkeypatch.setattr(centralised, "train", record)
    monkeypatch.setattr("fixbn_flwr.app.runs.writer.draw_curves", lambda *_, **__: None)
    return sizes


def test_a_step_has_as_many_images_as_all_clients_steps_together(
    tmp_path: Path, batches: list[list[int]]
) -> None:
    folder = train_centrally(settings(tmp_path), clients=10)
    assert batches == [[5 * 8] * 2] * 3  # half of 10 clients, batches of 8, 2 local steps
    rounds = rounds_of(folder)
    assert [line["phase"] for line in rounds] == ["exploration"] * 3
    assert [line["learning_rate"] for line in rounds] == [0.05] * 3  # no calibration factor
    assert {(line["clients"], line["bytes_sent"], line["dropped"]) for line in rounds} == {
        (5, 0, 0)
    }
    assert json.loads((folder / "summary.json").read_text())["accuracy_at_freeze"] is None
    assert "centralised" in folder.name
    assert (folder / "final.safetensors").is_file()


def test_patience_ends_a_centralised_run(tmp_path: Path) -> None:
    frozen = settings(
        tmp_path, norm="gn", freeze_after=1.0, learning_rate=1e-12, num_server_rounds=9, patience=2,
        validation_share=0.1,
    )  # fmt: skip
    assert len(rounds_of(train_centrally(frozen, clients=10))) == 3


def test_it_holds_out_the_images_that_the_clients_of_the_federation_hold_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(tmp_path, validation_share=0.2, local_steps=0, local_epochs=4)
    parts = partitions_of(given, load_splits(get_task("digits"))[0], 4)
    held_out = [held_out_of(given, part, client)[1] for client, part in enumerate(parts)]
    trained: set[int] = set()

    def record(bench: Any, task: Any, data: Any, batches: Any, *_: Any) -> float:
        trained.update(int(image) for batch in batches for image in batch)
        return 1.0

    monkeypatch.setattr(centralised, "train", record)
    (*_, last) = rounds_of(train_centrally(given, clients=4))
    assert trained == {*range(1437)} - {int(image) for own in held_out for image in own}
    by_client = last["validation_by_client"]
    assert [*by_client] == ["0", "1", "2", "3"]
    right = sum(by_client[str(client)] * len(own) for client, own in enumerate(held_out))
    assert last["validation_accuracy"] == pytest.approx(right / sum(map(len, held_out)))


def test_a_centralised_run_starts_with_the_initial_model_of_the_federation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    initial: list[dict[str, Any]] = []

    def record(bench: Any, *_: Any) -> float:
        initial.append(bench.arrays())
        return 1.0

    monkeypatch.setattr(centralised, "train", record)
    train_centrally(settings(tmp_path, seed=3), clients=4)
    torch.manual_seed(3)
    for name, tensor in get_task("digits").models["small-resnet"]("bn").state_dict().items():
        assert initial[0][name].tobytes() == tensor.numpy().tobytes(), name


def test_an_epoch_has_the_steps_of_an_average_client(
    tmp_path: Path, batches: list[list[int]]
) -> None:
    config = {"local_steps": 0, "local_epochs": 2, "fraction_train": 1.0, "batch_size": 16}
    train_centrally(settings(tmp_path, num_server_rounds=3, **config), clients=10)
    # 1437 images are 143.7 per client: 9 batches of 16, twice.
    assert batches == [[160] * 18] * 3


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tmp_path: Path) -> None:
    models = [
        train_centrally(settings(tmp_path, seed=seed, run_name=name), clients=4)
        for seed, name in [(0, "a"), (0, "b"), (1, "c")]
    ]
    first, second, other = ((model / "final.safetensors").read_bytes() for model in models)
    assert first == second
    assert first != other


def test_momentum_lasts_for_the_whole_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffers: list[int] = []
    step = SGD.step

    def record(self: SGD, *arguments: Any) -> Any:
        buffers.append(len(self.state))
        return step(self, *arguments)

    monkeypatch.setattr(SGD, "step", record)
    for name in ("a", "b"):  # but not across runs
        train_centrally(settings(tmp_path, momentum="reset", run_name=name), clients=4)
    assert [count > 0 for count in buffers] == ([False] + [True] * 5) * 2


def test_a_missing_device_or_data_is_refused_before_the_folder_is_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(ConfigError, match="device='cuda:99': this machine has"):
        train_centrally(settings(runs, device="cuda:99"), clients=4)

    def fail(*_: object) -> None:
        raise ConfigError("no data")

    monkeypatch.setattr(centralised, "load_splits", fail)
    with pytest.raises(ConfigError, match="no data"):
        train_centrally(settings(runs), clients=4)
    assert not runs.exists()


def test_a_run_without_tests_needs_no_test_images(shared_data: Path, tmp_path: Path) -> None:
    data, runs = tmp_path / "data", tmp_path / "runs"
    write_images(shared_data, data / "train", "train", 0, per_class=8, classes=2)
    (data / "test").mkdir()
    config: dict[str, Any] = {
        "task": "folder", "data_dir": str(data), "batch_size": 4, "partition": "iid",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="the data of task folder has no test images: add some"):
        train_centrally(settings(runs, **config), clients=2)
    folder = train_centrally(settings(runs, evaluate_every=0, **config), clients=2)
    assert [line["test_accuracy"] for line in rounds_of(folder)] == [None] * 3
    assert load(folder).input_size == (3, 64, 64)


def test_groups_that_do_not_divide_the_channels_are_refused_before_data_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(centralised, "load_splits", lambda *_: pytest.fail("read data"))
    with pytest.raises(ConfigError, match=r"norm is 'gn3', but a layer .* has 16 channels"):
        train_centrally(settings(tmp_path, norm="gn3", freeze_after=1.0), clients=2)
    assert list(tmp_path.iterdir()) == []
