"""Weights that others published: whose they are, and their conversion to our names.

docs/weights.md says where each file is and under which terms. A network that is not the paper's is a `model.Variant`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model import PAPER, Variant
from utils import UserError


class Publisher(NamedTuple):
    """Somebody's implementation of Fast-SCNN.

    Attributes:
        name: whose.
        mark: the first weights, by which a state dict is recognised.
        names: patterns in their names and what each becomes, all applied, one after the other.
        align_corners: as its weights were trained.
        variant: how its network differs from the paper.
        x_first: the map itself comes before the four pooled ones in the pyramid pooling's concatenation, not after.
    """

    name: str
    mark: str
    names: tuple[tuple[str, str], ...]
    align_corners: bool
    variant: Variant = PAPER
    x_first: bool = False


ORIGINAL = Publisher(
    name="the original repository",
    mark="learning_to_down_sample.conv.conv.weight",
    names=(
        (r"^learning_to_down_sample\.conv\.conv\.", "learning_to_downsample.conv.0."),
        (r"^learning_to_down_sample\.conv\.bn\.", "learning_to_downsample.conv.1."),
        (r"^learning_to_down_sample\.", "learning_to_downsample."),
        (r"\.first_block\.", ".bottleneck1."),
        (r"\.second_block\.", ".bottleneck2."),
        (r"\.third_block\.", ".bottleneck3."),
        (r"\.ppm\.stages\.(\d)\.1\.conv\.", r".pyramid_pooling.stages.\1.0."),
        (r"\.ppm\.stages\.(\d)\.1\.bn\.", r".pyramid_pooling.stages.\1.1."),
        (r"\.ppm\.conv\.conv\.", ".pyramid_pooling.conv.0."),
        (r"\.ppm\.conv\.bn\.", ".pyramid_pooling.conv.1."),
        (r"^feature_fusion\.dwconv\.conv\.", "feature_fusion.low_dwconv.0."),
        (r"^feature_fusion\.dwconv\.bn\.", "feature_fusion.low_dwconv.1."),
        (r"^feature_fusion\.conv_low_res\.", "feature_fusion.low_conv.0."),
        (r"^feature_fusion\.conv_high_res\.", "feature_fusion.high_conv.0."),
    ),
    align_corners=True,
)
TRAMAC = Publisher(
    name="Tramac/Fast-SCNN-pytorch",
    mark="learning_to_downsample.conv.conv.0.weight",
    names=(
        (r"^learning_to_downsample\.(conv|dsconv\d)\.conv\.", r"learning_to_downsample.\1."),
        (r"\.block\.0\.conv\.", ".conv."),
        (r"\.block\.1\.conv\.0\.", ".conv.3."),
        (r"\.block\.1\.conv\.1\.", ".conv.4."),
        (r"\.block\.2\.", ".conv.6."),
        (r"\.block\.3\.", ".conv.7."),
        (r"\.ppm\.conv1\.conv\.", ".pyramid_pooling.stages.0."),
        (r"\.ppm\.conv2\.conv\.", ".pyramid_pooling.stages.1."),
        (r"\.ppm\.conv3\.conv\.", ".pyramid_pooling.stages.2."),
        (r"\.ppm\.conv4\.conv\.", ".pyramid_pooling.stages.3."),
        (r"\.ppm\.out\.conv\.", ".pyramid_pooling.conv."),
        (r"^feature_fusion\.dwconv\.conv\.", "feature_fusion.low_dwconv."),
        (r"^feature_fusion\.conv_lower_res\.", "feature_fusion.low_conv."),
        (r"^feature_fusion\.conv_higher_res\.", "feature_fusion.high_conv."),
        (r"^classifier\.(dsconv\d)\.conv\.", r"classifier.\1."),
        (r"^classifier\.conv\.1\.", "classifier.conv."),
        (r"^auxlayer\.([01])\.", r"aux_shallow.conv.\1."),
        (r"^auxlayer\.4\.", "aux_shallow.classes."),
    ),
    align_corners=True,
    variant=Variant(first_padding=0, dsconv_relu=True, fusion_dilation=1),
    x_first=True,
)
MMSEGMENTATION = Publisher(
    name="mmsegmentation",
    mark="backbone.learning_to_downsample.conv.conv.weight",
    names=(
        (r"^backbone\.", ""),
        (r"^decode_head\.convs\.0\.", "classifier.dsconv1."),
        (r"^decode_head\.convs\.1\.", "classifier.dsconv2."),
        (r"^auxiliary_head\.0\.", "aux_context."),
        (r"^auxiliary_head\.1\.", "aux_shallow."),
        (r"^(aux_\w+)\.convs\.0\.", r"\1.conv."),
        (r"\.ppm\.(\d)\.1\.", r".pyramid_pooling.stages.\1."),
        (r"^global_feature_extractor\.out\.", "global_feature_extractor.pyramid_pooling.conv."),
        (r"^feature_fusion\.dwconv\.", "feature_fusion.low_dwconv."),
        (r"^feature_fusion\.conv_lower_res\.", "feature_fusion.low_conv."),
        (r"^feature_fusion\.conv_higher_res\.", "feature_fusion.high_conv."),
        (r"\.depthwise_conv\.", "."),
        (r"\.pointwise_conv\.conv\.", ".2."),
        (r"\.pointwise_conv\.bn\.", ".3."),
        (r"(bottleneck\d\.\d\.conv)\.1\.conv\.", r"\1.3."),
        (r"(bottleneck\d\.\d\.conv)\.1\.bn\.", r"\1.4."),
        (r"(bottleneck\d\.\d\.conv)\.2\.conv\.", r"\1.6."),
        (r"(bottleneck\d\.\d\.conv)\.2\.bn\.", r"\1.7."),
        (r"(bottleneck\d\.\d\.conv)\.0\.", r"\1."),
        # What is left are pairs of a convolution and its batch normalisation, and the class scores.
        (r"\.conv\.weight$", ".0.weight"),
        (r"\.bn\.", ".1."),
        (r"^decode_head\.conv_seg\.", "classifier.conv."),
        (r"^(aux_\w+)\.conv_seg\.", r"\1.classes."),
    ),
    align_corners=False,
    variant=Variant(fusion_dilation=1, pyramid_kernel=3),
    x_first=True,
)
PUBLISHERS = (ORIGINAL, TRAMAC, MMSEGMENTATION)

_PYRAMID = "global_feature_extractor.pyramid_pooling.conv.0.weight"
# Source: mmsegmentation's file of June 2021, described in docs/weights.md. Its earlier networks have other shapes here.
_SHAPES_OF_2021 = {
    _PYRAMID: (128, 256, 3, 3),
    "feature_fusion.low_dwconv.0.weight": (128, 1, 3, 3),
    "classifier.dsconv1.0.weight": (128, 1, 3, 3),
}


def recognise(state: dict[str, Tensor]) -> Publisher | None:
    """Returns whose names a state dict has, or None."""
    return next((publisher for publisher in PUBLISHERS if publisher.mark in state), None)


def check_version(path: str | Path, state: dict[str, Tensor], publisher: Publisher) -> None:
    """Refuses weights of a network that its publisher has replaced under the same names.

    Raises:
        UserError: says which.
    """
    for theirs, tensor in state.items():
        shape = _SHAPES_OF_2021.get(_rename(theirs, publisher)) if publisher is MMSEGMENTATION else None
        if shape and tensor.shape != shape:
            raise UserError(
                f"{path} is of an older Fast-SCNN of mmsegmentation ({theirs} is {tuple(tensor.shape)}, expected "
                f"{shape}), which is another network: take fast_scnn_8x4_160k_lr0.12_cityscapes-0cec9937.pth"
            )


def convert(state: dict[str, Tensor], publisher: Publisher) -> dict[str, Tensor]:
    """Returns a publisher's state dict under our names; the argument is not changed.

    A FastSCNN with the publisher's align_corners and variant then computes the same function. The batch normalisations
    behind the fusion's 1x1 convolutions take their biases; where there are none, as in the original, identities do.
    """
    converted = {_rename(name, publisher): tensor for name, tensor in state.items()}
    for branch in ("feature_fusion.low_conv", "feature_fusion.high_conv"):
        _absorb_bias(converted, f"{branch}.0.bias", f"{branch}.1")
    weight = converted.get(_PYRAMID)
    if publisher.x_first and weight is not None and weight.ndim == 4:
        converted[_PYRAMID] = weight.roll(weight.shape[1] // 2, 1)  # x is as wide as the four pooled maps together
    return converted


def options(publisher: Publisher) -> dict:
    """Returns what a checkpoint's metadata say about a publisher's network, in plain values."""
    return {"align_corners": publisher.align_corners, "variant": publisher.variant._asdict()}


def describe(publisher: Publisher) -> str:
    """Returns in one line whose weights were read, and as which network."""
    paper = PAPER._asdict()
    differ = [f"{name}={value}" for name, value in publisher.variant._asdict().items() if value != paper[name]]
    return (
        f"weights of {publisher.name}, converted (align_corners={publisher.align_corners}, as they were trained"
        f"{''.join(f', {option}' for option in differ)})"
    )


def _rename(name: str, publisher: Publisher) -> str:
    for pattern, replacement in publisher.names:
        name = re.sub(pattern, replacement, name)
    return name


def _absorb_bias(state: dict[str, Tensor], name: str, norm: str) -> None:
    """Moves the bias of a convolution into the batch normalisation behind it, which is added where there is none."""
    if name in state and f"{norm}.running_mean" in state:
        state[f"{norm}.running_mean"] = state[f"{norm}.running_mean"] - state.pop(name)
    elif name in state:
        bias = state.pop(name)
        # It divides by sqrt(variance + eps): a weight of that root makes it the identity.
        eps = nn.BatchNorm2d(1).eps
        state[f"{norm}.weight"] = torch.full_like(bias, (1.0 + eps) ** 0.5)
        state[f"{norm}.bias"] = bias
        state[f"{norm}.running_mean"] = torch.zeros_like(bias)
        state[f"{norm}.running_var"] = torch.ones_like(bias)
        state[f"{norm}.num_batches_tracked"] = torch.tensor(0)
