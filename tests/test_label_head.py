"""The label head against plain interpolation in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import make_logits
from torch.nn import functional as F

from inference import label_head
from inference.label_head import labels_from_logits, mixed_share

KINDS = ["noise", "blobs", "ties", "near ties", "equal classes"]


def neighbours(length: int, size: int, align_corners: bool) -> tuple[list[int], list[int], torch.Tensor]:
    """For each of `size` pixels over `length` logits: the logit before, the logit behind, the weight of the latter."""
    if align_corners:
        places = [i * (length - 1) / max(size - 1, 1) for i in range(size)]
    else:
        places = [(i + 0.5) * length / size - 0.5 for i in range(size)]
    before = [max(math.floor(place), 0) for place in places]
    behind = [min(math.floor(place) + 1, length - 1) for place in places]
    return before, behind, torch.tensor([place - math.floor(place) for place in places], dtype=torch.float64)


def naive_labels(logits: torch.Tensor, size: tuple[int, int], align_corners: bool) -> torch.Tensor:
    """The definition: interpolate all classes of all pixels in double precision, take the first highest."""
    upper, lower, down = neighbours(logits.shape[2], size[0], align_corners)
    before, behind, across = neighbours(logits.shape[3], size[1], align_corners)
    top, bottom = logits.double()[:, :, upper], logits.double()[:, :, lower]
    left = top[..., before] + down[:, None] * (bottom[..., before] - top[..., before])
    right = top[..., behind] + down[:, None] * (bottom[..., behind] - top[..., behind])
    return (left + across * (right - left)).argmax(1)


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 2),
    classes=st.integers(1, 24),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    down=st.integers(0, 9),
    across=st.integers(0, 9),
    rest=st.tuples(*2 * [st.integers(1, 9)]),
    align_corners=st.booleans(),
    channels_last=st.booleans(),
    kind=st.sampled_from(KINDS),
)
def test_labels_are_those_of_interpolation(
    seed, count, classes, height, width, down, across, rest, align_corners, channels_last, kind
) -> None:
    """Any size, smaller ones too, any ratio, class count and layout; near-ties and ties too."""
    logits = make_logits(seed, (count, classes, height, width), kind)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    size = (height * down + rest[0], width * across + rest[1])
    labels = labels_from_logits(logits, size, align_corners)
    assert labels.dtype == torch.uint8 and labels.shape == (count, *size)
    assert torch.equal(labels.long(), naive_labels(logits, size, align_corners))


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(360, 480), (256, 640), (250, 630)])
def test_labels_of_whole_pictures(size, kind: str, align_corners: bool) -> None:
    """Near-ties decided by the wrong values; labels that are not those of torch where two values clearly differ."""
    logits = make_logits(3, (1, 19, (size[0] + 7) // 8, (size[1] + 7) // 8), kind)
    labels = labels_from_logits(logits, size, align_corners).long()
    assert torch.equal(labels, naive_labels(logits, size, align_corners))
    values = F.interpolate(logits.double(), size, mode="bilinear", align_corners=align_corners)
    first, second = values.topk(2, 1).values.unbind(1)
    differ = first - second > 1e-6 * logits.abs().max()
    assert differ.any() or kind == "equal classes"
    assert torch.equal(labels[differ], values.argmax(1)[differ])


@pytest.mark.parametrize(("size", "align_corners"), [((60, 90), False), ((58, 88), True)])
def test_equal_values_that_round_to_unequal_ones(size, align_corners: bool) -> None:
    """An order of operations that is not the one of the definition, which the page follows too."""
    logits = make_logits(97, (1, 19, 20, 30), "ties")  # the weights are thirds
    labels = labels_from_logits(logits, size, align_corners).long()
    assert torch.equal(labels, naive_labels(logits, size, align_corners))


@pytest.mark.parametrize("cells", [1, 64])
def test_labels_do_not_depend_on_the_pieces(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels that are lost between two pieces of the mixed cells."""
    logits = make_logits(5, (1, 19, 24, 40), "noise")
    monkeypatch.setattr(label_head, "CELLS_AT_ONCE", cells)
    monkeypatch.setattr(label_head, "CANDIDATES_AT_ONCE", 19 * cells)
    assert torch.equal(labels_from_logits(logits, (190, 315)).long(), naive_labels(logits, (190, 315), False))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_do_as_interpolation_does(value: float) -> None:
    """A bound on the corners says nothing where one of them is not a number."""
    logits = make_logits(0, (1, 5, 6, 7), "noise")
    logits[0, 2, 3, 3] = value
    naive = F.interpolate(logits, (48, 56), mode="bilinear").argmax(1)
    assert torch.equal(labels_from_logits(logits, (48, 56)).long(), naive)


def test_more_classes_than_a_byte_holds() -> None:
    """Labels of 300 classes modulo 256."""
    logits = make_logits(0, (1, 300, 4, 5), "noise")
    assert torch.equal(labels_from_logits(logits, (16, 20)), F.interpolate(logits, (16, 20), mode="bilinear").argmax(1))


def test_mixed_share_counts_cells() -> None:
    """A wrong share of mixed cells, which the benchmark prints with the time of the label head."""
    logits = torch.zeros(1, 2, 4, 4)
    assert mixed_share(logits) == 0
    logits[:, 1, :, 2:] = 1  # of the five columns of cells the middle one is mixed
    assert mixed_share(logits) == pytest.approx(0.2)
