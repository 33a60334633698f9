"""The label head: from logits at 1/8 to the label of every pixel, interpolating only where it matters.

On a CPU `argmax(interpolate(logits))` over 19 classes takes longer than the network itself. Bilinear interpolation is a
convex combination of the four logits around a pixel. The pixels between the same four logits form a cell:

    a . . . . . . . b      a, b, c, d: logits of all classes, about 8 pixels apart
    . o o o o o o o .      o: pixels of the cell; in the margins of a picture two or four of the logits are the same one
    . o o o o o o o .
    . o o o o o o o .      left  = a + down * (c - a)
    . o o o o o o o .      right = b + down * (d - b)
    c . . . . . . . d      value = left + across * (right - left)

- Where one class is the highest at all four corners, every pixel of the cell has that class: nothing is interpolated.
- In the other cells, about 8 % of a street scene, only a class whose highest corner reaches the best lowest corner of
  any class can win: mostly two or three classes are interpolated, in single precision.
- Where the two highest values are within rounding of each other, the pixel is decided in double precision.

The label of a pixel is therefore the class with the highest value of the interpolation in double precision, the lowest
class of equal ones; web/page/label_head.js computes the same. This file imports only torch and inference.threads.
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
# A value in single precision is off by less than half of this share of the largest corner: three interpolations round
# three times each, and their weights once, by 2**-24 of at most twice that corner.
ROUNDING = 64 * 2.0**-24


class Axis(NamedTuple):
    """Where the pixels of one axis lie: cell i is between the logits i - 1 and i.

    The first and the last cell are the margins, where both logits are the same one.
    """

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
    logits, height, width = logits.float(), size[0], size[1]
    few = logits.shape[1] <= 256
    found = []
    for image in logits:
        if image.is_cpu and few and torch.isfinite(image.amax() - image.amin()):
            found.append(_labels_of_image(image.contiguous(), height, width, align_corners))
        else:
            values = F.interpolate(image[None], (height, width), mode="bilinear", align_corners=align_corners)
            found.append(values.argmax(1)[0].to(torch.uint8 if few else torch.int64))
    return found[0][None] if len(found) == 1 else torch.stack(found)


def mixed_share(logits: Tensor) -> float:
    """Returns the share of the cells of (N, K, h, w) logits whose corners do not have the same highest class."""
    return float(torch.stack([_is_mixed(_highest(image)).float().mean() for image in logits]).mean())


def _labels_of_image(planes: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """Returns the (H, W) uint8 labels of one image's (K, h, w) logits."""
    rows = _axis(planes.shape[1], height, align_corners)
    columns = _axis(planes.shape[2], width, align_corners)
    if height < planes.shape[1] or width < planes.shape[2]:  # cells without a pixel: a small picture
        labels = torch.empty(height, width, dtype=torch.uint8)
        _decide_exactly(planes, torch.arange(height * width), rows, columns, labels)
        return labels
    highest = _highest(planes)
    corner = F.pad(highest[None].float(), (1, 0, 1, 0), mode="replicate")[0].to(torch.uint8)  # a of each cell
    labels = corner.index_select(1, columns.cell).index_select(0, rows.cell)
    mixed = _is_mixed(highest).flatten().nonzero().squeeze(1)
    for cells in mixed.split(CELLS_AT_ONCE) if len(mixed) else ():
        close = _decide_cells(planes, cells, rows, columns, labels)
        _decide_exactly(planes, close, rows, columns, labels)
    return labels


def _highest(planes: Tensor) -> Tensor:
    """Returns the highest class, the lowest of equal ones, at each of (K, h, w) logits: (h, w) uint8.

    Far faster than argmax, which reads the memory one pixel at a time.
    """
    last = len(planes) - 1
    is_highest = (planes == planes.amax(0)).view(torch.uint8)
    from_the_end = torch.arange(last, -1, -1, dtype=torch.uint8).view(-1, 1, 1)
    return last - (is_highest * from_the_end).amax(0)


def _is_mixed(highest: Tensor) -> Tensor:
    """Returns which cells have corners of different highest classes: (h, w) to (h + 1, w + 1) bool."""
    padded = F.pad(highest[None].float(), (1, 1, 1, 1), mode="replicate")[0]
    a, b, c, d = padded[:-1, :-1], padded[:-1, 1:], padded[1:, :-1], padded[1:, 1:]
    return (a != b) | (a != c) | (a != d)


@functools.lru_cache(32)
def _axis(length: int, size: int, align_corners: bool) -> Axis:
    """Lays out `size` pixels over `length` logits, as F.interpolate does."""
    index = torch.arange(size, dtype=torch.float64)
    place = index * (length - 1) / max(size - 1, 1) if align_corners else (index + 0.5) * length / size - 0.5
    first = place.floor().clamp(-1, length - 1)
    cell = first.long() + 1
    counts = torch.bincount(cell, minlength=length + 1)
    within = torch.arange(int(counts.max())).unsqueeze(1).minimum((counts - 1).clamp(min=0))
    pixels = (counts.cumsum(0) - counts + within).clamp(max=size - 1)
    return Axis(cell, place - first, pixels)


def _corners(row: Tensor, column: Tensor, height: int, width: int) -> Tensor:
    """Returns the indices of the logits a, b, c and d of M cells in a plane of (height, width) logits: (4, M)."""
    upper, lower = (row - 1).clamp(min=0) * width, row.clamp(max=height - 1) * width
    left, right = (column - 1).clamp(min=0), column.clamp(max=width - 1)
    return torch.stack([upper + left, upper + right, lower + left, lower + right])


def _interpolated(corners: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Interpolates between the logits (4, ...) of a, b, c and d; the weights broadcast with one of them."""
    a, b, c, d = corners
    left = a + down * (c - a)
    right = b + down * (d - b)
    return left + across * (right - left)


def _decide_cells(planes: Tensor, cells: Tensor, rows: Axis, columns: Axis, labels: Tensor) -> Tensor:
    """Writes the labels of mixed cells in single precision.

    Args:
        planes: (K, h, w) logits.
        cells: (M,) indices of the cells, row by row.
        rows: the vertical axis.
        columns: the horizontal axis.
        labels: (H, W), written to.

    Returns:
        The indices of the pixels whose two highest values are within rounding of each other.
    """
    classes, height, width = planes.shape
    row, column = cells.div(width + 1, rounding_mode="floor"), cells % (width + 1)
    corners = _corners(row, column, height, width)
    values = planes.flatten(1).index_select(1, corners.flatten()).unflatten(1, (4, -1))  # (K, 4, M)
    top, bottom = values.amax(1), values.amin(1)
    candidates = (top >= bottom.amax(0)).sum(0)  # (M,) classes that can win
    close, fewest = [], 0
    for count in (2, 3, 4, 8, classes):  # cells with equally many are computed together
        group = ((candidates > fewest) & (candidates <= count)).nonzero().squeeze(1)
        fewest = count
        for chosen in group.split(CANDIDATES_AT_ONCE // count) if len(group) else ():
            names = top.index_select(1, chosen).topk(min(count, classes), 0).indices  # (count, M')
            kept = planes.take(names * height * width + corners.index_select(1, chosen)[:, None])  # (4, count, M')
            y, x = rows.pixels.index_select(1, row[chosen]), columns.pixels.index_select(1, column[chosen])
            down, across = rows.weight[y].float()[:, None], columns.weight[x].float()  # (span, 1, M'), (span, M')
            best, second, label = _two_highest(
                _interpolated(kept[:, :, None, None], down, across), names.to(torch.uint8)
            )
            pixels = y[:, None] * labels.shape[1] + x
            labels.view(-1).scatter_(0, pixels.flatten(), label.flatten())  # far faster than labels[pixels] = label
            close.append(pixels[best - second <= ROUNDING * kept.abs().amax((0, 1))])
    return torch.cat(close)


def _two_highest(values: Tensor, names: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the highest value, the second highest, and the class of the highest.

    Far faster than topk or argmax, which read the memory one pixel at a time.

    Args:
        values: (count, span, span, M).
        names: (count, M), uint8.
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
        corners = _corners(rows.cell[y], columns.cell[x], *planes.shape[1:])
        values = planes.flatten(1)[:, corners].double().transpose(0, 1)  # (4, K, P)
        values = _interpolated(values, rows.weight[y], columns.weight[x])
        labels.view(-1)[some] = values.argmax(0).to(torch.uint8)
