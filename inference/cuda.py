"""The network as a GPU runs it: for pictures of one size, as a CUDA graph or compiled.

It needs torch alone. Everything maps (N, H, W, 3) uint8 RGB pictures to (N, H, W) uint8 labels, in the GPU's memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inference.folding import DTYPES, fold
from model import MEAN, STD, FastSCNN, pooling_matrix


def highest(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """Interpolates (N, K, h, w) logits and takes the highest: (N, H, W) uint8 labels."""
    values = F.interpolate(logits, tuple(size), mode="bilinear", align_corners=align_corners)
    return values.argmax(1).to(torch.uint8)


def running_highest(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """The same class by class: compiled it is one kernel, which never writes the interpolated values to memory."""
    best = label = None
    for k in range(logits.shape[1]):
        value = F.interpolate(logits[:, k : k + 1], tuple(size), mode="bilinear", align_corners=align_corners)[:, 0]
        if best is None:
            best, label = value, torch.zeros_like(value, dtype=torch.uint8)
        else:
            label = torch.where(value > best, k, label)
            best = torch.maximum(best, value)
    return label


HEADS = {"interpolate + argmax": highest, "class by class": running_highest}


class Deployed(nn.Module):
    """The network for pictures of one size: (N, H, W, 3) uint8 to (N, H, W) uint8 labels.

    Args:
        model: the network; it is copied, and its input_scale left out.
        size: (height, width) of the pictures.
        precision: fp32, bf16 or fp16, but for the class scores and the label head.
        head: a value of HEADS, perhaps compiled.
        layout: torch.channels_last or torch.contiguous_format.
    """

    def __init__(
        self,
        model: FastSCNN,
        size: tuple[int, int],
        precision: str,
        head: Callable = highest,
        layout: torch.memory_format = torch.channels_last,
    ):
        super().__init__()
        self.size, self.dtype, self.head, self.layout = size, DTYPES[precision], head, layout
        device = next(model.parameters()).device
        self.model = fold(model, precision).to(memory_format=layout)
        self.model.input_scale = 1.0
        # dataset.normalise makes these anew for each picture: a copy to the GPU, which no CUDA graph may hold.
        self.register_buffer("scale", 1 / (255 * torch.tensor(STD, device=device)))
        self.register_buffer("shift", -torch.tensor(MEAN, device=device) / torch.tensor(STD, device=device))
        # The same for the 80 small kernels that compute the pooling matrices.
        cells = [-(-length // 32) for length in size]
        like = torch.empty(0, device=device)
        pooling = self.model.global_feature_extractor.pyramid_pooling
        matrices = {bins: tuple(pooling_matrix(length, bins, like) for length in cells) for bins in pooling.bins}

        def pool(x: Tensor, bins: int) -> Tensor:
            rows, columns = matrices[bins]
            return (rows @ x.float() @ columns.mT).to(x.dtype)

        pooling.pool = pool

    def logits(self, images: Tensor) -> Tensor:
        """Returns the (N, K, h, w) float32 logits at 1/8."""
        x = (images * self.scale + self.shift).to(self.dtype).permute(0, 3, 1, 2)
        return self.model.logits(x.contiguous(memory_format=self.layout))[0].contiguous()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.logits(images), self.size, self.model.align_corners)


def plain(model: FastSCNN, images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """The baseline: what public repositories run."""
    x = (images.permute(0, 3, 1, 2).contiguous().float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    return model(x).argmax(1).to(torch.uint8)


def capture(function: Callable[[Tensor], Tensor], images: Tensor) -> Callable[[], Tensor]:
    """Records what a function does on a GPU as a CUDA graph: one launch instead of hundreds, on the same memory."""
    if images.device.type != "cuda":
        return functools.partial(function, images)
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()
    side.wait_stream(current)
    with torch.cuda.stream(side):
        for _ in range(3):  # chooses algorithms and takes workspaces, which may not happen while it is recorded
            function(images)
    current.wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        labels = function(images)

    def replay() -> Tensor:
        graph.replay()
        return labels

    return replay


def compile_(function: Callable, mode: str = "default") -> Callable:
    """torch.compile for one size, which fails where it would otherwise go on uncompiled."""
    torch._dynamo.config.recompile_limit = 1000  # the same code is compiled for every size and mode
    return torch.compile(function, mode=mode, dynamic=False, fullgraph=True)
