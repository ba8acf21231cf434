"""Loading the model of a run folder, of an older version, of an export; and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import fixbn_flwr
from fixbn_flwr.app.inference.export import export
from fixbn_flwr.app.inference.loading import load
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import get_task


@pytest.fixture
def copy(run_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run_folder, tmp_path / "copy"))


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("which", ["best", "final"])
def test_the_weights_are_those_of_the_file(run_folder: Path, which: str) -> None:
    model = fixbn_flwr.load(str(run_folder), which)  # type: ignore[arg-type]
    expected = safetensors.torch.load_file(run_folder / f"{which}.safetensors")
    weights = model.network.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in weights)
    assert not model.training


def test_best_and_final_differ_when_the_last_round_is_worse(copy: Path) -> None:
    final = safetensors.torch.load_file(copy / "final.safetensors")
    worse = {name: torch.zeros_like(value) for name, value in final.items()}
    safetensors.torch.save_file(worse, copy / "final.safetensors")
    image = torch.rand(1, 1, 8, 8)
    assert load(copy, "final")(image).unique().tolist() == [0]
    assert load(copy)(image).unique().numel() == 10


def test_a_run_without_a_best_model_gives_its_last_one(copy: Path) -> None:
    (copy / "best.safetensors").unlink()
    image = torch.rand(1, 1, 8, 8)
    assert torch.equal(load(copy)(image), load(copy, "final")(image))


def test_the_data_set_is_not_needed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_task: object, _data_dir: object) -> None:
        raise ConfigError("the files are on another machine")

    monkeypatch.setattr("fixbn_flwr.app.inference.loading.load_splits", missing)
    change_config(copy, lambda config: config["run_config"].update({"data-dir": "/not/here"}))
    assert load(copy).input_size == (1, 8, 8)
    change_config(copy, lambda config: config.pop("signature"))
    with pytest.raises(ConfigError, match=r"is of an older version, which .* on another machine"):
        load(copy)


def test_a_run_of_an_older_version_asks_the_data_set(run_folder: Path, copy: Path) -> None:
    change_config(copy, lambda config: config.pop("signature"))
    assert load(copy).signature == load(run_folder).signature


def test_the_random_state_is_unchanged(run_folder: Path) -> None:
    before = torch.get_rng_state()
    load(run_folder)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_exported_folder_can_be_loaded(run_folder: Path, tmp_path: Path) -> None:
    path = export(run_folder, "safetensors", "final", tmp_path / "final")
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(load(path.parent)(images), load(run_folder, "final")(images))


def test_exported_weights_load_into_the_plain_network(run_folder: Path, tmp_path: Path) -> None:
    path = export(run_folder, "safetensors", output=tmp_path / "best")
    network = get_task("digits").models["small-resnet"]("bn").eval()
    network.load_state_dict(safetensors.torch.load_file(path))
    model, images = load(run_folder), torch.rand(3, 1, 8, 8)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (model.mean, model.std))
    torch.testing.assert_close(network((images - mean) / std), model(images))


def refused(folder: Path, problem: str, which: Any = "best") -> None:
    with pytest.raises(ConfigError, match=problem):
        load(folder, which)


def test_what_cannot_be_loaded_is_refused(copy: Path, tmp_path: Path) -> None:
    refused(copy, "which is 'last', which does not exist: use best or final", "last")
    refused(tmp_path, "is not the folder of a run: cannot read config.json")
    (copy / "final.safetensors").unlink()
    refused(copy, r"has no final\.safetensors: .*resume it.* It has best\.safetensors", "final")
    (copy / "best.safetensors").rename(copy / "final.safetensors")
    refused(copy, r"has no best\.safetensors: only a run with validation-share chooses one")
    (copy / "best.safetensors").write_bytes(b"damaged")
    refused(copy, r"best\.safetensors cannot be read")


def test_a_model_that_does_not_fit_the_code_is_refused(copy: Path) -> None:
    change_config(copy, lambda config: config["run_config"].update(norm="none"))
    refused(copy, r"do not fit the network 'small-resnet' of task digits: use the version")
    change_config(copy, lambda config: config["run_config"].update(model="lenet"))
    refused(copy, r"has a model 'lenet', which task digits does not have: it has small-resnet")
    change_config(copy, lambda config: config["run_config"].update(task="gone:TASK"))
    refused(copy, r"gone:TASK cannot be imported")


@pytest.mark.parametrize("damaged", [{}, [], {"input_size": [8, 8]}, None])
def test_a_damaged_signature_is_named(copy: Path, damaged: object) -> None:
    change_config(copy, lambda config: config.update(signature=damaged))
    refused(copy, r"config\.json: its signature is damaged")
