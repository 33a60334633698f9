"""Weights as other trainers wrap them: in dicts beside other things, under names with a prefix."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from inference.published import PUBLISHERS

# What DataParallel, DistributedDataParallel and AveragedModel, and what torch.compile put before a layer's name.
_WRAPPER = r"(?:module|_orig_mod)\."
# The first weights of the network, in our names and in those of published ones: what precedes them is a prefix.
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

    Of several networks, averaged weights (EMA) are taken, else the first. Beside a network whose names have a prefix,
    names without it are left out. Where there is no Fast-SCNN, the dict with the most tensors is returned.
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
    left = [name for name in place.entries if name not in tensors or not name.startswith(place.prefix)]
    if left:
        changes.append(f"left out {len(left)} other entries (first: {left[0]})")
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
