"""The network on PyTorch: on a CPU, a CUDA GPU or Apple's MPS."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from frames.classes import CITYSCAPES, Classes
from inference.engine import Engine
from inference.folded import FoldedNetwork
from inference.threads import set_threads
from model import FastSCNN


def torch_engine(
    model: FastSCNN, device: torch.device, precision: str = "fp32", classes: Classes = CITYSCAPES
) -> Engine:
    """Runs the network on PyTorch, in channels_last.

    Args:
        model: it is copied.
        device: any that PyTorch has.
        precision: fp32, bf16 or fp16.
        classes: of the model.
    """
    on_cpu = device.type == "cpu"
    network = FoldedNetwork(model, precision, strips=on_cpu).to(device, memory_format=torch.channels_last)
    picture = ThreadWatch(network.model).picture if on_cpu else nullcontext

    @torch.inference_mode()
    def logits(images: Tensor) -> Tensor:
        with picture():
            return network(images.to(device, non_blocking=True)).contiguous()

    return Engine(logits, model.align_corners, f"torch {precision}", classes=classes)


class ThreadWatch:
    """Takes threads from a picture whose layers wait for each other, as they do beside another busy process.

    A layer ends when its last thread does. A thread that shares its core with another process is late by a slice of
    the scheduler's time in each of some hundred layers, so that on two busy cores one thread is faster than two. Each
    layer is compared with the least time that it took on inputs of the same shape; every picture begins with all
    threads, because other processes come and go.

    Args:
        model: a folded FastSCNN, whose parts get a hook.
    """

    # Tried on two cores, where idle layers vary by half and a slice of the scheduler takes 3 to 4 ms: docs/speed.md.
    SLOW = 1.7  # times the usual duration: then the threads wait for each other
    WINDOW = 0.02  # seconds of usual work that are looked at together
    LEAST = 0.006  # seconds lost in it that are worth a change: one slice is no load
    FORGET = 1.002  # by which a usual duration grows each time: the processor's clock changes
    MOST = 4096  # usual durations that are kept, about 25 for each size of pictures

    def __init__(self, model: FastSCNN):
        self.usual: dict[tuple, float] = {}
        self.now = threading.local()  # threads: the caller's, 0 outside of a picture; began, spent, expected: seconds
        context, head = model.global_feature_extractor, model.classifier
        parts = [model.learning_to_downsample, *context.bottleneck1, context.bottleneck2, context.bottleneck3]
        for part in [*parts, context.pyramid_pooling, model.feature_fusion, head.dsconv1, head.dsconv2]:
            part.register_forward_hook(self._ended)

    @contextmanager
    def picture(self) -> Iterator[None]:
        """Begins a picture; afterwards the caller's threads are back."""
        now = self.now
        now.threads, now.spent, now.expected = torch.get_num_threads(), 0.0, 0.0
        now.began = time.perf_counter()
        try:
            yield
        finally:
            set_threads(now.threads)
            now.threads = 0

    def _ended(self, layer: nn.Module, inputs: tuple, output: Tensor) -> None:
        """Learns how long a layer took; if the picture waits, the rest has fewer threads: N - 1, then half of them."""
        now = self.now
        if getattr(now, "threads", 0) < 2:
            return
        ended, count = time.perf_counter(), torch.get_num_threads()
        seconds, now.began = ended - now.began, ended
        key = id(layer), inputs[0].shape
        usual = self.usual.get(key, seconds)
        if count == now.threads:
            if len(self.usual) >= self.MOST:
                self.usual.clear()
            self.usual[key] = usual = min(seconds, self.FORGET * usual)
        now.spent += seconds
        now.expected += usual * now.threads / count
        if count > 1 and now.spent > max(self.SLOW * now.expected, now.expected + self.LEAST):
            set_threads(count - 1 if count == now.threads else count // 2)
            now.spent = now.expected = 0.0
        elif now.expected > self.WINDOW:
            now.spent = now.expected = 0.0
