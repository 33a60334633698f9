"""Weight files: loading, checking, and the network that they belong to."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor

from frames.classes import CITYSCAPES, MOST_CLASSES, Classes
from inference.formats import foreign_file
from inference.matching import HEADS, match_classes, reorder_heads, say
from inference.published import PUBLISHERS, check_version, convert, describe, options, recognise
from inference.safetensors_files import is_safetensors, read_safetensors
from inference.wrappers import unwrap
from model import INPUT_SIDES, FastSCNN, Variant
from utils import UserError, check_finite, load_checkpoint

AUX_HEADS = ("aux_shallow.", "aux_context.")


def load_state(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Loads weights: a checkpoint of train.py, a state dict, or one that another trainer wrapped; see wrappers.unwrap.

    The file is PyTorch's or safetensors'. Weights that others published are converted; see published.py.

    Returns:
        The state dict under our names, and the metadata of the file: align_corners, input_scale and input_side at
        least, and variant for a network that is not the paper's.

    Raises:
        UserError: the file is missing, damaged, holds code, is of another kind, or has values that are not finite.
    """
    state, found, changes = unwrap(_load_file(path))
    metadata = {"align_corners": False, "input_scale": 1.0, "input_side": 0, **found}
    # In single precision before anything is computed from them: half precision would round an identity BN.
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    state, dropped = drop_profiler_buffers(state)
    if changes:
        say(f"{path}: {'; '.join(changes)}")
    if dropped:
        say(f"{path}: left out {len(dropped)} buffers of the profiler thop (total_ops, total_params)")
    if publisher := recognise(state):
        check_version(path, state, publisher)
        say(f"{path}: {describe(publisher)}")
        state, metadata = convert(state, publisher), {**metadata, **options(publisher)}
    uncounted = [name for name in state if name.endswith(".running_mean") and _counter(name) not in state]
    if uncounted:
        say(f"{path}: {len(uncounted)} num_batches_tracked are missing, as in old files; nothing depends on them")
        state |= {_counter(name): torch.tensor(0) for name in uncounted}
    check_finite(path, state)
    _check_metadata(path, metadata)
    return state, metadata


def _load_file(path: str | Path) -> dict:
    if is_safetensors(path):
        return read_safetensors(path)
    try:
        return load_checkpoint(path)
    except UserError as error:
        raise foreign_file(path, "a PyTorch file") or error from None


def _check_metadata(path: str | Path, metadata: dict) -> None:
    """Refuses metadata that describe no network.

    Raises:
        UserError: says what of them.
    """
    scale = metadata["input_scale"]
    if not isinstance(scale, (int, float)) or not 0 < scale < math.inf:
        raise UserError(f"{path}: its metadata have an input_scale of {scale!r:.40}, expected a number above 0")
    side, (low, high) = metadata["input_side"], INPUT_SIDES
    if type(side) is not int or not low <= side <= high:
        raise UserError(f"{path}: its metadata have an input_side of {side!r:.40}, expected {low} to {high}")
    if not isinstance(metadata["align_corners"], bool):
        raise UserError(
            f"{path}: its metadata have align_corners {metadata['align_corners']!r:.40}, expected True or False"
        )
    known = [{}, *(publisher.variant._asdict() for publisher in PUBLISHERS)]
    if metadata.get("variant", {}) not in known:
        raise UserError(
            f"{path}: its metadata have a network's variant that is not known here ({metadata['variant']!r:.80}); "
            "a newer version of this repository may have written it"
        )


def _counter(running_mean: str) -> str:
    return running_mean.removesuffix("running_mean") + "num_batches_tracked"


def classes_of(path: str | Path, state: dict[str, Tensor], metadata: dict) -> Classes:
    """Returns the classes that a weight file names; made up from their number if it names none.

    Raises:
        UserError: it names others than it has scores for.
    """
    scores = getattr(state.get("classifier.conv.weight"), "shape", (0,))[0]
    if "classes" not in metadata:
        if not 2 <= scores <= MOST_CLASSES:
            return CITYSCAPES  # no Fast-SCNN of ours: check_state says what is expected
        return Classes.unnamed(scores)
    try:
        classes = Classes.from_dict(metadata["classes"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path} does not name its classes as train.py does ({error}); take another file") from None
    if len(classes) != scores:
        raise UserError(f"{path} names {len(classes)} classes and has scores for {scores}; take another file")
    return classes


def build_model(state: dict[str, Tensor], metadata: dict, count: int, aux: bool | None = None) -> FastSCNN:
    """Returns the network that a state dict belongs to, with random weights.

    Args:
        state: decides about auxiliary heads where aux is None.
        metadata: align_corners; input_scale, input_side and variant, if they are not the paper's.
        count: of the classes.
        aux: whether the network has auxiliary heads.
    """
    if aux is None:
        aux = all(any(name.startswith(head) for name in state) for head in AUX_HEADS)
    return FastSCNN(
        count,
        align_corners=metadata["align_corners"],
        aux=aux,
        input_scale=float(metadata.get("input_scale", 1)),
        input_side=metadata.get("input_side", 0),
        variant=Variant(**metadata.get("variant", {})),
    )


def load_model(path: str | Path, input_side: int | None = None) -> tuple[FastSCNN, dict]:
    """Loads a network for inference.

    Args:
        path: of the weights.
        input_side: instead of what the file has; 0: the network sees pictures at their own size.

    Returns:
        The network in eval mode on the CPU, and the metadata of the file; `classes` is a Classes object.

    Raises:
        UserError: as load_state, or the weights belong to another network.
    """
    state, metadata = load_state(path)
    metadata["classes"] = classes_of(path, state, metadata)
    if input_side is not None:
        metadata |= {"input_scale": 1.0, "input_side": input_side}
    model = build_model(state, metadata, len(metadata["classes"]))
    unused = unused_heads(path, state, model.state_dict())
    state = {name: tensor for name, tensor in state.items() if name not in unused}
    check_state(path, state, model.state_dict())
    model.load_state_dict(state)
    return model.eval(), metadata


def initial_model(path: str | Path, classes: Classes, aux: bool, reset_head: bool) -> FastSCNN:
    """Returns a network for fine-tuning; tensors that are not taken from the file are random, with a note on stderr.

    Args:
        path: a weight file.
        classes: those to be trained.
        aux: give the network auxiliary heads, from the file if it has them.
        reset_head: the scores of all classes start at random if the file's classes are others.

    Raises:
        UserError: as load_model.
    """
    state, metadata = load_state(path)
    found = classes_of(path, state, metadata)
    reset_head = reset_head and (len(found) != len(classes) or (found.named and set(found.names) != set(classes.names)))
    if not reset_head and (order := match_classes(path, found, classes)):
        state = reorder_heads(state, order)
    model = build_model(state, metadata, len(classes), aux)
    wanted = model.state_dict()
    unused = unused_heads(path, state, wanted)
    fresh = [name for name in wanted if name.startswith(AUX_HEADS) and name not in state]
    if reset_head:
        fresh += [name for name in wanted if name.startswith(HEADS) and name in state]
    if fresh:
        say(f"{path}: {len(fresh)} tensors random, not from the file ({fresh[0]} ...)")
    merged = {name: tensor for name, tensor in state.items() if name not in unused}
    merged |= {name: wanted[name] for name in fresh}
    check_state(path, merged, wanted)
    model.load_state_dict(merged)
    return model


def unused_heads(path: str | Path, state: dict, wanted: dict) -> list[str]:
    """Returns the names of auxiliary heads that a network does not have, with a note on stderr."""
    unused = [name for name in state if name.startswith(AUX_HEADS) and name not in wanted]
    if unused:
        say(f"{path}: {len(unused)} tensors left out ({unused[0]} ...)")
    return unused


def check_state(path: str | Path, found: dict, expected: dict[str, Tensor]) -> None:
    """Compares a state dict with the one that a network expects.

    Raises:
        UserError: names or shapes differ; the message counts the differences and names the first of each kind.
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
            f"{', '.join(differences)}; expected Fast-SCNN"
        )


def drop_profiler_buffers(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Returns a state dict without the buffers that the profiler thop leaves behind, and the names it dropped."""
    dropped = [name for name in state if name.rsplit(".", 1)[-1] in ("total_ops", "total_params")]
    return {name: tensor for name, tensor in state.items() if name not in dropped}, dropped
