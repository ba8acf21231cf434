"""A run starts from weights in a file; only a classifier for other classes is new."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.models.libraries import library_model
from fixbn_flwr.models.pretrained import load_pretrained


def network(
    classes: int, model: str = "torchvision:mobilenet_v3_small", seed: int = 0
) -> nn.Module:
    torch.manual_seed(seed)
    return library_model(model, "bn", classes=classes, channels=3, per_pixel=False)


@pytest.mark.parametrize("form", ["safetensors", "state dict", "state_dict entry", "model entry"])
def test_all_weights_are_loaded_from_each_form(form: str, tmp_path: Path) -> None:
    state = network(5).state_dict()
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    if form == "safetensors":
        save_file(state, path)
    elif form == "state dict":
        torch.save(state, path)
    else:
        torch.save({form.split(maxsplit=1)[0]: state, "epoch": 3}, path)
    model = network(5, seed=1)
    assert load_pretrained(model, path, 5) == []
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name]), name


def test_a_classifier_for_other_classes_stays_new(tmp_path: Path) -> None:
    state = network(1000).state_dict()
    torch.save(state, tmp_path / "imagenet.pth")
    model, untouched = network(5, seed=1), network(5, seed=1).state_dict()
    head = ["classifier.3.weight", "classifier.3.bias"]
    assert load_pretrained(model, tmp_path / "imagenet.pth", 5) == head
    for name, value in model.state_dict().items():
        assert torch.equal(value, (untouched if name in head else state)[name]), name


def test_an_auxiliary_classifier_is_left_out(tmp_path: Path) -> None:
    state = network(5).state_dict()
    torch.save(state | {"aux_classifier.0.weight": torch.zeros(3)}, tmp_path / "w.pth")
    assert load_pretrained(network(5), tmp_path / "w.pth", 5) == []


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(network(5, "timm:resnet10t").state_dict(), tmp_path / "w.pth")
    with pytest.raises(
        ConfigError,
        match=r"missing in the file: features.0.0.weight, .* \.\.\.; \d+ unknown to the network:"
        r" conv1.0.weight, .*: use weights of the same network",
    ):
        load_pretrained(network(5), tmp_path / "w.pth", 5)
    torch.save(
        network(5).state_dict() | {"features.0.0.weight": torch.zeros(2)}, tmp_path / "w.pth"
    )
    with pytest.raises(
        ConfigError,
        match=r"1 of another shape: features.0.0.weight is \[2\] in the file and \[16, 3, 3, 3\]",
    ):
        load_pretrained(network(5), tmp_path / "w.pth", 5)


def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with pytest.raises(ConfigError, match=r"w.pth, which cannot be read .*No such file"):
        load_pretrained(network(5), path, 5)
    path.write_bytes(b"junk")
    with pytest.raises(ConfigError, match=r"w.pth, which cannot be read .*: name a .safetensors"):
        load_pretrained(network(5), path, 5)
    torch.save([1, 2], path)
    with pytest.raises(
        ConfigError, match=r"which holds a list and no state dict: save model\.state"
    ):
        load_pretrained(network(5), path, 5)
    torch.save(network(5), path)  # would run code of the file
    with pytest.raises(ConfigError, match="cannot be read"):
        load_pretrained(network(5), path, 5)
