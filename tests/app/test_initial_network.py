"""The network that a run starts from: drawn by the seed, or read from `pretrained`."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fixbn_flwr.app.centralised import train_centrally
from fixbn_flwr.app.config.settings import Settings
from fixbn_flwr.app.initial_network import initial_network
from fixbn_flwr.app.overrides import read_settings
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import get_task
from tests.support.whole_app import rounds_of, run_app

SLOW = {"learning-rate": 1e-7, "num-server-rounds": 1, "freeze-after": 1.0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a model that has learned digits."""
    folder = tmp_path_factory.mktemp("trained")
    settings = read_settings([f"output-dir={folder}", "num-server-rounds=6", "evaluate-every=6"])
    return train_centrally(settings, clients=10) / "final.safetensors"


def test_the_weights_of_the_file_are_those_of_the_network(trained: Path) -> None:
    digits = get_task("digits")
    network = initial_network(digits, Settings(model="small-resnet", pretrained=str(trained)))
    for name, value in load_file(trained).items():
        assert torch.equal(network.state_dict()[name], value), name
    first, again, other = (
        initial_network(digits, Settings(model="small-resnet", seed=seed)).state_dict()
        for seed in (1, 1, 2)
    )
    assert torch.equal(first["conv.weight"], again["conv.weight"])
    assert not torch.equal(first["conv.weight"], other["conv.weight"])


def test_a_run_starts_from_pretrained_weights(trained: Path, tmp_path: Path) -> None:
    (fresh,) = rounds_of(run_app(tmp_path / "fresh", 4, SLOW))
    (only,) = rounds_of(run_app(tmp_path / "runs", 4, SLOW | {"pretrained": str(trained)}))
    assert fresh["test_accuracy"] < 0.3
    assert only["test_accuracy"] > 0.5


def test_centralised_training_starts_from_them_too(trained: Path, tmp_path: Path) -> None:
    settings = read_settings(
        [
            f"output-dir={tmp_path}", f"pretrained={trained}", "num-server-rounds=1",
            "freeze-after=1.0",
            "learning-rate=1e-7",
        ]
    )  # fmt: skip
    (only,) = rounds_of(train_centrally(settings, clients=4))
    assert only["test_accuracy"] > 0.5


def test_a_missing_file_is_refused_before_the_run_has_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"pretrained is /no/file.pth, which cannot be read"):
        run_app(tmp_path / "runs", 2, {"pretrained": "/no/file.pth"})
    assert not (tmp_path / "runs").exists()


def test_a_resumed_run_does_not_need_the_file(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "weights.safetensors"
    copy.write_bytes(trained.read_bytes())
    folder = run_app(tmp_path / "runs", 2, SLOW | {"pretrained": str(copy)})
    copy.unlink()
    run_app(
        tmp_path / "runs",
        2,
        SLOW | {"pretrained": str(copy), "resume": str(folder), "num-server-rounds": 2,
                "may-change": "num-server-rounds"},
    )  # fmt: skip
    assert len(rounds_of(folder)) == 2


def test_a_network_without_batch_normalization_is_refused_before_the_data_is_read() -> None:
    settings = Settings(model="timm:test_vit")
    with pytest.raises(ConfigError, match="timm:test_vit', which has no batch normalization, so"):
        initial_network(get_task("digits"), settings)
    initial_network(get_task("digits"), Settings(model="timm:test_vit", freeze_after=1.0))


def test_a_network_that_does_not_take_the_images_is_refused(tmp_path: Path) -> None:
    config = SLOW | {"model": "timm:test_vit"}
    with pytest.raises(
        ConfigError,
        match=r"test_vit', which does not take images of 8x8 pixels \(.*: set image-size",
    ):
        run_app(tmp_path / "runs", 2, config)
    assert not (tmp_path / "runs").exists()
