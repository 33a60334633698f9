"""The label head against interpolation and argmax."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from makers import make_logits
from torch.nn import functional as F

from inference import label_head
from inference.label_head import labels_from_logits, mixed_share


def wrong_pixels(logits: torch.Tensor, size: tuple[int, int], align_corners: bool) -> int:
    """Counts pixels with another label than the naive form's, but for exact ties of its two highest values."""
    values = F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
    labels = labels_from_logits(logits, size, align_corners)
    assert labels.dtype == torch.uint8 and labels.shape == (len(logits), *size)
    different = labels != values.argmax(1)
    if values.shape[1] > 1:
        highest = values.topk(2, 1).values
        different &= highest[:, 0] != highest[:, 1]
    return int(different.sum())


@settings(max_examples=80, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(1, 2),
    classes=st.integers(1, 24),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    down=st.integers(1, 9),
    across=st.integers(1, 9),
    rest=st.tuples(*2 * [st.integers(0, 8)]),
    align_corners=st.booleans(),
    channels_last=st.booleans(),
    kind=st.sampled_from(["noise", "blobs", "ties", "near ties", "equal classes"]),
)
def test_labels_are_those_of_interpolation(
    seed, count, classes, height, width, down, across, rest, align_corners, channels_last, kind
) -> None:
    """Any size, ratio, class count and layout; wherever the two highest values differ, the label must be the same."""
    logits = make_logits(seed, (count, classes, height, width), kind)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    assert wrong_pixels(logits, (height * down + rest[0], width * across + rest[1]), align_corners) == 0


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("kind", ["noise", "blobs", "near ties", "equal classes"])
@pytest.mark.parametrize("size", [(360, 480), (256, 640), (512, 1024), (256, 720), (250, 630)])
def test_labels_of_whole_pictures(size, kind: str, align_corners: bool) -> None:
    """Near-ties settled by the wrong values: few of them at their pixels, many in the whole map."""
    logits = make_logits(3, (1, 19, (size[0] + 7) // 8, (size[1] + 7) // 8), kind)
    assert wrong_pixels(logits, size, align_corners) == 0


def test_near_ties_are_asked_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above must have reached the code that settles near-ties, or they would say nothing about it."""
    settled = []
    original = label_head._settle
    monkeypatch.setattr(label_head, "_settle", lambda *args: (settled.append(len(args[1])), original(*args)))
    logits = make_logits(0, (1, 19, 32, 80), "near ties")
    assert wrong_pixels(logits, (256, 640), False) == 0 and sum(settled) > 0


@pytest.mark.parametrize(
    ("shape", "size"),
    [((64, 128), (512, 1024)), ((72, 128), (1080, 1920)), ((96, 72), (800, 601)), ((64, 128), (700, 1333))],
)
def test_few_near_ties_are_settled_without_the_whole_picture(shape, size, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding other than torch's: a wrong label at a pixel or two; or a whole picture interpolated for these."""
    sizes, settled = [], []
    original, settle = label_head._interpolated, label_head._settle
    monkeypatch.setattr(label_head, "_interpolated", lambda *args: (sizes.append(tuple(args[1])), original(*args))[1])
    monkeypatch.setattr(label_head, "_settle", lambda *args: (settled.append(len(args[1])), settle(*args)))
    for seed in range(3):
        assert wrong_pixels(make_logits(seed, (1, 19, *shape), "noise"), size, False) == 0
    assert settled and (size not in sizes) == label_head._rounding_is_known(19)


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("kind", ["noise", "ties"])
@pytest.mark.parametrize(("count", "classes"), [(1, 1), (2, 2), (2, 3), (3, 4), (2, 24)])
def test_labels_of_wide_pictures(count: int, classes: int, kind: str, align_corners: bool) -> None:
    """Batches and numbers of classes, three among them, where near-ties may be settled at their pixels."""
    logits = make_logits(7, (count, classes, 9, 31), kind)
    assert wrong_pixels(logits, (150, 431), align_corners) == 0


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("classes", [1, 2, 3, 4, 19, 256])
def test_rounding_is_that_of_torch_where_it_is_said_to_be_known(classes: int, align_corners: bool) -> None:
    """Pixels at the margins, maps and factors unlike the one that is tried, in bits; torch has other code for three."""
    if not label_head._rounding_is_known(classes):
        assert classes == 3 or torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512")
        pytest.skip("torch rounds in another way here")
    for (height, width), size in (((45, 96), (601, 1333)), ((128, 72), (1280, 720)), ((33, 64), (33 * 31, 64 * 31))):
        logits = make_logits(classes, (1, classes, height, width), "noise")
        rows, columns = (
            label_head._axis(length, number, align_corners)
            for length, number in zip((height, width), size, strict=True)
        )
        y = torch.tensor([0, 1, size[0] // 2, size[0] - 2, size[0] - 1]).repeat_interleave(size[1])
        x = torch.arange(size[1]).repeat(5)
        found = label_head._interpolated_at(logits[0], y, x, rows.exact, columns.exact)
        expected = F.interpolate(logits, size, mode="bilinear", align_corners=align_corners)
        assert torch.equal(found, expected[0][:, y, x])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_do_as_interpolation_does(value: float) -> None:
    """A bound on the corners says nothing where one of them is not a number."""
    logits = make_logits(0, (1, 5, 6, 7), "noise")
    logits[0, 2, 3, 3] = value
    naive = F.interpolate(logits, (48, 56), mode="bilinear").argmax(1)
    assert torch.equal(labels_from_logits(logits, (48, 56)).long(), naive)


def test_many_classes_and_smaller_pictures() -> None:
    """More classes than a byte holds, and a size below that of the logits."""
    logits = make_logits(0, (1, 300, 4, 5), "noise")
    assert torch.equal(labels_from_logits(logits, (16, 20)), F.interpolate(logits, (16, 20), mode="bilinear").argmax(1))
    assert wrong_pixels(make_logits(0, (1, 5, 9, 9), "noise"), (6, 20), False) == 0


def test_mixed_share_counts_cells() -> None:
    """A wrong share of mixed cells, which the benchmark prints with the time of the label head."""
    logits = torch.zeros(1, 2, 4, 4)
    assert mixed_share(logits) == 0
    logits[:, 1, :, 2:] = 1  # of the five columns of cells the middle one is mixed
    assert mixed_share(logits) == pytest.approx(0.2)
