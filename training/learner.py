"""The training step: the network and all that a step changes. train.py decides which crops come and when to stop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import distributed
from frames.unions import Members
from model import FastSCNN, preprocess
from training.augment import distort_colors
from training.losses import auxiliary_loss, lovasz_loss, upsampled_loss
from training.optim import learning_rate, make_average, make_optimizer, parameter_groups, scaled_rate
from training.recipes import Options
from utils import cpu_has_bf16


class FromPixels(nn.Module):
    """The part that is compiled and distributed: uint8 images in, logits before upsampling out."""

    def __init__(self, model: FastSCNN):
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.model.logits(preprocess(images, self.model))


class Float32Conv2d(nn.Conv2d):
    """A convolution that trains in float32 even under autocast."""

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and torch.is_autocast_enabled("cpu")):
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float()).to(torch.get_autocast_dtype("cpu"))


def keep_depthwise_in_float32(model: nn.Module) -> None:
    """Makes every depthwise convolution a Float32Conv2d, for CPUs: oneDNN's bf16 gradient of it is slower than fp32."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1:
            module.__class__ = Float32Conv2d


class Learner:
    """A network with its optimizer and schedule, trained a batch at a time, in one process or in several.

    Args:
        options: of the run, see recipes.py.
        model: moved to the device.
        device: where to compute.
        steps: steps of the whole run, for the learning rate.
        half: the dtype of autocast, see half_precision; None: everything is float32.
        unions: what targets above the train ids mean, see losses.py.

    Attributes:
        model: the network without any wrapper.
        peak_lr: highest learning rate, scaled to the batch.
    """

    def __init__(
        self,
        options: Options,
        model: FastSCNN,
        device: torch.device,
        steps: int,
        half: torch.dtype | None,
        unions: Members = (),
    ):
        self.options = options
        self.device = device
        self.steps = steps
        self.half = half
        self.unions = unions
        if distributed.count() > 1 and device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        if half is not None and device.type == "cpu":
            keep_depthwise_in_float32(model)
        self.model = model.to(device, memory_format=torch.channels_last)
        groups = parameter_groups(self.model, options.weight_decay, options.decay_all)
        self.peak_lr = scaled_rate(options.lr, options.batch_size, options.base_batch)
        self.optimizer = make_optimizer(options.optimizer, groups, self.peak_lr)
        self.average = make_average(self.model, options.ema) if options.ema else None
        # Gradients underflow in fp16: they are scaled up, and a step that overflows is skipped.
        self.scaler = torch.amp.GradScaler(device.type, enabled=half == torch.float16)
        self.network: nn.Module = FromPixels(self.model)
        if options.compile:
            self.network.compile()
        if distributed.count() > 1:
            self.network = DistributedDataParallel(
                self.network, [device] if device.type == "cuda" else None, gradient_as_bucket_view=True
            )

    @property
    def scored(self) -> nn.Module:
        """The network that is scored and saved: the moving average of the weights, if there is one."""
        return self.average.module if self.average else self.model

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return self.optimizer.param_groups[0]["lr"]

    def step(self, number: int, images: Tensor, targets: Tensor, colors: Tensor) -> tuple[Tensor, Tensor]:
        """Trains on this process's share of a batch. Nothing here waits for the device.

        Args:
            number: number of the step, from 0.
            images: (n, H, W, 3) uint8 RGB.
            targets: (n, H, W) uint8 train ids or ids of unions.
            colors: (n, 4), see augment.draw_colors.

        Returns:
            The loss, whose mean over the processes is the loss of the whole batch; and the number of pixels in the
            whole batch's main loss.
        """
        options = self.options
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(number, self.steps, self.peak_lr, options.power, options.warmup_steps)
        loss, pixels = self.loss(images, targets, colors)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average:
            self.average.update_parameters(self.model)
        return loss.detach(), pixels

    def loss(self, images: Tensor, targets: Tensor, colors: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the loss that `step` minimises and its number of pixels; see there."""
        options, unions = self.options, self.unions
        targets = targets.to(self.device, non_blocking=True).long()
        images = distort_colors(images.to(self.device, non_blocking=True), colors)
        with torch.autocast(self.device.type, self.half, enabled=self.half is not None):
            logits, *inner = self.network(images)
        main = upsampled_loss(options.loss, logits, targets, self.model.align_corners, unions)
        terms = [main, *(auxiliary_loss(head, targets, unions) for head in inner)]
        # Processes have different numbers of labelled pixels: the sum over all of them is divided by the total count.
        # The gradients are averaged over the processes, hence the factor.
        pixels = distributed.all_reduce_sum(torch.stack([count for _, count in terms]))
        weights = [1.0, *(options.aux_weight for _ in inner)]
        shares = [
            weight * distributed.count() * summed / count
            for weight, (summed, _), count in zip(weights, terms, pixels.clamp(min=1), strict=True)
        ]
        loss = torch.stack(shares).sum()
        if options.lovasz_weight:  # the IoU is over this process's crops
            loss = loss + options.lovasz_weight * lovasz_loss(logits, targets, unions)
        return loss, pixels[0]

    def state_dict(self) -> dict:
        """Returns everything that training continues from."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict() if self.average else None,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict) -> None:
        """Restores what state_dict returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["average"])
        if state.get("scaler"):
            self.scaler.load_state_dict(state["scaler"])


def half_precision(device: torch.device) -> torch.dtype | None:
    """Returns the 16-bit dtype that a device computes fastest in: bf16, else fp16; None for a CPU without bf16.

    Such a CPU can emulate bf16, but a step then takes several times as long as in float32.
    """
    if device.type == "cpu":
        return torch.bfloat16 if cpu_has_bf16() else None
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16


def on_device(batches: Iterable[list[Tensor]], device: torch.device) -> Iterator[list[Tensor]]:
    """Yields batches of images, targets and colors, with the first two on the device.

    On CUDA, a batch is copied while the previous one is in use; the colors stay on the CPU, as Python reads them.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)
    ahead: list[tuple[list[Tensor], torch.cuda.Event]] = []
    for images, targets, colors in batches:
        with torch.cuda.stream(stream):
            moved = [images.to(device, non_blocking=True), targets.to(device, non_blocking=True), colors]
            ahead.append((moved, stream.record_event()))
        if len(ahead) > 1:
            yield _arrived(*ahead.pop(0))
    if ahead:
        yield _arrived(*ahead.pop())


def _arrived(batch: list[Tensor], copied: torch.cuda.Event) -> list[Tensor]:
    """Makes the current stream wait for a batch's copy and take over its memory."""
    current = torch.cuda.current_stream()
    current.wait_event(copied)
    for tensor in batch[:2]:
        tensor.record_stream(current)
    return batch
