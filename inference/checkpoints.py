"""From a weight file to a network: which classes its scores are for, and whether its weights fit Fast-SCNN."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from frames.classes import CITYSCAPES, MOST_CLASSES, Classes
from inference.weight_files import load_state, say
from model import FastSCNN, Variant
from utils import UserError

AUX_HEADS = ("aux_shallow.", "aux_context.")
HEADS = ("classifier.conv.", "aux_shallow.classes.", "aux_context.classes.")  # one row for each class


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
        aux=aux,
        align_corners=metadata["align_corners"],
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


def match_classes(path: str | Path, found: Classes, wanted: Classes) -> list[int] | None:
    """Compares the classes of a weight file with those that are wanted; a note on stderr says if they are taken.

    Returns:
        For each wanted class its place in the file; None if all are in their places.

    Raises:
        UserError: the classes are others; the message has the first that differs.
    """
    if found.names == wanted.names:
        return None
    if not found.named and len(found) == len(wanted):
        say(f"{path} does not name its {len(found)} classes: taken for the classes of the data, in their order")
        return None
    if set(found.names) == set(wanted.names):
        say(f"{path} has the classes of the data in another order: its scores are reordered")
        return [found.names.index(name) for name in wanted.names]
    advice = "take other weights or data, or train these with --init_weights and --reset_head"
    if not found.named:
        raise UserError(f"{path} is for {len(found)} classes, the data has {len(wanted)}: {advice}")
    index, ours, theirs = found.first_difference(wanted.names)
    raise UserError(
        f"{path} is for {len(found)} classes, the data has {len(wanted)}: class {index} is {ours[:40]!r} in the "
        f"weights and {theirs[:40]!r} in the data; {advice}"
    )


def reorder_heads(state: dict[str, Tensor], order: list[int]) -> dict[str, Tensor]:
    """Returns a state dict whose class scores are in another order; see match_classes."""
    return {name: tensor[order] if name.startswith(HEADS) else tensor for name, tensor in state.items()}
