"""The label head: from logits at 1/8 to the label of every pixel, interpolating only where it matters.

On a CPU `argmax(interpolate(logits))` over 19 classes takes longer than the network itself. Between the centres of four
neighbouring logits (a cell, about 8x8 pixels) bilinear interpolation is a convex combination of the four. Therefore

- where all four corners have the same highest class, every pixel of the cell has it too;
- elsewhere only a class whose highest corner reaches the best lowest corner of any class can win: mostly two or three;
- where two classes are within rounding errors of each other, the values of torch's own interpolation decide, computed
  for these pixels alone where its rounding is known.

On a street scene about 8 % of the cells are mixed. This file imports only torch and inference.threads.
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
# Two ways to compute the same sum of four products differ by less than this share of the largest corner: each rounds at
# most seven times, by 2**-24.
ROUNDING = 16 * 2.0**-24
FEW = 8  # pixels to settle are few if they are fewer than one in so many
WIDE = 128  # torch interpolates to smaller pictures by another loop, which rounds in another order


class Axis(NamedTuple):
    """Where the pixels of one axis lie: cell i is between the logits i - 1 and i.

    The first and the last cell are the margins, where both logits are the same one.
    """

    cell: Tensor  #   (size,) the cell of each pixel
    pixels: Tensor  # (span, cells) the pixels of each cell; a cell with fewer than span repeats its last
    weight: Tensor  # (span, cells) the weight of the second logit for each pixel
    exact: tuple[Tensor, Tensor] | None  # (size,) cell and weight of each pixel, as torch rounds them; None: unknown


@half_of_the_threads()
def labels_from_logits(logits: Tensor, size: Sequence[int], align_corners: bool = False) -> Tensor:
    """Returns the class with the highest logit, after bilinear interpolation, of each pixel.

    Equals `F.interpolate(logits.float(), size, mode="bilinear", align_corners=align_corners).argmax(1)` wherever the
    two highest interpolated values differ; where they are equal, the label is one of the two classes.

    Args:
        logits: (N, K, h, w).
        size: (H, W), at least (h, w).
        align_corners: as for interpolate.

    Returns:
        (N, H, W), uint8; int64 for more than 256 classes.
    """
    logits = logits.float()
    few = logits.shape[1] <= 256
    if not logits.is_cpu or not few or size[0] < logits.shape[-2] or size[1] < logits.shape[-1]:
        labels = torch.stack([_interpolated(image, size, align_corners).argmax(1)[0] for image in logits.split(1)])
        return labels.to(torch.uint8) if few else labels
    found = [_labels_of_image(image, (size[0], size[1]), align_corners) for image in logits.split(1)]
    return found[0][None] if len(found) == 1 else torch.stack(found)


def mixed_share(logits: Tensor) -> float:
    """Returns the share of the cells of (N, K, h, w) logits whose corners do not have the same highest class."""
    classes = F.pad(logits.argmax(1, keepdim=True).float(), (1, 1, 1, 1), mode="replicate")
    return 1 - float(_agree(classes[:, 0]).float().mean())


def _interpolated(logits: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=align_corners)


def _agree(classes: Tensor) -> Tensor:
    """Returns which cells of the (..., h + 2, w + 2) padded classes have four equal corners: (..., h + 1, w + 1)."""
    corner = classes[..., :-1, :-1]
    return (corner == classes[..., 1:, :-1]) & (corner == classes[..., :-1, 1:]) & (corner == classes[..., 1:, 1:])


@functools.cache
def _rounding_is_known(classes: int) -> bool:
    """Returns whether _interpolated_at gives, to the last bit, what this build of torch does for so many classes."""
    height, width = WIDE // 2 + 2, WIDE // 2 + 7
    logits = torch.rand(1, classes, height, width, generator=torch.Generator().manual_seed(0)) - 0.5
    size = WIDE + 3, 3 * WIDE // 2
    rows, columns = _axis(height, size[0], False), _axis(width, size[1], False)
    if rows.exact is None or columns.exact is None:
        return False
    y, x = (grid.flatten() for grid in torch.meshgrid(*map(torch.arange, size), indexing="ij"))
    found = _interpolated_at(logits[0], y, x, rows.exact, columns.exact)
    return torch.equal(found, _interpolated(logits, size, False)[0].flatten(1))


@functools.lru_cache(32)
def _axis(length: int, size: int, align_corners: bool) -> Axis:
    """Lays out one axis; the weights come from interpolate, as their rounding depends on how it was compiled."""
    odd = torch.arange(length).remainder(2).float()
    patterns = torch.stack([1 - odd, odd]).reshape(1, 2, 1, length)
    even_weight, odd_weight = F.interpolate(patterns, (1, size), mode="bilinear", align_corners=align_corners)[0, :, 0]
    index = torch.arange(size, dtype=torch.float64)
    step = (length - 1) / max(size - 1, 1) if align_corners else length / size
    place = index * step if align_corners else (index + 0.5) * step - 0.5
    first = place.floor().long().clamp(-1, length - 1)
    second = (first + 1).clamp(max=length - 1)
    weight = torch.where(second % 2 == 1, odd_weight, even_weight)
    weight = torch.where((first < 0) | (first == second), 0.0, weight)
    cell = first + 1
    counts = torch.bincount(cell, minlength=length + 1)
    within = torch.arange(int(counts.max())).unsqueeze(1).minimum((counts - 1).clamp(min=0))
    pixels = (counts.cumsum(0) - counts + within).clamp(max=size - 1)
    exact = _exact_weights(length, size, align_corners, even_weight, odd_weight)
    return Axis(cell, pixels, weight[pixels], exact)


def _exact_weights(
    length: int, size: int, align_corners: bool, even_weight: Tensor, odd_weight: Tensor
) -> tuple[Tensor, Tensor] | None:
    """Returns Axis.exact: with fused multiply-add or without, whichever gives the weights that torch showed."""
    step = torch.tensor(length - 1.0) / max(size - 1, 1) if align_corners else torch.tensor(float(length)) / size
    shift = 0.0 if align_corners else 0.5
    index = torch.arange(size) + shift
    for place in ((step.double() * index.double() - shift).float(), step * index - shift):
        first = place.clamp(min=0).long().clamp(max=length - 1)
        weight = (place.clamp(min=0) - first).clamp(max=1)
        second = first + 1
        shown = torch.where(second % 2 == 1, odd_weight, even_weight)
        if torch.equal(weight[second < length], shown[second < length]):
            return second, weight
    return None


def _labels_of_image(logits: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """Returns the (H, W) uint8 labels of one image's (1, K, h, w) logits."""
    _, classes, height, width = logits.shape
    planes = logits[0].contiguous()
    low, high = planes.aminmax()
    if not torch.isfinite(high - low):
        return _interpolated(logits, size, align_corners).argmax(1)[0].to(torch.uint8)
    rows, columns = _axis(height, size[0], align_corners), _axis(width, size[1], align_corners)
    near = (planes >= planes.amax(0) - ROUNDING * torch.maximum(high, -low)).view(torch.uint8)
    number = torch.arange(classes, dtype=torch.uint8).view(-1, 1, 1)
    label = (near * number).amax(0)  # the last of the classes within rounding of the highest
    first = (classes - 1) - (near * number.flip(0)).amax(0)
    seen = label.float().masked_fill_(label != first, torch.nan)  # nan equals nothing: its cells are mixed
    mixed = (~_agree(F.pad(seen[None], (1, 1, 1, 1), mode="replicate")[0])).flatten().nonzero().squeeze(1)
    corner = F.pad(label[None].float(), (1, 0, 1, 0), mode="replicate")[0].to(torch.uint8)
    labels = corner.index_select(1, columns.cell).index_select(0, rows.cell)
    if len(mixed):
        chunks = mixed.split(CELLS_AT_ONCE)
        doubtful = torch.cat([_mixed_cells(planes.flatten(1), cells, rows, columns, labels) for cells in chunks])
        if len(doubtful):
            _settle(logits, doubtful, rows, columns, labels, align_corners)
    return labels


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


def _mixed_cells(planes: Tensor, cells: Tensor, rows: Axis, columns: Axis, labels: Tensor) -> Tensor:
    """Writes the labels of mixed cells.

    Args:
        planes: (K, h * w) logits.
        cells: (M,) indices of the cells, row by row.
        rows: the vertical axis.
        columns: the horizontal axis.
        labels: (H, W), written to.

    Returns:
        The indices of the pixels whose two highest values are within rounding of each other.
    """
    row, column = cells.div(columns.pixels.shape[1], rounding_mode="floor"), cells % columns.pixels.shape[1]
    places = _places(row, column, rows.pixels.shape[1] - 1, columns.pixels.shape[1] - 1)
    top, possible = _may_win(planes, places)
    candidates = possible.sum(0)  # (M,)
    flat, doubtful = labels.view(-1), []
    fewest = 0
    for count in (2, 3, 4, 8, len(planes)):
        group = ((candidates > fewest) & (candidates <= count)).nonzero().squeeze(1)
        fewest = count
        for chosen in group.split(CANDIDATES_AT_ONCE // count) if len(group) else ():
            names = top.index_select(1, chosen).topk(min(count, len(planes)), 0).indices  # (count, M')
            kept = planes.take(names * planes.shape[1] + places.index_select(1, chosen)[:, None])  # (4, count, M')
            y, x = row[chosen], column[chosen]
            pixels = rows.pixels.index_select(1, y)[:, None] * labels.shape[1] + columns.pixels.index_select(1, x)
            values = _blend(kept, rows.weight.index_select(1, y)[:, None], columns.weight.index_select(1, x))
            best, second, label = _two_highest(values, names.to(torch.uint8))
            flat.scatter_(0, pixels.flatten(), label.flatten())  # far faster than flat[pixels] = label
            close = best - second <= ROUNDING * kept.abs().amax((0, 1))
            doubtful.append(pixels[close])
    return torch.cat(doubtful)


def _places(row: Tensor, column: Tensor, height: int, width: int) -> Tensor:
    """Returns the indices of the cells' corners, (4, M): upper left, upper right, lower left, lower right."""
    upper, lower = (row - 1).clamp(min=0) * width, row.clamp(max=height - 1) * width
    left, right = (column - 1).clamp(min=0), column.clamp(max=width - 1)
    return torch.stack([y + x for y in (upper, lower) for x in (left, right)])


def _may_win(planes: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the highest corner of each class, and which classes can be the highest somewhere in a cell: (K, M)."""
    corners = planes.index_select(1, places.flatten()).unflatten(1, (4, -1))  # (K, 4, M)
    top, bottom = corners.amax(1), corners.amin(1)
    largest = torch.maximum(top.amax(0), -bottom.amin(0))
    return top, top >= bottom.amax(0) - ROUNDING * largest


def _blend(corners: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Interpolates (4, K, M) corners to (K, span, span, M); the weights are (span, 1, M) and (span, M)."""
    upper_left, upper_right, lower_left, lower_right = corners[:, :, None, None]
    left = torch.addcmul(upper_left, down, lower_left - upper_left)
    right = torch.addcmul(upper_right, down, lower_right - upper_right)
    return torch.addcmul(left, across, right - left)


def _settle(logits: Tensor, pixels: Tensor, rows: Axis, columns: Axis, labels: Tensor, align_corners: bool) -> None:
    """Writes the labels of the pixels that are too close to tell, by the values of torch's own interpolation."""
    known = rows.exact is not None and columns.exact is not None and _rounding_is_known(len(logits[0]))
    # In channels_last torch runs another loop, which rounds in another way.
    if known and logits.is_contiguous() and labels.shape[1] >= WIDE and FEW * len(pixels) < labels.numel():
        # For ten pixels of a photograph of 3000x4000, interpolating it whole takes 250 ms, the rest of this file 40.
        for some in pixels.split(CANDIDATES_AT_ONCE):
            y, x = some.div(labels.shape[1], rounding_mode="floor"), some % labels.shape[1]
            values = _interpolated_at(logits[0], y, x, rows.exact, columns.exact)
            labels.view(-1)[some] = values.argmax(0).to(torch.uint8)
    else:
        values = _interpolated(logits, labels.shape, align_corners)[0].flatten(1)[:, pixels]
        labels.view(-1)[pixels] = values.argmax(0).to(torch.uint8)


def _interpolated_at(
    planes: Tensor, y: Tensor, x: Tensor, rows: tuple[Tensor, Tensor], columns: tuple[Tensor, Tensor]
) -> Tensor:
    """Returns what torch interpolates for P pixels, (K, P), rounded as with its fused multiply-add.

    Args:
        planes: (K, h, w) logits.
        y: (P,) rows of the pixels.
        x: (P,) columns of the pixels.
        rows: Axis.exact of the vertical axis.
        columns: of the horizontal one.
    """

    def sum_of_products(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
        return (a.double() * b + c * d).float()  # only c * d is rounded by itself

    places = _places(rows[0][y], columns[0][x], *planes.shape[1:])
    upper_left, upper_right, lower_left, lower_right = planes.flatten(1)[:, places].unbind(1)
    down, across = rows[1][y], columns[1][x]
    upper = sum_of_products(1 - across, upper_left, across, upper_right)
    lower = sum_of_products(1 - across, lower_left, across, lower_right)
    return sum_of_products(1 - down, upper, down, lower)
