"""Write a model in the formats of other programs, with torch's own exporters."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from fixbn_flwr.app.inference.trained_model import TrainedModel
from fixbn_flwr.errors import ConfigError

# The largest difference between the logits of a file and the model's, relative and absolute.
# Another order of sums differs by some 1e-6.
_TOLERANCE = 1e-3, 1e-4


def onnx_file(model: TrainedModel) -> bytes:
    """Return a model as the content of an ONNX file.

    Its input `images` is float32 `[batch, channels, height, width]` in [0, 1], with any `batch`;
    its output is `logits`.

    Args:
        model: The model, on the CPU.

    Raises:
        ConfigError: If a package is missing, or ONNX cannot represent the model.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"an export to ONNX needs onnx, onnxruntime and onnxscript ({error}): install them with"
            ' pip install "fixbn-flwr[export]".'
        ) from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about itself
        try:
            program = torch.onnx.export(
                model,
                (_images(model, 2),),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
                dynamo=True,
                verbose=False,
            )
        except Exception as error:  # the exporter raises many types
            raise _cannot_be_represented("ONNX", str(error)) from error
    assert program is not None  # it is with dynamo
    content: bytes = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    _check("ONNX", model, lambda images: session.run(None, {"images": images.numpy()})[0])
    return content


def torchscript_file(model: TrainedModel) -> bytes:
    """Return a model as the content of a TorchScript file, for `torch.jit.load`.

    It maps float32 `[n, channels, height, width]` in [0, 1], with any `n`, to logits.

    Args:
        model: The model, on the CPU.

    Raises:
        ConfigError: If TorchScript cannot represent the model.

    Examples:
        >>> from torch import nn
        >>> from fixbn_flwr.tasks.signature import Signature
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
        >>> signature = Signature(("no", "yes"), (1, 8, 8), mean=(0.5,), std=(0.5,), white=1)
        >>> torchscript_file(TrainedModel(network, signature))[:2]  # a ZIP archive
        b'PK'
    """
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about its future and about values in Python
        try:
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]
                model, _images(model, 2), check_trace=False
            )
            torch.jit.save(traced, file)
        except Exception as error:  # the tracer raises many types
            raise _cannot_be_represented("TorchScript", str(error)) from error
        loaded = torch.jit.load(  # type: ignore[no-untyped-call]
            io.BytesIO(file.getvalue())
        )
    _check("TorchScript", model, loaded)
    return file.getvalue()


def _images(model: TrainedModel, number: int) -> Tensor:
    return torch.rand(number, *model.input_size, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def _check(name: str, model: TrainedModel, exported: Callable[[Tensor], object]) -> None:
    """Check that an exported model has the outputs of the model, also for another batch size."""
    relative, absolute = _TOLERANCE
    for number in (1, 3):
        images = _images(model, number)
        try:
            outputs = torch.as_tensor(exported(images))
        except Exception as error:  # each runtime has its own
            raise _cannot_be_represented(name, f"{number} images: {error}") from error
        expected = model(images)
        if not torch.allclose(outputs, expected, relative, absolute, equal_nan=True):
            difference = (outputs - expected).abs().max().item()
            raise _cannot_be_represented(name, f"its outputs differ by up to {difference:.3g}")


def _cannot_be_represented(name: str, why: str) -> ConfigError:
    words = textwrap.shorten(why, 300, placeholder=" ...")  # some exporters write pages
    return ConfigError(
        f"{name} cannot represent this network ({words}): its forward must not depend on the values"
        " or the number of the images. Change the network, or use --format safetensors, which"
        " holds the weights alone."
    )
