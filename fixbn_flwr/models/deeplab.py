"""DeepLabV3+ with a MobileNetV2 encoder: a small network for segmentation.

L.-C. Chen, Y. Zhu, G. Papandreou, F. Schroff, H. Adam, "Encoder-Decoder with Atrous Separable
Convolution for Semantic Image Segmentation", ECCV 2018, https://arxiv.org/abs/1802.02611, with
M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
https://arxiv.org/abs/1801.04381. The network comes from segmentation-models-pytorch, an
optional package; its 61 batch-normalisation layers are replaced by the chosen normalisation.
"""

from __future__ import annotations

from torch import Tensor, nn

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.models.norm import NORMS, normaliser

STRIDE = 16
"""Image height and width must be multiples of this, the stride of the encoder's last stage."""


def deeplab(norm: str = "bn", *, classes: int) -> nn.Module:
    """Build the network: colour images `[n, 3, h, w]` to logits `[n, classes, h, w]`.

    It has 4.4 million parameters, all drawn from torch's global generator; no trained weights are
    downloaded. The same seed gives the same convolutions with every normalisation.

    Args:
        norm: The normalisation, see `fixbn_flwr.models.norm.normaliser`, except "none". With "in",
            the image-pooling branch uses layer normalisation, because its maps are one pixel, which
            instance normalisation would set to zero. Groups can be 1, 2, 4 or 8, which divide all
            widths.
        classes: The number of classes.

    Raises:
        ConfigError: If segmentation-models-pytorch is not installed, or the normalisation does not
            exist.
    """
    make_norm = normaliser(norm)
    if norm == "none":
        others = ", ".join(name for name in NORMS if name != "none")
        raise ConfigError(
            "norm is 'none', which DeepLabV3+ does not support, because FixUp's initialisation is"
            f" for residual networks: choose one of {others}."
        )
    try:
        from segmentation_models_pytorch import DeepLabV3Plus
        from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPPPooling
    except ImportError as error:
        raise ConfigError(
            f"DeepLabV3+ needs the package segmentation-models-pytorch ({error}): install it with"
            ' pip install "fixbn-flwr[segmentation]".'
        ) from error
    network: nn.Module = DeepLabV3Plus("mobilenet_v2", encoder_weights=None, classes=classes)
    for module in list(network.modules()):
        for name, layer in module.named_children():
            if not isinstance(layer, nn.BatchNorm2d):
                continue
            one_pixel = isinstance(module, ASPPPooling)
            make = normaliser("ln") if one_pixel and norm == "in" else make_norm
            setattr(module, name, make(layer.num_features))
            if one_pixel and norm == "bn":
                getattr(module, name).register_forward_pre_hook(_refuse_one_image)
    return network


def _refuse_one_image(layer: nn.Module, inputs: tuple[Tensor]) -> None:
    if layer.training and len(inputs[0]) == 1:
        raise ConfigError(
            "A batch has 1 image, so the image-pooling branch of DeepLabV3+ has one value per"
            " channel, on which batch normalisation cannot train: choose a batch-size of 2 or more"
            " that leaves no last batch of 1 image, or norm=gn."
        )
