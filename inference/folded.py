"""The network that runs on every engine: FastSCNN with batch normalisation folded into its convolutions.

This file imports only torch and model.py, so that a bare GPU machine can run it.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from model import FastSCNN, preprocess

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STRIP = 2048  # output cells that are computed at once: their feature maps stay in the processor's cache


class FoldedNetwork(nn.Module):
    """Fast-SCNN as it is deployed: uint8 pictures in, float32 logits at 1/8 of what the network sees out.

    Args:
        model: it is copied.
        precision: one of DTYPES, of all layers but the class scores: rounded to bf16, scores would tie too often.
        strips: compute the first layers one strip of rows at a time, with the same result. At 1024x2048 they produce
            feature maps of 50 to 67 MB, for which a CPU waits longer than it computes.
    """

    def __init__(self, model: FastSCNN, precision: str = "fp32", strips: bool = False):
        super().__init__()
        self.dtype = DTYPES[precision]
        self.strips = strips
        self.model = fold_batch_norm(model).requires_grad_(False).to(self.dtype)
        self.model.mean, self.model.std = model.mean, model.std  # in single precision
        self.model.classifier.conv.float()

    def forward(self, images: Tensor) -> Tensor:
        """Returns the logits (N, K, h, w) of pictures (N, H, W, 3) uint8 RGB."""
        model, context = self.model, self.model.global_feature_extractor
        x = preprocess(images, model).to(self.dtype)
        # Without padding in the first convolution, an output row needs `lost` input rows below its own.
        shallow = self.in_strips(model.learning_to_downsample, x, stride=8, below=model.variant.lost)
        x = self.in_strips(context.bottleneck1[0], shallow, stride=2)
        x = context.bottleneck1[2](context.bottleneck1[1](x))
        x = context.pyramid_pooling(context.bottleneck3(context.bottleneck2(x)))
        x = model.feature_fusion(shallow, x)
        x = model.classifier.dsconv2(model.classifier.dsconv1(x))
        return model.classifier.conv(x.float())

    def in_strips(self, layers: nn.Module, x: Tensor, stride: int, below: int = 0) -> Tensor:
        """Computes layers one strip of rows at a time.

        The layers have to be convolutions of 1x1, or of 3x3 with padding 1 and stride 2: then an output row depends on
        its own `stride` input rows and on fewer than `stride` rows above them.

        Args:
            layers: (N, C, H, W) to (N, K, ceil((H - below) / stride), ...).
            x: their input.
            stride: of all layers together.
            below: input rows that an output row needs below its own: 0, or 2 without padding in the first convolution.
        """
        if not self.strips:
            return layers(x)
        height, width = x.shape[-2:]
        rows, step = -(-(height - below) // stride), max(1, STRIP * stride // width)
        strips = []
        for start in range(0, rows, step):
            first = max(0, start - 1)  # one row more, which is dropped: it sees padding instead of the rows above
            part = x[:, :, stride * first : stride * min(rows, start + step) + below]
            strips.append(layers(part)[:, :, start - first :])
        return torch.cat(strips, 2) if len(strips) > 1 else strips[0]


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Returns a copy in eval mode whose batch normalisations are part of the convolutions before them."""
    folded = copy.deepcopy(model).eval()
    for parent in folded.modules():
        if not isinstance(parent, nn.Sequential):
            continue
        for index in range(len(parent) - 1):
            if isinstance(parent[index], nn.Conv2d) and isinstance(
                parent[index + 1], (nn.BatchNorm2d, nn.SyncBatchNorm)
            ):
                parent[index] = fuse_conv_bn_eval(parent[index], parent[index + 1])
                parent[index + 1] = nn.Identity()
    return folded
