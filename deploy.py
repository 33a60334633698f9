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

AUX_HEADS = ("aux_shallow.", "aux_context.")
CLASS_SCORES = ("classifier.conv.", "aux_shallow.classes.", "aux_context.classes.")


def load_state(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Loads weights from what train.py wrote, from a bare state dict, or from the original repository's weights.

    Returns:
        The state dict under our names, and the metadata of the file: align_corners and input_scale at least.

    Raises:
        UserError: the file is missing, damaged, or holds code.
    """
    checkpoint = load_checkpoint(path)
    metadata = {"align_corners": False, "input_scale": 1.0}
    if isinstance(checkpoint.get("model"), dict) and isinstance(checkpoint.get("metadata"), dict):
        state, metadata = checkpoint["model"], {**metadata, **checkpoint["metadata"]}
    else:
        state = checkpoint
    state, dropped = drop_profiler_buffers(state)
    if dropped:
        _say(f"{path}: left out {len(dropped)} buffers of the profiler thop (total_ops, total_params)")
    if is_original(state):
        _say(f"{path}: weights of the original repository, converted (align_corners=True, as they were trained)")
        state, metadata["align_corners"] = convert_original(state), True
    return state, metadata


def build_model(state: dict[str, Tensor], metadata: dict, aux: bool | None = None) -> FastSCNN:
    """Returns the network that weights belong to, without loading them; aux None: heads if the weights have them."""
    if aux is None:
        aux = any(name.startswith(AUX_HEADS) for name in state)
    return FastSCNN(
        NUM_CLASSES, align_corners=metadata["align_corners"], aux=aux, input_scale=float(metadata["input_scale"])
    )


def load_model(path: str | Path) -> tuple[FastSCNN, dict]:
    """Loads a network for inference.

    Returns:
        The network in eval mode on the CPU, and the metadata of the file.

    Raises:
        UserError: as load_state, and where the weights belong to another network.
    """
    state, metadata = load_state(path)
    model = build_model(state, metadata)
    check_state(path, state, model.state_dict())
    model.load_state_dict(state)
    return model.eval(), metadata


def initial_model(path: str | Path, aux: bool, reset_head: bool) -> FastSCNN:
    """Returns a network for fine-tuning; what is not taken from the file is random, and said.

    Args:
        path: the weights.
        aux: give it auxiliary heads, from the file if it has them.
        reset_head: leave out class scores of another size than NUM_CLASSES.

    Raises:
        UserError: as load_model.
    """
    state, metadata = load_state(path)
    model = build_model(state, {**metadata, "input_scale": 1.0}, aux)
    wanted = model.state_dict()
    unused = [name for name in state if name.startswith(AUX_HEADS) and name not in wanted]
    fresh = [name for name in wanted if name.startswith(AUX_HEADS) and name not in state]
    if reset_head:
        heads = [name for name in wanted if name.startswith(CLASS_SCORES)]
        fresh += [name for name in heads if name in state and state[name].shape != wanted[name].shape]
    for what, names in (("left out", unused), ("random, not from the file", fresh)):
        if names:
            _say(f"{path}: {len(names)} tensors {what} ({names[0]} ...)")
    merged = {name: tensor for name, tensor in state.items() if name not in unused}
    merged |= {name: wanted[name] for name in fresh}
    check_state(path, merged, wanted)
    model.load_state_dict(merged)
    return model


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
