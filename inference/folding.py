"""The network for inference: batch normalisation folded into the convolutions, in the precision asked for.

This file imports only torch and inference.threads, so that a bare GPU machine can run it.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from inference.threads import Threads, Watched

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

NORMS = (nn.BatchNorm2d, nn.SyncBatchNorm)
STRIP = 2048  # output cells that are computed at once: their feature maps stay in the processor's cache


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """Returns a copy in eval mode whose batch normalisations are part of the convolutions before them."""
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
    """Returns a folded copy of a FastSCNN in a precision, one of DTYPES.

    The class scores are always computed in single precision: rounded to bf16, they would tie too often.
    """
    folded = fold_batch_norm(model).requires_grad_(False).to(DTYPES[precision])
    folded.classifier.conv = Precise(folded.classifier.conv.float())
    return folded


class OneDNN(nn.Module):
    """A convolution, and the ReLU after it if there is one, by oneDNN, whatever the number of threads. On a CPU only.

    PyTorch takes another routine for 1x1 convolutions when it has one thread, whose rounding differs: the same picture
    would have other logits.
    """

    def __init__(self, layer: nn.Conv2d, relu: bool):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.geometry = list(layer.padding), list(layer.stride), list(layer.dilation), layer.groups
        self.then = "relu" if relu else "none"

    def forward(self, x: Tensor) -> Tensor:
        # What PyTorch's compiler makes of a convolution; it has no public name.
        convolution = torch.ops.mkldnn._convolution_pointwise
        return convolution(x, self.weight, self.bias, *self.geometry, self.then, [], "")


def always_onednn(model: nn.Module) -> None:
    """Replaces the convolutions of a folded network, where PyTorch has oneDNN and that has their precision."""
    if not torch.backends.mkldnn.is_available():
        return
    dtypes = {torch.float32} | ({torch.bfloat16} if torch.ops.mkldnn._is_mkldnn_bf16_supported() else set())
    for parent in list(model.modules()):
        after = None  # name and layer that come next; only the layers of a Sequential are computed in their order
        for name, layer in reversed(list(parent.named_children())):
            if isinstance(layer, nn.Conv2d) and layer.weight.dtype in dtypes:
                relu = after is not None and isinstance(after[1], nn.ReLU)
                setattr(parent, name, OneDNN(layer, relu))
                if relu:
                    setattr(parent, after[0], nn.Identity())
            if isinstance(parent, nn.Sequential) and not isinstance(layer, nn.Identity):
                after = name, layer


class Precise(nn.Module):
    """A layer whose input is converted to single precision first."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.float())


class InStrips(nn.Module):
    """Layers that are computed one strip of rows at a time, with the same result.

    At 1024x2048 the first layers produce feature maps of 50 to 67 MB, for which a CPU waits longer than it computes.
    The layers have to be convolutions of 1x1, or of 3x3 with padding 1 and stride 2: then an output row depends on its
    own `stride` input rows and on fewer than `stride` rows above them. Where the first of them has no padding, its rows
    begin where the input does, and it needs rows below.

    Args:
        layers: (N, C, H, W) to (N, K, ceil((H - below) / stride), ...).
        stride: of all layers together.
        threads: watch how long the strips take.
        below: input rows that an output row needs below its own: 0, or 2 without padding in the first convolution.
    """

    def __init__(self, layers: nn.Module, stride: int, threads: Threads, below: int = 0):
        super().__init__()
        self.layers = layers
        self.threads = threads
        self.stride = stride
        self.below = below

    def forward(self, x: Tensor) -> Tensor:
        stride, (height, width) = self.stride, x.shape[-2:]
        rows, step = -(-(height - self.below) // stride), max(1, STRIP * stride // width)
        strips = []
        for start in range(0, rows, step):
            first = max(0, start - 1)  # one row more, which is dropped: it sees padding instead of the rows above
            part = x[:, :, stride * first : stride * min(rows, start + step) + self.below]
            strips.append(self.layers(part)[:, :, start - first :])
            self.threads.tick((id(self), start == 0, part.shape))  # before the first, images are normalised
        return torch.cat(strips, 2) if len(strips) > 1 else strips[0]


def split_into_strips(model: nn.Module, threads: Threads) -> None:
    """Replaces the two parts of a FastSCNN with the largest feature maps by the same in strips."""
    model.learning_to_downsample = InStrips(model.learning_to_downsample, 8, threads, model.variant.lost)
    first = model.global_feature_extractor.bottleneck1
    first[0] = InStrips(first[0], 2, threads)


def watch(model: nn.Module, threads: Threads) -> None:
    """Watches the parts of a FastSCNN outside of its strips, which watch themselves."""
    branches = model.learning_to_downsample, model.global_feature_extractor
    places = [(branch, name) for branch in branches for name, _ in branch.named_children()]
    places += [(model, "feature_fusion"), (model, "classifier")]
    # Few: in a compiled network each costs 0.05 ms.
    for part, (parent, name) in enumerate(places):
        if not isinstance(parent, InStrips):
            setattr(parent, name, Watched(getattr(parent, name), threads, part))


def prepare_for_cpu(model: nn.Module, strips: bool) -> Threads:
    """Changes a folded FastSCNN into one that a CPU computes faster, with the same result; returns what watches it.

    Args:
        strips: not for the compiler, which would compile each.
    """
    threads = Threads()
    if strips:
        split_into_strips(model, threads)
    always_onednn(model)
    watch(model, threads)
    return threads
