"""The network as it is computed where nobody trains it: batch normalisation folded away, in the precision asked for.

This file imports torch alone, so that what measures a GPU needs nothing else.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Returns a copy in eval mode whose batch normalisations have become part of the convolutions before them."""
    folded = copy.deepcopy(model).eval()
    for parent in folded.modules():
        if not isinstance(parent, nn.Sequential):
            continue
        for index in range(len(parent) - 1):
            if isinstance(parent[index], nn.Conv2d) and isinstance(parent[index + 1], NORMS):
                parent[index] = fuse_conv_bn_eval(parent[index], parent[index + 1])
                parent[index + 1] = nn.Identity()
    return folded


def fold(model: nn.Module, precision: str) -> nn.Module:
    """Returns a folded copy of the network, a FastSCNN, whose layers have some precision.

    The class scores are always computed in single precision: rounded to bf16, they would tie too often.

    Args:
        model: the network.
        precision: one of DTYPES.
    """
    folded = fold_batch_norm(model).requires_grad_(False).to(DTYPES[precision])
    folded.classifier.conv = Precise(folded.classifier.conv.float())
    return folded


class Precise(nn.Module):
    """A layer whose input is converted to single precision first."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.float())
