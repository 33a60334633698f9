"""The label head: from logits at 1/8 to the label of every pixel, interpolating only where it matters.

The label of a pixel is the class with the highest value of the bilinear interpolation of the float32 logits, computed
in double precision; the lowest of equal ones. web/page/label_head.js gives the same labels.

On a CPU `argmax(interpolate(logits))` over 19 classes takes longer than the network itself. Bilinear interpolation is a
convex combination of four logits. The pixels between the same four logits form a cell:

    a . . . . . . . b      a, b, c, d: the logits of one class, about 8 pixels apart
    . o o o o o o o .      o: the pixels of the cell
    . o o o o o o o .
    . o o o o o o o .      left  = a + down * (c - a)
    . o o o o o o o .      right = b + down * (d - b)
    c . . . . . . . d      value = left + across * (right - left)

1. The logits at the borders are repeated once, because the pixels in the margins of a picture need four corners too.
2. Where one class is the highest at all four corners, every pixel of the cell has that class: nothing is interpolated.
3. In the other cells, about 8 % of a street scene, only a class whose highest corner reaches the best lowest corner of
   any class can win. These candidates, mostly two or three, are interpolated in single precision.
4. Where the two highest values are within rounding of each other, all classes are interpolated in double precision.

This file imports only torch and inference.threads.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from inference.threads import half_of_the_threads

# Both bound the memory, and keep what is interpolated at once in the processor's cache.
CELLS_AT_ONCE = 8192
CANDIDATES_AT_ONCE = 16384
# Twice what a value in single precision can be off by, as a share of the largest corner: two interpolations, one after
# the other, each round four times, the weight included, by 2**-24 of at most twice that corner.
ROUNDING = 32 * 2.0**-24


class Axis(NamedTuple):
    """Where the pixels of one axis lie: cell i is between the padded logits i and i + 1."""

    cell: Tensor  #   (size,) the cell of each pixel
    weight: Tensor  # (size,) float64, the weight of the second logit for each pixel
    pixels: Tensor  # (span, cells) the pixels of each cell; a cell with fewer than span repeats its last


@half_of_the_threads()
def labels_from_logits(logits: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Returns the class with the highest logit, after bilinear interpolation, of each pixel.

    On a CPU it is the highest in double precision, and the lowest class of equal ones. On other devices, for more than
    256 classes and for logits that are not finite, it is `F.interpolate(...).argmax(1)` in single precision.

    Args:
        logits: (N, K, h, w).
        size: (H, W).
        align_corners: as for torch.nn.functional.interpolate.

    Returns:
        (N, H, W), uint8; int64 for more than 256 classes.
    """
    height, width = size
    few = logits.shape[1] <= 256
    found = []
    for image in logits.float().split(1):
        if image.is_cpu and few and torch.isfinite(image.amax() - image.amin()):
            found.append(_labels_of_image(image, height, width, align_corners))
        else:
            values = F.interpolate(image, (height, width), mode="bilinear", align_corners=align_corners)
            found.append(values.argmax(1).to(torch.uint8 if few else torch.int64))
    return found[0] if len(found) == 1 else torch.cat(found)


def mixed_share(logits: Tensor) -> float:
    """Returns the share of the cells of (N, K, h, w) logits whose corners do not have the same highest class."""
    return float(torch.stack([_is_mixed(_highest(_padded(image))).float().mean() for image in logits.split(1)]).mean())


def _labels_of_image(logits: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """Returns the (1, H, W) uint8 labels of one image's (1, K, h, w) logits."""
    rows = _axis(logits.shape[2], height, align_corners)
    columns = _axis(logits.shape[3], width, align_corners)
    planes = _padded(logits)
    if height < logits.shape[2] or width < logits.shape[3]:  # cells without a pixel
        labels = torch.empty(height, width, dtype=torch.uint8)
        _decide_exactly(planes, torch.arange(height * width), rows, columns, labels)
        return labels[None]
    highest = _highest(planes)
    labels = highest.index_select(1, columns.cell).index_select(0, rows.cell)
    mixed = _is_mixed(highest).nonzero()
    for cells in mixed.split(CELLS_AT_ONCE) if len(mixed) else ():
        close = _decide_cells(planes, *cells.unbind(1), rows, columns, labels)
        _decide_exactly(planes, close, rows, columns, labels)
    return labels[None]


def _padded(logits: Tensor) -> Tensor:
    """Returns one image's (1, K, h, w) logits with each border repeated once: (K, h + 2, w + 2), contiguous."""
    return F.pad(logits, (1, 1, 1, 1), mode="replicate")[0].contiguous()


def _highest(planes: Tensor) -> Tensor:
    """Returns the highest class, the lowest of equal ones, at each of (K, h, w) logits: (h, w) uint8.

    Far faster than argmax, which reads the memory one pixel at a time.
    """
    last = len(planes) - 1
    is_highest = (planes == planes.amax(0)).view(torch.uint8)
    from_the_end = torch.arange(last, -1, -1, dtype=torch.uint8).view(-1, 1, 1)
    return last - (is_highest * from_the_end).amax(0)


def _is_mixed(highest: Tensor) -> Tensor:
    """Returns which cells have corners of different highest classes: (h + 2, w + 2) to (h + 1, w + 1) bool."""
    a, b, c, d = highest[:-1, :-1], highest[:-1, 1:], highest[1:, :-1], highest[1:, 1:]
    return (a != b) | (a != c) | (a != d)


@functools.lru_cache(32)
def _axis(length: int, size: int, align_corners: bool) -> Axis:
    """Lays out `size` pixels over `length` logits, as F.interpolate does."""
    index = torch.arange(size, dtype=torch.float64)
    place = index * (length - 1) / max(size - 1, 1) if align_corners else (index + 0.5) * length / size - 0.5
    first = place.floor()
    cell = first.long() + 1
    counts = torch.bincount(cell, minlength=length + 1)
    within = torch.arange(int(counts.max())).unsqueeze(1).minimum((counts - 1).clamp(min=0))
    pixels = (counts.cumsum(0) - counts + within).clamp(max=size - 1)
    return Axis(cell, place - first, pixels)


def _corners(row: Tensor, column: Tensor, width: int) -> Tensor:
    """Returns the indices of the logits a, b, c and d of M cells in a plane of `width` logits a row: (4, M)."""
    a = row * width + column
    return torch.stack([a, a + 1, a + width, a + width + 1])


def _decide_cells(planes: Tensor, row: Tensor, column: Tensor, rows: Axis, columns: Axis, labels: Tensor) -> Tensor:
    """Writes the labels of M mixed cells in single precision.

    Takes (K, h + 2, w + 2) padded logits, the (M,) rows and columns of the cells, both axes, and the (H, W) labels.
    Returns the indices of the pixels whose two highest values are within rounding of each other.
    """
    planes, corners = planes.flatten(1), _corners(row, column, planes.shape[2])
    values = planes.index_select(1, corners.flatten()).unflatten(1, (4, -1))  # (K, 4, M)
    top, bottom = values.amax(1), values.amin(1)
    candidates = (top >= bottom.amax(0)).sum(0)  # (M,) classes that can win
    weights_down, weights_across = rows.weight.float()[rows.pixels], columns.weight.float()[columns.pixels]
    close, fewest = [], 0
    for count in (2, 3, 4, 8, len(planes)):  # cells with equally many are computed together
        group = ((candidates > fewest) & (candidates <= count)).nonzero().squeeze(1)
        fewest = count
        for chosen in group.split(CANDIDATES_AT_ONCE // count) if len(group) else ():
            names = top.index_select(1, chosen).topk(min(count, len(planes)), 0).indices  # (count, M')
            kept = planes.take(names * planes.shape[1] + corners.index_select(1, chosen)[:, None])  # (4, count, M')
            y, x = row[chosen], column[chosen]
            down, across = weights_down.index_select(1, y)[:, None], weights_across.index_select(1, x)
            a, b, c, d = kept[:, :, None, None]
            values = torch.lerp(torch.lerp(a, c, down), torch.lerp(b, d, down), across)  # (count, span, span, M')
            best, second, label = _two_highest(values, names.to(torch.uint8))
            pixels = rows.pixels.index_select(1, y)[:, None] * labels.shape[1] + columns.pixels.index_select(1, x)
            labels.view(-1).scatter_(0, pixels.flatten(), label.flatten())  # far faster than labels[pixels] = label
            close.append(pixels[best - second <= ROUNDING * kept.abs().amax((0, 1))])
    return torch.cat(close)


def _two_highest(values: Tensor, names: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the highest and the second highest of (count, span, span, M) values, and the name of the highest.

    The names are (count, M). Far faster than topk or argmax, which read the memory one pixel at a time.
    """
    best, label = values[0], names[0].expand(values.shape[1:])
    second = torch.full_like(best, -torch.inf)
    for value, name in zip(values[1:], names[1:], strict=True):
        label = torch.where(value > best, name, label)
        second = torch.maximum(second, torch.minimum(best, value))
        best = torch.maximum(best, value)
    return best, second, label


def _decide_exactly(planes: Tensor, pixels: Tensor, rows: Axis, columns: Axis, labels: Tensor) -> None:
    """Writes the labels of P pixels in double precision, with all classes; arguments as for _decide_cells."""
    for some in pixels.split(CANDIDATES_AT_ONCE) if len(pixels) else ():
        y, x = some.div(labels.shape[1], rounding_mode="floor"), some % labels.shape[1]
        corners = _corners(rows.cell[y], columns.cell[x], planes.shape[2])
        a, b, c, d = planes.flatten(1)[:, corners].double().unbind(1)  # (K, P)
        left = a + rows.weight[y] * (c - a)  # not by lerp, because label_head.js has to give the same labels
        right = b + rows.weight[y] * (d - b)
        values = left + columns.weight[x] * (right - left)
        labels.view(-1)[some] = values.argmax(0).to(torch.uint8)
