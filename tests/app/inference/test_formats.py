"""The files of other programs have the outputs of the model, for any number of images."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fixbn_flwr.app.inference.formats import onnx_file, torchscript_file
from fixbn_flwr.app.inference.loading import load
from fixbn_flwr.app.inference.trained_model import TrainedModel
from fixbn_flwr.errors import ConfigError
from fixbn_flwr.tasks import get_task, load_splits
from fixbn_flwr.tasks.signature import Signature

# torch.jit.load, in current versions of torch.
pytestmark = pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")


def run_onnx(content: bytes, images: Tensor) -> Tensor:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert (given.name, given.type) == ("images", "tensor(float)")
    assert isinstance(given.shape[0], str)  # a name: any number of images
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    return torch.from_numpy(logits)


def run_torchscript(content: bytes, images: Tensor) -> Tensor:
    logits: Tensor = torch.jit.load(io.BytesIO(content))(images)  # type: ignore[no-untyped-call]
    return logits.detach()


FORMATS = pytest.mark.parametrize(
    ("make", "run"),
    [(onnx_file, run_onnx), (torchscript_file, run_torchscript)],
    ids=["onnx", "torchscript"],
)
Make = Callable[[TrainedModel], bytes]
Run = Callable[[bytes, Tensor], Tensor]


@FORMATS
def test_the_outputs_on_real_images_are_the_models(make: Make, run: Run, run_folder: Path) -> None:
    _, test = load_splits(get_task("digits"))
    model, images = load(run_folder), test.images[:] / 16
    content = make(model)
    with torch.inference_mode():
        expected = model(images)
    for number in (1, 2, 360):
        torch.testing.assert_close(
            run(content, images[:number]), expected[:number], rtol=1e-4, atol=1e-4
        )
    assert expected.argmax(1).unique().numel() > 5  # not the same answer for every image


@FORMATS
@pytest.mark.parametrize("norm", ["gn", "in", "none"])
def test_networks_with_other_normalisations_can_be_exported(
    make: Make, run: Run, norm: str
) -> None:
    digits = get_task("digits")
    _, test = load_splits(digits)
    network = digits.models["small-resnet"](norm)
    nn.init.normal_(network.classifier.weight)  # type: ignore[union-attr, arg-type] # FixUp's is 0
    model, images = TrainedModel(network, Signature.of(digits, test.images)), torch.rand(5, 1, 8, 8)
    with torch.inference_mode():
        torch.testing.assert_close(run(make(model), images), model(images), rtol=1e-3, atol=1e-4)


class CountsImages(nn.Module):
    """A network whose outputs depend on the number of images: a trace records one case."""

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) * (2 if len(images) == 2 else 1)


@FORMATS
def test_a_file_with_other_outputs_is_refused(make: Make, run: Run) -> None:
    signature = Signature(("a", "b"), (1, 1, 2), (0.0,), (1.0,), 1)
    with pytest.raises(ConfigError, match=r"cannot represent this network .*use --format safe"):
        make(TrainedModel(CountsImages(), signature))


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    signature = Signature(("a", "b"), (1, 1, 2), (0.0,), (1.0,), 1)
    with pytest.raises(ConfigError, match=r'onnxscript.*pip install "fixbn-flwr\[export\]"'):
        onnx_file(TrainedModel(nn.Flatten(), signature))
