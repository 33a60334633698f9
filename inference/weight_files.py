"""Anybody's weight file, read as a state dict under our names and metadata: the door for weights.

A file is what its content says, whatever its name: PyTorch's or safetensors', bare or wrapped by a trainer, ours or one
that others published (published.py). Files that are no weights are refused by what they are.
"""

from __future__ import annotations

import json
import math
import re
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from inference.published import PUBLISHERS, check_version, convert, describe, options, recognise
from model import INPUT_SIDES
from utils import UserError, check_finite, load_checkpoint, write_file

METADATA = "fast_scnn"  # the key of our metadata, one JSON text, in files that others can read

# --- What a file is


# Source: the formats' own descriptions. The beginning of a file as a pattern, what it is, what to do.
_SAFETENSORS = rb".{8}\{\s*\""  # the length of a JSON object, and the object
_BEGINNINGS = (
    (rb"version https:..git-lfs", "a Git LFS pointer in place of the file", "run git lfs pull"),
    (rb"\s*<(!doctype html|html)", "an HTML page in place of the file", "download it again, by the link to the file"),
    (rb"\s*<.*<net\b", "an OpenVINO file", "let its name end with .xml, its .bin beside it"),
    (rb"\x08[\x03-\x20][\x12\x1a\x22\x28\x32\x3a\x42]", "an ONNX file", "let its name end with .onnx"),
    (_SAFETENSORS, "a safetensors file", "let its name end with .safetensors"),
    (rb"\x80\x02", "a PyTorch file", "let its name end with .pth"),
    (rb"\x80[\x03-\x05]", "a Python pickle, which could execute code", "save a state_dict() with torch.save"),
)
_TORCHSCRIPT = "import torch; torch.save(torch.jit.load({0!r}, 'cpu').state_dict(), {1!r})"


def foreign_file(path: str | Path, expected: str) -> UserError | None:
    """Returns the error that a file is of another kind than expected, or None if the kind is not known.

    Args:
        path: a file that could not be read.
        expected: "a PyTorch file", "an ONNX file" or "an OpenVINO file".
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(4096)
        if head.startswith(b"PK") and zipfile.is_zipfile(path):
            what, advice = _kind_of_archive(path)
        else:
            what, advice = next(kind for pattern, *kind in _BEGINNINGS if re.match(pattern, head, re.DOTALL | re.I))
    except (OSError, ValueError, StopIteration, zipfile.BadZipFile):
        return None
    return None if what == expected else UserError(f"{path} is {what}, expected {expected}: {advice}")


def _kind_of_archive(path: Path) -> tuple[str, str]:
    """Returns what a ZIP archive is, and what to do with it."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(re.search(r"/(constants\.pkl|code/)", name) for name in names):
        script = _TORCHSCRIPT.format(str(path), str(path.with_suffix(".converted.pth")))
        return "a TorchScript archive", f"convert it in Python: {script}"
    if any(name.endswith("/data.pkl") for name in names):
        return "a PyTorch file", "let its name end with .pth"
    return "a ZIP archive without PyTorch weights", "unpack it, or save a state_dict() with torch.save"


def read_content(path: str | Path) -> bytes:
    """Returns the content of a file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}): check the file and its permissions") from None


# --- safetensors, which hold tensors and texts only


def is_safetensors(path: str | Path) -> bool:
    """Returns whether a file begins as a safetensors file does, whatever its name."""
    try:
        with open(path, "rb") as file:
            return re.match(_SAFETENSORS, file.read(64), re.DOTALL) is not None
    except (OSError, ValueError):
        return False


def read_safetensors(path: str | Path) -> dict:
    """Returns a safetensors file as load_checkpoint does a PyTorch file: with our metadata, or as a bare state dict.

    Raises:
        UserError: the package is missing, or the file cannot be read or is damaged.
    """
    package = _safetensors(path)
    content = read_content(path)
    try:
        tensors = package.torch.load(content)
        length = int.from_bytes(content[:8], "little")
        texts = json.loads(content[8 : 8 + length]).get("__metadata__", {})
        metadata = json.loads(texts[METADATA]) if METADATA in texts else None
    # Types and sizes that the header only claims make the package raise several.
    except (package.SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise UserError(f"{path} is a damaged safetensors file ({reason}): get it again") from None
    if metadata is None:
        return tensors
    if not isinstance(metadata, dict):
        raise UserError(f"{path}: its metadata {METADATA} are a {type(metadata).__name__}, expected a JSON object")
    return {"model": tensors, "metadata": metadata}


def write_safetensors(path: str | Path, state: dict[str, Tensor], metadata: dict) -> None:
    """Writes a state dict with metadata, which are plain values.

    Raises:
        UserError: the package is missing, or the file cannot be written.
    """
    package = _safetensors(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    write_file(path, package.torch.save(tensors, {METADATA: json.dumps(metadata)}))


def _safetensors(path: str | Path) -> ModuleType:
    try:
        import safetensors
        import safetensors.torch
    except ImportError:
        raise UserError(
            f"{path} is a safetensors file, which needs the package safetensors: pip install -r requirements-deploy.txt"
        ) from None
    return safetensors


# --- Wrappers: trainers keep weights in dicts beside other things, under names with a prefix


# What DataParallel, DistributedDataParallel and AveragedModel, and what torch.compile put before a layer's name.
_WRAPPER = r"(?:module|_orig_mod)\."
# The first weights of the network, by our names and by published ones: what precedes them is a prefix.
_FIRST = [
    rf"\.(?:{_WRAPPER})*".join(re.escape(part) for part in name.split("."))
    for name in ("learning_to_downsample.conv.0.weight", *(publisher.mark for publisher in PUBLISHERS))
]
_PREFIX = re.compile(rf"(.*\.)?(?:{'|'.join(_FIRST)})")
_AVERAGED = re.compile(r"(?<![a-z])(ema|swa|averaged?)(?![a-z])", re.IGNORECASE)
_DEEPEST = 5  # dicts in dicts


class _Place(NamedTuple):
    """A dict of a checkpoint, and the prefix that a network in it has."""

    keys: tuple[str, ...]  # that lead to the dict
    entries: dict
    outer: dict  # which holds it
    prefix: str = ""

    def __str__(self) -> str:
        return repr(".".join([*self.keys, self.prefix.rstrip(".")]).strip("."))


def unwrap(checkpoint: dict) -> tuple[dict[str, Tensor], dict, list[str]]:
    """Returns the state dict that a checkpoint holds, the metadata beside it, and in words what was done.

    Of several networks, averaged weights (EMA) are taken, else the first. If the network's keys share a prefix, other
    keys are ignored. Where there is no Fast-SCNN, the dict with the most tensors is returned.
    """
    own = isinstance(checkpoint.get("model"), dict) and isinstance(checkpoint.get("metadata"), dict)
    dicts = list(_dicts(checkpoint["model"], checkpoint, ("model",)) if own else _dicts(checkpoint, {}))
    places = [place._replace(prefix=prefix) for place in dicts for prefix in _prefixes(place.entries)]
    if not places:
        return max((_tensors(place.entries) for place in dicts), key=len), {}, []
    place = next((place for place in places if _AVERAGED.search(str(place))), places[0])
    tensors = _tensors(place.entries)
    state = {name[len(place.prefix) :]: tensor for name, tensor in tensors.items() if name.startswith(place.prefix)}
    changes = []
    if place.keys and not (own and place.keys == ("model",)):
        changes.append(f"weights taken from {'.'.join(place.keys)!r}")
    if place.prefix:
        changes.append(f"names taken without {place.prefix!r}")
    if len(places) > 1:
        changes.append(f"not taken from {', '.join(str(other) for other in places if other is not place)}")
    plain = {re.sub(rf"(?<![^.]){_WRAPPER}", "", name): tensor for name, tensor in state.items()}
    if plain.keys() != state.keys() and len(plain) == len(state):
        state = plain
        changes.append("'module.' and '_orig_mod.' taken out of names")
    ignored = [name for name in place.entries if name not in tensors or not name.startswith(place.prefix)]
    if ignored:
        changes.append(f"left out {len(ignored)} other entries (first: {ignored[0]})")
    metadata = place.outer.get("metadata")
    ours = isinstance(metadata, dict) and not metadata.keys().isdisjoint(("align_corners", "input_scale", "input_side"))
    return state, metadata if ours else {}, changes


def _dicts(entries: dict, outer: dict, keys: tuple[str, ...] = ()) -> Iterator[_Place]:
    """Yields a dict and those in it."""
    yield _Place(keys, entries, outer)
    for key, value in entries.items():
        if isinstance(value, dict) and len(keys) < _DEEPEST:
            yield from _dicts(value, entries, (*keys, str(key)))


def _tensors(entries: dict) -> dict[str, Tensor]:
    return {name: value for name, value in entries.items() if isinstance(name, str) and isinstance(value, Tensor)}


def _prefixes(entries: dict) -> list[str]:
    """Returns the prefixes under which a dict holds the network's first weights."""
    found = [_PREFIX.fullmatch(name) for name in _tensors(entries)]
    return [match[1] or "" for match in found if match]


# --- The whole way


def load_state(path: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Loads weights: a checkpoint of train.py, a state dict, a wrapped one, or one that others published.

    A line on stderr says what was converted or left out.

    Returns:
        The state dict under our names, and the metadata of the file: the options of FastSCNN at least, without
        `variant` for the paper's network.

    Raises:
        UserError: the file is missing, damaged, holds code, is of another kind, or has values that are not finite.
    """
    state, found, changes = unwrap(_read(path))
    metadata = {"align_corners": False, "input_scale": 1.0, "input_side": 0, **found}
    # In single precision before anything is computed from them: half precision would round an identity BN.
    state = {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    # The profiler thop leaves the first two behind, a TorchScript archive keeps FastSCNN's statistics of pictures.
    buffers = [name for name in state if name.rsplit(".", 1)[-1] in ("total_ops", "total_params", "mean", "std")]
    if buffers:
        changes.append(f"left out {len(buffers)} buffers that are no weights (first: {buffers[0]})")
        state = {name: tensor for name, tensor in state.items() if name not in buffers}
    if publisher := recognise(state):
        check_version(path, state, publisher)
        changes.append(describe(publisher))
        state, metadata = convert(state, publisher), {**metadata, **options(publisher)}
    uncounted = [name for name in state if name.endswith(".running_mean") and _counter(name) not in state]
    if uncounted:
        changes.append(f"{len(uncounted)} num_batches_tracked are missing, on which nothing depends")
        state |= {_counter(name): torch.tensor(0) for name in uncounted}
    if changes:
        say(f"{path}: {'; '.join(changes)}")
    check_finite(path, state)
    _check_metadata(path, metadata)
    return state, metadata


def _read(path: str | Path) -> dict:
    if is_safetensors(path):
        return read_safetensors(path)
    try:
        return load_checkpoint(path)
    except UserError as error:
        raise foreign_file(path, "a PyTorch file") or error from None


def _counter(running_mean: str) -> str:
    return running_mean.removesuffix("running_mean") + "num_batches_tracked"


def _check_metadata(path: str | Path, metadata: dict) -> None:
    """Refuses metadata that describe no network.

    Raises:
        UserError: names the first wrong value.
    """
    low, high = INPUT_SIDES
    scale, side, align = (metadata[name] for name in ("input_scale", "input_side", "align_corners"))
    variants = [{}, *(publisher.variant._asdict() for publisher in PUBLISHERS)]
    checks = {
        "input_scale": (isinstance(scale, (int, float)) and 0 < scale < math.inf, "a number above 0"),
        "input_side": (type(side) is int and low <= side <= high, f"{low} to {high}"),
        "align_corners": (isinstance(align, bool), "True or False"),
        "variant": (metadata.get("variant", {}) in variants, "one of inference/published.py: update this repository"),
    }
    for name, (valid, expected) in checks.items():
        if not valid:
            raise UserError(f"{path}: {name} in its metadata is {metadata[name]!r:.80}, expected {expected}")


def say(message: str) -> None:
    """Tells the user, on stderr, what was made of a weight file."""
    print(message, file=sys.stderr)
