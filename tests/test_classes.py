"""What a class is: the table of Cityscapes, look-up tables and colors."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from cityscapesscripts.helpers import labels as official
from hypothesis import given
from hypothesis import strategies as st

from frames.classes import (
    CITYSCAPES,
    IGNORE_INDEX,
    LABELS,
    Classes,
    LabelFormat,
    colors_for,
    distinct_colors,
    plain_labels,
)


def test_label_table_is_the_official_one() -> None:
    """A wrong id, color or category gives wrong scores without an error."""
    ours = [(row.name, row.id, row.train_id, row.category, row.color) for row in LABELS]
    theirs = [(row.name, row.id, row.trainId, row.category, row.color) for row in official.labels if row.id >= 0]
    assert ours == theirs
    assert list(CITYSCAPES.names) == [official.trainId2label[i].name for i in range(19)]
    assert list(CITYSCAPES.colors) == [official.trainId2label[i].color for i in range(19)]
    ignored = {row.id for row in official.labels if row.ignoreInEval and row.id >= 0}
    assert {row.id for row in LABELS if row.train_id == IGNORE_INDEX} == ignored
    categories = {
        name: [row.trainId for row in rows if not row.ignoreInEval] for name, rows in official.category2labels.items()
    }
    assert {name: list(members) for name, members in CITYSCAPES.categories} == categories
    assert [name for name, _ in CITYSCAPES.categories] == list(categories)


@given(st.lists(st.sampled_from([row.id for row in LABELS]), min_size=1, max_size=50))
def test_tables_invert_each_other(ids: list[int]) -> None:
    """Ids remapped in place depend on the order of the table: 7 becomes 0 becomes something else."""
    train_ids = CITYSCAPES.labels.table[ids]
    back = CITYSCAPES.labels.file_values[train_ids]
    for label_id, train_id, again in zip(ids, train_ids, back, strict=True):
        assert train_id == official.id2label[label_id].trainId
        assert again == (label_id if train_id != 255 else 0)


def test_every_value_outside_the_table_is_unknown() -> None:
    """A label value that the table lacks must not pass as some class."""
    assert set(np.flatnonzero(CITYSCAPES.labels.known)) == {row.id for row in LABELS}


def test_as_many_classes_as_train_ids_leave_none_for_a_mark() -> None:
    """A train id that marks unknown values cannot be a class: 254 of 255 classes would be refused."""
    labels = plain_labels(255)
    np.testing.assert_array_equal(labels.table, np.arange(256))
    assert labels.known.all()
    few = plain_labels(2)
    assert few.table[254] == IGNORE_INDEX and not few.known[254]
    assert LabelFormat(few.train_ids, "", ignore_unknown=True).known.all()


def test_of_several_values_the_lowest_is_written() -> None:
    """Predictions under a value that depends on the order of a mapping are not the same twice."""
    labels = LabelFormat(((9, 0), (7, 0), (8, 1), (3, 255), (0, 255)), "")
    assert labels.file_values[[0, 1, 255]].tolist() == [7, 8, 0]


@pytest.mark.parametrize("count", [2, 60, 255])
def test_computed_colors_are_apart_and_stable(count: int) -> None:
    """A color like another one cannot be told from it; one that moves when a class is added confuses a series."""
    colors = distinct_colors(count)
    assert len(set(colors)) == count and colors == distinct_colors(255)[:count]
    assert not {(0, 0, 0), (255, 255, 255)} & set(colors)  # ignored pixels, and the paper of the legend
    least = {2: 300, 60: 30, 255: 15}[count]
    apart = np.linalg.norm(np.subtract(*np.array(colors)[np.array(np.triu_indices(count, 1))], dtype=float), axis=1)
    assert apart.min() > least


def test_colors_that_are_given_stay_and_are_kept_clear_of() -> None:
    """A computed color that equals a given one hides a class."""
    given = {1: distinct_colors(1)[0]}
    colors = distinct_colors(3, given)
    assert colors[1] == given[1] and len(set(colors)) == 3


def test_the_classes_of_cityscapes_have_the_colors_that_everybody_knows() -> None:
    """A road in another color than on every picture of Cityscapes, since a description gives none."""
    assert colors_for(CITYSCAPES.names, {}) == CITYSCAPES.colors
    assert colors_for(CITYSCAPES.names, {0: (1, 2, 3)})[0] == (1, 2, 3)
    assert colors_for(("road", "car"), {}) == distinct_colors(2)


def test_classes_survive_a_weight_file() -> None:
    """Weights whose names come back in other types are refused as those of other classes."""
    classes = Classes(("a", "b"), ((1, 2, 3), (4, 5, 6)), (("all", (0, 1)),), plain_labels(2))
    assert Classes.from_dict(json.loads(json.dumps(classes.as_dict()))) == classes
    assert Classes.from_dict(CITYSCAPES.as_dict()) is CITYSCAPES
    assert pickle.loads(pickle.dumps(CITYSCAPES)) == CITYSCAPES
    assert hash(pickle.loads(pickle.dumps(CITYSCAPES.labels))) == hash(CITYSCAPES.labels)
    for wrong in ({"names": ["a"], "colors": [[1, 2, 3]]}, {"names": ["a", "b"], "colors": [[1, 2, 3]]}):
        with pytest.raises(ValueError, match="2 to 255"):
            Classes.from_dict(wrong)


def test_formats_that_read_files_alike_share_a_digest() -> None:
    """A cache that is refused for another wording, or taken for another mapping."""
    assert LabelFormat(((0, 1), (1, 0)), "x").digest == LabelFormat(((1, 0), (0, 1)), "y").digest
    assert LabelFormat(((0, 1), (1, 0), (255, 255)), "").digest == LabelFormat(((1, 0), (0, 1)), "").digest
    others = [
        LabelFormat(((0, 0), (1, 1)), ""),
        LabelFormat(((0, 1), (1, 0)), "", ignore_unknown=True),
        LabelFormat(((0, 1), (1, 0)), "", colors=(((0, 0, 0), 1),)),
    ]
    assert len({labels.digest for labels in [*others, LabelFormat(((0, 1), (1, 0)), "")]}) == 4
