"""Fast-SCNN (Poudel, Liwicki and Cipolla, arXiv 1902.04502, table 1) and its input normalisation.

Shapes for an input of 1024 x 2048 x 3; t is the expansion factor, n the number of repeats:

    module                    operator                     output             n  stride
    learning_to_downsample    Conv 3x3                     512 x 1024 x  32   1  2
                              DSConv 3x3                   256 x  512 x  48   1  2
                              DSConv 3x3                   128 x  256 x  64   1  2
    global_feature_extractor  bottleneck, t=6               64 x  128 x  64   3  2
                              bottleneck, t=6               32 x   64 x  96   3  2
                              bottleneck, t=6               32 x   64 x 128   3  1
                              pyramid pooling 1, 2, 3, 6    32 x   64 x 128   1  -
    feature_fusion            add 1/8 and 1/32 branch      128 x  256 x 128   1  -
    classifier                DSConv 3x3                   128 x  256 x 128   2  1
                              Conv 1x1                     128 x  256 x   K   1  1
                              bilinear upsampling         1024 x 2048 x   K

This file only imports torch: copied into an empty folder, it works. Attribute names are the checkpoint format.
Tags: `Paper:` a number from the paper, `Differs:` a departure from it (see docs/differences.md), `Source:` any other.
"""

from __future__ import annotations

from contextlib import nullcontext
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Source: the ImageNet statistics, as in the original repository.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
MIN_SIZE = 32  # the deepest feature map is 1/32 of the input: below this it would have less than one cell
INPUT_SIDES = 0, 8192  # the smallest and the largest that can be asked for


class Variant(NamedTuple):
    """Options that reproduce published Fast-SCNN variants."""

    # Source: Tramac/Fast-SCNN-pytorch has no padding: odd sizes are rounded down, not up.
    first_padding: int = 1
    # Source: Tramac/Fast-SCNN-pytorch has a ReLU between depthwise and pointwise; it shifts the names behind it by one.
    dsconv_relu: bool = False
    # Source: Tramac/Fast-SCNN-pytorch and mmsegmentation's fast_scnn have 1.
    fusion_dilation: int = 4
    # Source: mmsegmentation's fast_scnn has 3, with padding.
    pyramid_kernel: int = 1

    @property
    def lost(self) -> int:
        """Rows, and columns, that an input must have beyond those that the strides ask for."""
        return 2 * (1 - self.first_padding)


PAPER = Variant()


class FastSCNN(nn.Module):
    """Fast-SCNN: normalised images (N, C, H, W) to class logits (N, K, H, W), for any H and W from 32.

    Args:
        num_classes: K.
        in_channels: C.
        align_corners: the convention of every bilinear interpolation. The original repository's weights were trained
            with True.
        aux: adds the paper's two auxiliary heads. In training mode the output is then a list: the logits, those at the
            end of learning_to_downsample, (N, K, H/8, W/8), and those at the end of global_feature_extractor,
            (N, K, H/32, W/32). In eval mode the heads do not run.
        input_scale: images are enlarged by this before the first layer; the logits keep the images' own size. At
            360x480 the deepest map has 12x15 cells, too few for the context branch. The cost grows with its square.
        input_side: in eval mode, images of any size are resized to this longer side, in pixels, in place of
            input_scale, so that objects are as large as in training; 0: they are not.
        variant: the network of somebody else's weights.
    """

    def __init__(
        self,
        num_classes: int = 19,
        in_channels: int = 3,
        align_corners: bool = False,
        aux: bool = False,
        input_scale: float = 1.0,
        input_side: int = 0,
        variant: Variant = PAPER,
    ):
        super().__init__()
        self.align_corners = align_corners
        self.input_scale = input_scale
        self.input_side = input_side
        self.variant = variant
        self.learning_to_downsample = LearningToDownsample(in_channels, variant.first_padding, variant.dsconv_relu)
        self.global_feature_extractor = GlobalFeatureExtractor(align_corners, variant.pyramid_kernel)
        self.feature_fusion = FeatureFusion(align_corners, variant.fusion_dilation)
        self.classifier = Classifier(num_classes, variant.dsconv_relu)
        self.aux_shallow = AuxiliaryHead(64, num_classes) if aux else None
        self.aux_context = AuxiliaryHead(128, num_classes) if aux else None
        # For preprocess: they move with the network, and no weight file has them.
        self.register_buffer("mean", 255 * torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(STD).view(3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Returns the logits of normalised images (N, C, H, W) at their own size; see the class for training mode."""
        logits, *auxiliary = self.logits(self.resize(x))
        logits = F.interpolate(logits, x.shape[-2:], mode="bilinear", align_corners=self.align_corners)
        return [logits, *auxiliary] if auxiliary else logits  # (N, K, H, W)

    def logits(self, x: Tensor) -> list[Tensor]:
        """Returns the logits of normalised images before upsampling; in training, the auxiliary heads' logits follow.

        H/8 and W/8 are rounded up. Without padding in the first convolution, read H - 2 and W - 2 for H and W.
        """
        shallow = self.learning_to_downsample(x)  #           (N,  64, H/8,  W/8)
        context = self.global_feature_extractor(shallow)  #   (N, 128, H/32, W/32)
        fused = self.feature_fusion(shallow, context)  #      (N, 128, H/8,  W/8)
        logits = self.classifier(fused)  #                    (N,   K, H/8,  W/8)
        if self.training and self.aux_shallow is not None:
            return [logits, self.aux_shallow(shallow), self.aux_context(context)]
        return [logits]

    def options(self) -> dict:
        """Returns what a weight file has to say to build this network again, in plain values."""
        return {
            "align_corners": self.align_corners,
            "input_scale": self.input_scale,
            "input_side": self.input_side,
            "variant": self.variant._asdict(),
        }

    def resize(self, x: Tensor) -> Tensor:
        """Returns images (N, C, H, W) at the size at which the first layer sees them; see preprocess."""
        height, width = x.shape[-2:]
        # All in integers: the rounded float of a dynamic size cannot be exported.
        if self.input_side and not self.training:
            longer = _larger(height, width)
            if isinstance(longer, int) and longer == self.input_side:  # a dynamic size is another one next time
                return x
            over, under = self.input_side, longer
        elif self.input_scale != 1:
            over, under = Fraction(self.input_scale).limit_denominator(1000).as_integer_ratio()
        else:
            return x
        # Rounded to the nearest pixel; of a thin picture, enough is left for every network.
        size = [_larger(MIN_SIZE, (2 * length * over + under) // (2 * under)) for length in (height, width)]
        return F.interpolate(x, size, mode="bilinear", align_corners=self.align_corners)


class LearningToDownsample(nn.Module):
    """Three strided convolutions to 1/8, shared by both branches: (N, C, H, W) to (N, 64, H/8, W/8)."""

    def __init__(self, in_channels: int, padding: int, relu: bool):
        super().__init__()
        self.conv = conv_bn_relu(in_channels, 32, kernel_size=3, stride=2, padding=padding)
        self.dsconv1 = dsconv(32, 48, stride=2, relu=relu)
        self.dsconv2 = dsconv(48, 64, stride=2, relu=relu)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)  #       (N, 32, H/2, W/2)
        x = self.dsconv1(x)  #    (N, 48, H/4, W/4)
        return self.dsconv2(x)  # (N, 64, H/8, W/8)


class GlobalFeatureExtractor(nn.Module):
    """The context branch: (N, 64, H/8, W/8) to (N, 128, H/32, W/32)."""

    def __init__(self, align_corners: bool, pyramid_kernel: int):
        super().__init__()
        self.bottleneck1 = bottlenecks(64, 64, repeats=3, stride=2)
        self.bottleneck2 = bottlenecks(64, 96, repeats=3, stride=2)
        self.bottleneck3 = bottlenecks(96, 128, repeats=3, stride=1)
        self.pyramid_pooling = PyramidPooling(128, 128, align_corners, pyramid_kernel)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bottleneck1(x)  #       (N,  64, H/16, W/16)
        x = self.bottleneck2(x)  #       (N,  96, H/32, W/32)
        x = self.bottleneck3(x)  #       (N, 128, H/32, W/32)
        return self.pyramid_pooling(x)  # (N, 128, H/32, W/32)


class FeatureFusion(nn.Module):
    """Adds the context, upsampled to 1/8, to the detail: (N, 64, h, w) and (N, 128, h/4, w/4) to (N, 128, h, w)."""

    def __init__(self, align_corners: bool, dilation: int):
        super().__init__()
        self.align_corners = align_corners
        # Paper: table 3 gives the depthwise convolution of the low-resolution branch a dilation of 4.
        self.low_dwconv = conv_bn_relu(128, 128, kernel_size=3, padding=dilation, dilation=dilation, groups=128)
        # Differs: the paper's table does not mention BN for the two 1x1 convolutions; it can be folded into them.
        self.low_conv = conv_bn(128, 128, kernel_size=1)
        self.high_conv = conv_bn(64, 128, kernel_size=1)

    def forward(self, high: Tensor, low: Tensor) -> Tensor:
        # To the size of the other tensor, not by a factor of 4: at odd sizes ceil(h/4) * 4 is not h.
        low = F.interpolate(low, high.shape[-2:], mode="bilinear", align_corners=self.align_corners)
        return F.relu(self.low_conv(self.low_dwconv(low)) + self.high_conv(high))


class Classifier(nn.Module):
    """Two depthwise separable convolutions and the class scores: (N, 128, h, w) to (N, K, h, w)."""

    def __init__(self, num_classes: int, relu: bool):
        super().__init__()
        self.dsconv1 = dsconv(128, 128, relu=relu)
        self.dsconv2 = dsconv(128, 128, relu=relu)
        # Differs: the paper uses dropout before the last layer without naming the rate.
        # Source: 0.1 in the original repository and in mmsegmentation's fast_scnn.
        self.dropout = nn.Dropout(0.1)
        self.conv = nn.Conv2d(128, num_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.dropout(self.dsconv2(self.dsconv1(x))))


class AuxiliaryHead(nn.Module):
    """Class scores from an inner feature map, for the training loss only: (N, C, h, w) to (N, K, h, w)."""

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__()
        # Differs: the paper does not describe the head. Source: mmsegmentation's fast_scnn, 32 channels, one conv.
        self.conv = conv_bn_relu(in_channels, 32, kernel_size=3, padding=1)
        self.dropout = nn.Dropout(0.1)
        self.classes = nn.Conv2d(32, num_classes, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.classes(self.dropout(self.conv(x)))


class PyramidPooling(nn.Module):
    """Adds the means over 1, 2x2, 3x3 and 6x6 regions to every cell: (N, C, h, w) to (N, K, h, w).

    Adaptive average pooling is linear and separable: two small matrix products. Unlike adaptive_avg_pool2d, for which
    some exporters and devices want bins that divide the map, these work everywhere and at any size.
    """

    bins = (1, 2, 3, 6)  # Source: PSPNet, arXiv 1612.01105, which the paper refers to

    def __init__(self, in_channels: int, out_channels: int, align_corners: bool, kernel_size: int):
        super().__init__()
        self.align_corners = align_corners
        inner = in_channels // len(self.bins)
        self.stages = nn.ModuleList(conv_bn_relu(in_channels, inner, kernel_size=1) for _ in self.bins)
        channels = in_channels + inner * len(self.bins)
        self.conv = conv_bn_relu(channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[-2:]
        pooled = [stage(self.pool(x, bins)) for bins, stage in zip(self.bins, self.stages, strict=True)]
        resized = [F.interpolate(y, size, mode="bilinear", align_corners=self.align_corners) for y in pooled]
        return self.conv(torch.cat([*resized, x], dim=1))

    @staticmethod
    def pool(x: Tensor, bins: int) -> Tensor:
        """Returns the (N, C, bins, bins) means of adaptive_avg_pool2d."""
        # In bf16 the rows of the matrices do not sum to one (up to 0.2 % off), hence at least float32. The meta device,
        # on which shapes and operations are counted, has no autocast to switch off.
        kind = x.device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            precise = x.to(torch.promote_types(x.dtype, torch.float32))
            rows = pooling_matrix(x.shape[-2], bins, precise)
            columns = pooling_matrix(x.shape[-1], bins, precise)
            # Columns first: one product for all channels instead of one for each.
            return (rows @ (precise @ columns.mT)).to(x.dtype)


def pooling_matrix(length: int, bins: int, like: Tensor) -> Tensor:
    """Returns the (bins, length) row-stochastic matrix of adaptive average pooling along one axis.

    Row i averages the cells from floor(i * length / bins) to ceil((i + 1) * length / bins), exclusive, as PyTorch's
    adaptive pooling does. It is computed by arange and comparisons: filled in a Python loop, it would be exported as a
    constant for one size.

    Args:
        length: cells along the axis.
        bins: regions along the axis.
        like: gives dtype and device.
    """
    index = torch.arange(bins, device=like.device)
    start = (index * length).div(bins, rounding_mode="floor").unsqueeze(1)
    stop = ((index + 1) * length + bins - 1).div(bins, rounding_mode="floor").unsqueeze(1)
    cell = torch.arange(length, device=like.device)
    inside = ((cell >= start) & (cell < stop)).to(like.dtype)
    return inside / (stop - start).to(like.dtype)


def conv_bn(in_channels: int, out_channels: int, kernel_size: int, **options: int) -> nn.Sequential:
    """Convolution without bias, then batch normalisation."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels))


def conv_bn_relu(in_channels: int, out_channels: int, kernel_size: int, **options: int) -> nn.Sequential:
    """Convolution without bias, batch normalisation, ReLU."""
    return conv_bn(in_channels, out_channels, kernel_size, **options).append(nn.ReLU(inplace=True))


def dsconv(in_channels: int, out_channels: int, stride: int = 1, relu: bool = False) -> nn.Sequential:
    """Depthwise separable convolution: depthwise 3x3 + BN, with `relu` a ReLU, pointwise + BN + ReLU."""
    # Paper: section 3.2, no non-linearity between the depthwise and the pointwise convolution.
    block = conv_bn_relu if relu else conv_bn
    depthwise = block(in_channels, in_channels, kernel_size=3, stride=stride, padding=1, groups=in_channels)
    return depthwise.extend(conv_bn_relu(in_channels, out_channels, kernel_size=1))


class Bottleneck(nn.Module):
    """MobileNetV2's inverted residual with a linear last convolution: (N, C, h, w) to (N, K, h/stride, w/stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int = 6):
        super().__init__()
        inner = in_channels * expansion  # Paper: table 1, t = 6
        self.residual = stride == 1 and in_channels == out_channels
        self.conv = nn.Sequential(
            *conv_bn_relu(in_channels, inner, kernel_size=1),
            *conv_bn_relu(inner, inner, kernel_size=3, stride=stride, padding=1, groups=inner),
            *conv_bn(inner, out_channels, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.residual else self.conv(x)


def bottlenecks(in_channels: int, out_channels: int, repeats: int, stride: int) -> nn.Sequential:
    """A sequence of bottlenecks; the first one changes resolution and width."""
    first = Bottleneck(in_channels, out_channels, stride)
    return nn.Sequential(first, *(Bottleneck(out_channels, out_channels, 1) for _ in range(repeats - 1)))


# From pictures to the input of the first layer.


def preprocess(images: Tensor, network: FastSCNN) -> Tensor:
    """Turns pictures into the input of `FastSCNN.logits`: resized to what the network sees, then normalised.

    Training, every engine, exported files and the benchmark prepare pictures by this function.

    Args:
        images: (N, H, W, 3) uint8 RGB.
        network: gives input_side or input_scale, and the ImageNet statistics on its device.

    Returns:
        (N, 3, h, w) float32 in channels-last memory.
    """
    x = images.float().permute(0, 3, 1, 2)  # a copy, 0 to 255
    x = network.resize(x)  # first: a photograph has up to 20 times as many pixels as the network sees
    return x.sub_(network.mean).div_(network.std)


def _larger(a: int, b: int) -> int:
    """Returns the larger of two numbers. They may be traced sizes, for which max() would decide during tracing."""
    return (a + b + abs(a - b)) // 2
