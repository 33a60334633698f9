"""From a checkpoint file to a predictor: loading and checking, pictures in, train ids out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dataset import NUM_CLASSES, normalise
from model import MIN_SIZE, FastSCNN, convert_original, drop_profiler_buffers, is_original
from utils import UserError, load_checkpoint


def load_model(path: str | Path) -> tuple[FastSCNN, dict]:
    """Loads a network for inference from what train.py wrote, from a bare state dict, or from the original's weights.

    Returns:
        The network in eval mode on the CPU, and the metadata of the file (empty for a bare state dict).

    Raises:
        UserError: the file is missing, damaged, holds code, or belongs to another network.
    """
    checkpoint = load_checkpoint(path)
    if isinstance(checkpoint.get("model"), dict) and isinstance(checkpoint.get("metadata"), dict):
        state, metadata = checkpoint["model"], checkpoint["metadata"]
    else:
        state, metadata = checkpoint, {}
    state, dropped = drop_profiler_buffers(state)
    if dropped:
        _say(f"{path}: left out {len(dropped)} buffers of the profiler thop (total_ops, total_params)")
    align_corners = bool(metadata.get("align_corners", False))
    if is_original(state):
        _say(f"{path}: weights of the original repository, converted (align_corners=True, as they were trained)")
        state, align_corners = convert_original(state), True
    aux = any(name.startswith(("aux_shallow.", "aux_context.")) for name in state)
    model = FastSCNN(NUM_CLASSES, align_corners=align_corners, aux=aux)
    check_state(path, state, model.state_dict())
    model.load_state_dict(state)
    return model.eval(), metadata


def check_state(path: str | Path, found: dict, expected: dict[str, Tensor]) -> None:
    """Compares a state dict with what a network wants.

    Raises:
        UserError: names or shapes differ; the message counts them and names the first.
    """
    missing = [name for name in expected if name not in found]
    foreign = [name for name in found if name not in expected]
    other = [
        f"{name} {tuple(getattr(found[name], 'shape', ()))} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in found and getattr(found[name], "shape", None) != tensor.shape
    ]
    differences = [
        f"{len(names)} {what} (first: {names[0]})"
        for what, names in (("missing", missing), ("unknown", foreign), ("of another shape", other))
        if names
    ]
    if differences:
        raise UserError(
            f"{path} belongs to another network: of {len(expected)} tensors expected and {len(found)} found, "
            f"{', '.join(differences)}; expected Fast-SCNN with {NUM_CLASSES} classes"
        )


def check_size(size: Sequence[int], name: object = "the picture") -> None:
    """Refuses a picture, given as (height, width), that is smaller than the network can take.

    Raises:
        UserError: names it.
    """
    if min(size) < MIN_SIZE:
        raise UserError(
            f"{name} is {size[0]}x{size[1]} (height x width), expected at least {MIN_SIZE}x{MIN_SIZE}: enlarge it"
        )


class Predictor:
    """Turns pictures into train ids: (H, W, 3) RGB uint8 in, (H, W) uint8 out.

    Args:
        model: in eval mode.
        device: where it runs; the model is moved there.
    """

    def __init__(self, model: FastSCNN, device: torch.device):
        self.device = device
        self.model = model.to(device, memory_format=torch.channels_last).eval()

    @torch.inference_mode()
    def logits(self, images: Tensor) -> Tensor:
        """Returns the (N, K, H, W) logits of (N, H, W, 3) uint8 pictures.

        Raises:
            UserError: they are smaller than the network can take.
        """
        check_size(images.shape[1:3])
        return self.model(normalise(images.to(self.device, non_blocking=True)))

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Returns the (H, W) uint8 train ids of an (H, W, 3) uint8 RGB picture."""
        return self.logits(torch.from_numpy(image)[None]).argmax(1)[0].to(torch.uint8).cpu().numpy()


def _say(message: str) -> None:
    print(message, file=sys.stderr)
