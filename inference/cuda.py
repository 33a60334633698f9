"""The network on a CUDA GPU, recorded as CUDA graphs: one launch for an image instead of hundreds.

This file imports only torch, folded.py and model.py, so that it runs on a bare GPU machine.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from inference.folded import FoldedNetwork
from model import FastSCNN, pooling_matrix

GRAPHS_KEPT = 8  # each for one image shape; all share the memory of their feature maps
WARM_UPS = 3
_capturing = threading.Lock()  # CUDA allows one capture at a time in a process


class GraphNetwork:
    """Fast-SCNN with its label head, recorded as one CUDA graph for each image shape when that shape first comes.

    Any thread and any CUDA stream may call it. Results are memory of their own on `device`. On a CPU the same code
    runs without being recorded, so that a machine without a GPU can test it.

    Args:
        model: it is copied.
        device: a CUDA device, or the CPU.
        precision: fp32, bf16 or fp16, of all layers but the class scores and the label head.
    """

    def __init__(self, model: FastSCNN, device: torch.device, precision: str):
        self.device = device
        self.network = _Capturable(model, precision).to(device, memory_format=torch.channels_last)
        # Copy, replay and clone are all queued here, so that no two calls use a graph's memory at once.
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.lock = threading.Lock()
        self.recordings: OrderedDict[tuple, _Recording] = OrderedDict()  # the least recently used first

    def logits(self, images: Tensor) -> Tensor:
        """Returns the (N, K, h, w) float32 logits before upsampling of (N, H, W, 3) uint8 images on any device."""
        return self._run(self.network.logits, images)

    def labels(self, images: Tensor) -> Tensor:
        """Returns the (N, H, W) uint8 train ids of (N, H, W, 3) uint8 images on any device."""
        return self._run(self.network.labels, images)

    @torch.inference_mode()
    def _run(self, function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        with self.lock:
            if self.stream is None:
                return self._recording(function, images.shape).replay(images)
            caller = torch.cuda.current_stream(self.stream.device)
            self.stream.wait_stream(caller)  # which may still compute the images
            with torch.cuda.stream(self.stream):
                result = self._recording(function, images.shape).replay(images)
            caller.wait_stream(self.stream)
            result.record_stream(caller)  # or the allocator could reuse its memory while the caller still reads it
            return result

    def _recording(self, function: Callable[[Tensor], Tensor], shape: torch.Size) -> _Recording:
        key = (function.__name__, *shape)
        if key in self.recordings:
            self.recordings.move_to_end(key)
            return self.recordings[key]
        while len(self.recordings) >= GRAPHS_KEPT:
            self.recordings.popitem(last=False)
        # Graphs may share memory, as they never run at the same time and read nothing that an earlier replay left.
        # Only the pool of a living graph may be shared.
        pool = next((recording.graph.pool() for recording in self.recordings.values() if recording.graph), None)
        with _capturing:
            self.recordings[key] = _Recording(function, shape, self.device, pool)
        return self.recordings[key]


class _Recording:
    """A function recorded for one image shape, with the memory that it reads from and writes to.

    Args:
        function: (N, H, W, 3) uint8 images to a tensor, without a copy between host and device.
        shape: of the images.
        device: on a CPU the function is called, not recorded.
        pool: the memory pool of another graph, or None.
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], shape: torch.Size, device: torch.device, pool: tuple | None
    ):
        self.function = function
        self.images = torch.zeros(shape, dtype=torch.uint8, device=device)
        self.graph = None
        if device.type != "cuda":
            self.output = function(self.images)
            return
        for _ in range(WARM_UPS):  # algorithms are chosen and workspaces allocated, which a capture may not do
            function(self.images)
        graph = torch.cuda.CUDAGraph()
        stream = torch.cuda.current_stream()
        # thread_local: another thread may allocate CUDA memory meanwhile.
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self.output = function(self.images)
        self.graph = graph

    def replay(self, images: Tensor) -> Tensor:
        """Returns the function's result for other images of the same shape."""
        self.images.copy_(images)
        if self.graph is None:
            self.output.copy_(self.function(self.images))
        else:
            self.graph.replay()
        return self.output.clone()


class _Capturable(FoldedNetwork):
    """The folded network with its label head, all constants on the device: a graph holds no copy from the host."""

    def __init__(self, model: FastSCNN, precision: str):
        super().__init__(model, precision)
        self.matrices: dict[tuple[int, int], Tensor] = {}  # kilobytes for each length of the deepest map
        self.model.global_feature_extractor.pyramid_pooling.pool = self.pool

    def logits(self, images: Tensor) -> Tensor:
        """Returns (N, K, h, w) float32 logits of (N, H, W, 3) uint8 pictures."""
        return self(images).contiguous()

    def labels(self, images: Tensor) -> Tensor:
        """Interpolates the logits to the pictures' size and takes the highest: (N, H, W) uint8."""
        logits = self.logits(images)
        logits = F.interpolate(
            logits, images.shape[1:3], mode="bilinear", align_corners=self.model.align_corners
        )  # (N, K, H, W)
        return logits.argmax(1).to(torch.uint8)

    def pool(self, x: Tensor, bins: int) -> Tensor:
        """Returns what PyramidPooling.pool does, without the 80 small kernels that compute its matrices."""
        rows, columns = (self.matrix(length, bins) for length in x.shape[-2:])
        return (rows @ (x.float() @ columns.mT)).to(x.dtype)

    def matrix(self, length: int, bins: int) -> Tensor:
        """Returns pooling_matrix, computed once for each length; a graph's are computed by its warm-up."""
        if (length, bins) not in self.matrices:
            self.matrices[length, bins] = pooling_matrix(length, bins, self.model.mean)
        return self.matrices[length, bins]
