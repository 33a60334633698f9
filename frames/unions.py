"""Coarse labels: one value that stands for several classes (CamVid's "car": car, truck or bus).

CamVid's "car" is a car, a truck or a bus. Frames in memory keep the label's train id. Only training and the loss of a
validation replace it by an id above the classes, K + u for the u-th union of the run: see Unions.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from frames.classes import MOST_CLASSES, Classes, LabelFormat, plain_labels
from utils import UserError, quoted

Members = tuple[tuple[int, ...], ...]  # the train ids that each union of a run consists of


def read_unions(value: object, names: tuple[str, ...]) -> tuple[tuple[int, tuple[int, ...]], ...]:
    """Reads the key `unions` of a description as LabelFormat has it; classes that mean just themselves are left out.

    Args:
        value: of the key, None if it is missing.
        names: of the classes.

    Raises:
        UserError: it is no mapping from classes to lists of classes with themselves among them, or has a class twice.
    """
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise UserError(f"`unions` is {quoted(value)}, expected a mapping such as {{car: [car, truck, bus]}}")
    seen: dict[str, str] = {}
    unions = []
    for name, members in value.items():
        if not isinstance(members, list):
            raise UserError(f"`unions` has {quoted({name: members})}, expected names of classes: {{car: [car, truck]}}")
        unknown = [one for one in (name, *members) if one not in names]
        if unknown:
            raise UserError(f"`unions` names the class {quoted(unknown[0])}, which `names` lacks; correct one of them")
        if name not in members:
            raise UserError(f"`unions` has {quoted({name: members})}, which lacks {quoted(name)} itself; add it")
        for member in members:
            if member in seen:
                raise UserError(
                    f"`unions` has the class {quoted(member)} in {quoted(seen[member])} and {quoted(name)}; expected "
                    "once"
                )
            seen[member] = name
        unions.append((names.index(name), tuple(sorted(map(names.index, members)))))
    return tuple(sorted(union for union in unions if len(union[1]) > 1))


def joined_classes(classes: Classes) -> tuple[Classes, np.ndarray]:
    """Returns classes in which each union of the labels is one class, under the name of its label.

    Returns:
        J classes without categories, and (J, K) int64: 1 where a class is part of a joined one, else 0.
    """
    unions = dict(classes.labels.unions)
    inside = {member for train_id, members in unions.items() for member in members if member != train_id}
    kept = [train_id for train_id in range(len(classes)) if train_id not in inside]
    parts = np.zeros((len(kept), len(classes)), np.int64)
    for row, train_id in enumerate(kept):
        parts[row, list(unions.get(train_id, (train_id,)))] = 1
    names, colors = zip(*((classes.names[train_id], classes.colors[train_id]) for train_id in kept), strict=True)
    return Classes(names, colors, (), plain_labels(len(kept))), parts


class Unions(NamedTuple):
    """The unions of all data sets of a run; labels of different data sets that mean the same classes share one.

    Attributes:
        classes: K, the number of classes; the u-th union has the id K + u.
        members: the train ids of each.
    """

    classes: int
    members: Members

    @classmethod
    def of(cls, formats: Iterable[LabelFormat], classes: int) -> Unions:
        """Returns the unions that label formats have.

        Raises:
            UserError: ids of one byte are too few for them and the classes.
        """
        members = tuple(sorted({members for labels in formats for _, members in labels.unions}))
        if classes + len(members) > MOST_CLASSES:
            raise UserError(
                f"{classes} classes and {len(members)} unions are more than {MOST_CLASSES}, which labels of one byte "
                "can tell apart; leave out some unions"
            )
        return cls(classes, members)

    def table(self, labels: LabelFormat) -> np.ndarray | None:
        """Returns (256,) uint8 ids to learn by train id, or None if the labels have no unions."""
        if not labels.unions:
            return None
        table = np.arange(256, dtype=np.uint8)
        for train_id, members in labels.unions:
            table[train_id] = self.classes + self.members.index(members)
        return table
