"""The label table and its look-up tables."""

from __future__ import annotations

from cityscapesscripts.helpers import labels as official
from hypothesis import given
from hypothesis import strategies as st

import classes


def test_label_table_is_the_official_one() -> None:
    """A wrong id, color or category gives wrong scores without an error."""
    ours = [(row.name, row.id, row.train_id, row.category, row.color) for row in classes.LABELS]
    theirs = [(row.name, row.id, row.trainId, row.category, row.color) for row in official.labels if row.id >= 0]
    assert ours == theirs
    assert [row.name for row in classes.CLASSES] == [official.trainId2label[i].name for i in range(19)]
    ignored = {row.id for row in official.labels if row.ignoreInEval and row.id >= 0}
    assert {row.id for row in classes.LABELS if row.train_id == classes.IGNORE_INDEX} == ignored
    assert list(classes.CATEGORIES) == list(official.category2labels)


@given(st.lists(st.sampled_from([row.id for row in classes.LABELS]), min_size=1, max_size=50))
def test_tables_invert_each_other(ids: list[int]) -> None:
    """Ids remapped in place depend on the order of the table: 7 becomes 0 becomes something else."""
    train_ids = classes.ID_TO_TRAIN_ID[ids]
    back = classes.TRAIN_ID_TO_ID[train_ids]
    for label_id, train_id, again in zip(ids, train_ids, back, strict=True):
        assert train_id == official.id2label[label_id].trainId
        assert again == (label_id if train_id != 255 else 0)


def test_every_value_outside_the_table_is_invalid() -> None:
    """A label value that the table lacks must not pass as some class."""
    known = {row.id for row in classes.LABELS}
    assert {i for i in range(256) if classes.ID_TO_TRAIN_ID[i] == 254} == set(range(256)) - known
