"""DeepLabV3+ on MobileNetV2: a class for every pixel, small enough for a client.

L.-C. Chen, Y. Zhu, G. Papandreou, F. Schroff, H. Adam, "Encoder-Decoder with Atrous Separable
Convolution for Semantic Image Segmentation", ECCV 2018, https://arxiv.org/abs/1802.02611, on
M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018,
https://arxiv.org/abs/1801.04381. The network is that of segmentation-models-pytorch, an optional
package, with its 61 batch normalisations exchanged for those asked for.
"""

from __future__ import annotations

from torch import Tensor, nn

from fixbn_flwr.errors import ConfigError
from fixbn_flwr.models.norm import NORMS, normaliser

STRIDE = 16
"""Height and width of an image must be multiples of this: the encoder's smallest maps are 1/16."""


def deeplab(norm: str = "bn", *, classes: int) -> nn.Module:
    """The network for colour images, `[n, 3, h, w]` to logits `[n, classes, h, w]`.

    It has 4.4 million parameters, all drawn from torch's global generator: no trained weights are
    downloaded. The same seed gives the same convolutions whatever the normalisation.

    Args:
        norm: the normalisation, see `fixbn_flwr.models.norm.normaliser`, but not "none". With "in"
            the layer of the image-pooling branch is a layer normalisation: its maps are one pixel,
            of which instance normalisation would leave nothing. Of groups there can be 1, 2, 4 or
            8, which divide all widths.
        classes: number of classes.

    Raises:
        ConfigError: segmentation-models-pytorch is not installed, or there is no such network.
    """
    make_norm = normaliser(norm)
    if norm == "none":
        others = ", ".join(name for name in NORMS if name != "none")
        raise ConfigError(
            "norm is 'none', which DeepLabV3+ does not have: FixUp's initialisation is that of"
            f" residual networks, and without it nothing would train. Choose one of {others}."
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
            "A batch of 1 image: the image-pooling branch of DeepLabV3+ has one value a channel in"
            " it, which batch normalisation cannot train on. Choose a batch-size of 2 or more that"
            " leaves no single image over, or norm=gn."
        )
