"""The network to measure, and the baseline of predictions. This file needs torch only."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from inference.checkpoints import load_model
from model import MEAN, STD, FastSCNN

WEIGHTS = Path(__file__).resolve().parent.parent / "weights" / "street.pth"


class PlainNetwork:
    """The steps of public repositories: eager float32 in NCHW, interpolation to full size, argmax.

    They return freed memory to the system; whether that is done here is up to the process, see predictions.EXPLAINED.
    """

    def __init__(self, model: FastSCNN):
        device = next(model.parameters()).device
        self.model = model
        self.mean = torch.tensor(MEAN, device=device).view(3, 1, 1)
        self.std = torch.tensor(STD, device=device).view(3, 1, 1)

    def logits(self, images: Tensor) -> Tensor:
        """Returns the (N, K, h, w) logits at 1/8 of (N, H, W, 3) uint8 RGB images."""
        return self.model.logits(self.model.resize(self._normalised(images)))[0]

    def labels(self, images: Tensor) -> Tensor:
        """Returns the (N, H, W) int64 train ids of (N, H, W, 3) uint8 RGB images."""
        return self.model(self._normalised(images)).argmax(1)

    def _normalised(self, images: Tensor) -> Tensor:
        return (images.permute(0, 3, 1, 2).contiguous().float() / 255 - self.mean) / self.std


def measured_network(path: str | None) -> FastSCNN:
    """Returns the network of a checkpoint, or of WEIGHTS, without resizing; random weights where neither is there.

    Raises:
        UserError: as load_model.
    """
    if path is None and not WEIGHTS.is_file():
        print("no weights: the network is random, and its labels are noise")
        torch.manual_seed(0)
        return FastSCNN().eval()
    model, _ = load_model(path or WEIGHTS)
    if model.input_scale != 1 or model.input_side:
        print(f"{path or WEIGHTS} resizes its input: measured without")
        model.input_scale, model.input_side = 1.0, 0
    return model
