"""What a prediction looks like: panels side by side or blended, and the legend. All pictures are uint8 RGB."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from dataset import CLASSES, NUM_CLASSES, PALETTE

LEGEND_ROW = 22  # pixels
OPACITY = 0.55  # of the colors over the picture
ALL_CLASSES = tuple(range(NUM_CLASSES))


def draw_result(
    image: np.ndarray,
    label: np.ndarray | None,
    prediction: np.ndarray,
    overlay: bool = False,
    width: int | None = None,
    legend: tuple[int, ...] | None = None,
) -> np.ndarray:
    """Returns the picture to look at, with a legend below it.

    Everything is brought to the size of the output before it is colored, so that a frame that is shown small costs
    little.

    Args:
        image: (H, W, 3) uint8 RGB.
        label: (H, W) train ids, or None where there is no ground truth.
        prediction: (H, W) train ids.
        overlay: blend the prediction into the picture; else picture | ground truth | prediction.
        width: most that the result may be wide, all panels together; it is never enlarged.
        legend: the train ids to name, () for no legend; None: those that occur.
    """
    maps = [prediction] if label is None or overlay else [label, prediction]
    count = 1 if overlay else 1 + len(maps)
    full_h, full_w = prediction.shape
    panel_w = min(full_w, max(1, width // count)) if width else full_w
    size = (panel_w, max(1, round(full_h * panel_w / full_w)))
    strip = draw_legend(occurring(maps) if legend is None else legend, count * panel_w)
    canvas = np.empty((size[1] + len(strip), count * panel_w, 3), np.uint8)
    canvas[size[1] :] = strip
    panels = [canvas[: size[1], panel_w * i : panel_w * (i + 1)] for i in range(count)]
    shown = shrink(image, size)
    small = [resize_labels(part, size) for part in maps]
    if overlay:
        blend(shown, small[0], panels[0])
    else:
        panels[0][:] = shown
        for part, panel in zip(small, panels[1:], strict=True):
            color(part, panel)
    return canvas


def color(train_ids: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Returns PALETTE[train_ids], ten times as fast."""
    return cv2.applyColorMap(train_ids, PALETTE[:, None], out)


def blend(image: np.ndarray, prediction: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Returns the picture with the class colors laid over it."""
    return cv2.addWeighted(image, 1 - OPACITY, color(prediction), OPACITY, 0, out)


def shrink(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the picture at a size, given as (width, height), without the steps that plain interpolation leaves.

    Halving by the mean of four pixels is cheap; area interpolation by any other factor costs ten times as much.
    """
    while image.shape[1] >= 2 * size[0] and image.shape[0] >= 2 * size[1]:
        image = cv2.resize(image, (image.shape[1] // 2, image.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return image if image.shape[1::-1] == size else cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)


def resize_labels(train_ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns a map of train ids at a size, given as (width, height)."""
    if train_ids.shape[::-1] == size:
        return train_ids
    return cv2.resize(train_ids, size, interpolation=cv2.INTER_NEAREST_EXACT)


def occurring(maps: list[np.ndarray]) -> tuple[int, ...]:
    """Returns the train ids, without the ignored one, that occur in any of some maps."""
    counts = sum(cv2.calcHist([part], [0], None, [256], [0, 256]).ravel() for part in maps)
    return tuple(int(i) for i in np.flatnonzero(counts[:NUM_CLASSES]))


@functools.lru_cache(maxsize=16)
def draw_legend(train_ids: tuple[int, ...], width: int) -> np.ndarray:
    """Returns a white strip, `width` pixels wide, with a patch of color and the name of each class.

    Without classes it has no rows. It is drawn once: don't write to it.
    """
    if not train_ids:
        return np.empty((0, width, 3), np.uint8)
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    patch, gap = 16, 6
    places, x, row = [], gap, 0
    for train_id in train_ids:
        needed = patch + 2 * gap + cv2.getTextSize(CLASSES[train_id].name, font, scale, 1)[0][0] + gap
        if x + needed > width and x > gap:
            x, row = gap, row + 1
        places.append((train_id, x, row * LEGEND_ROW))
        x += needed
    strip = np.full(((row + 1) * LEGEND_ROW, width, 3), 255, np.uint8)
    for train_id, x, y in places:
        cv2.rectangle(strip, (x, y + 4), (x + patch, y + LEGEND_ROW - 4), CLASSES[train_id].color, cv2.FILLED)
        cv2.putText(
            strip, CLASSES[train_id].name, (x + patch + gap, y + LEGEND_ROW - 7), font, scale, (0, 0, 0), 1, cv2.LINE_AA
        )
    strip.flags.writeable = False
    return strip
