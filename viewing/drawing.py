"""Drawing a prediction: panels side by side or an overlay, and the legend. All images are uint8 RGB."""

from __future__ import annotations

import functools

import cv2
import numpy as np

from frames.classes import IGNORE_INDEX, Classes
from frames.images import color, shrink

LEGEND_ROW = 22  # height, in pixels
OPACITY = 0.55  # of the class colors in an overlay


def draw_result(
    image: np.ndarray,
    label: np.ndarray | None,
    prediction: np.ndarray,
    classes: Classes,
    overlay: bool = False,
    width: int | None = None,
    legend: tuple[int, ...] | None = None,
) -> np.ndarray:
    """Draws an image, (H, W, 3), its ground truth if there is one, and its prediction, both (H, W) train ids.

    Args:
        image: see above.
        label: see above.
        prediction: see above.
        classes: give colors and names.
        overlay: blend the prediction into the image; else image | ground truth | prediction.
        width: maximum width of the drawing, all panels included; it is never enlarged.
        legend: the train ids to name, () for no legend; None: those that occur.
    """
    maps = [prediction] if label is None or overlay else [label, prediction]
    count = 1 if overlay else 1 + len(maps)
    h, w = prediction.shape
    panel_w = min(w, max(1, width // count)) if width else w
    size = (panel_w, max(1, round(h * panel_w / w)))
    # Resized before it is colored: a small drawing of a large frame costs little.
    shown = shrink(image, size)
    small = [cv2.resize(part, size, interpolation=cv2.INTER_NEAREST_EXACT) for part in maps]
    drawn = (
        blend(shown, small[0], classes) if overlay else cv2.hconcat([shown, *(color(part, classes) for part in small)])
    )
    if legend is None:
        counts = sum(cv2.calcHist([part], [0], None, [256], [0, 256]).ravel() for part in maps)
        legend = tuple(np.flatnonzero(counts[:IGNORE_INDEX]).tolist())
    return cv2.vconcat([drawn, draw_legend(legend, classes, drawn.shape[1])]) if legend else drawn


def blend(image: np.ndarray, prediction: np.ndarray, classes: Classes) -> np.ndarray:
    """Returns the image with the class colors laid over it."""
    return cv2.addWeighted(image, 1 - OPACITY, color(prediction, classes), OPACITY, 0)


@functools.lru_cache(maxsize=16)
def draw_legend(train_ids: tuple[int, ...], classes: Classes, width: int) -> np.ndarray:
    """Returns a white strip, `width` pixels wide, with a patch of color and the name of each class."""
    font, scale, patch, gap = cv2.FONT_HERSHEY_SIMPLEX, 0.45, 16, 6
    places, x, y = [], gap, 0
    for train_id in train_ids:
        needed = patch + 3 * gap + cv2.getTextSize(classes.names[train_id], font, scale, 1)[0][0]
        if x + needed > width and x > gap:
            x, y = gap, y + LEGEND_ROW
        places.append((train_id, x, y))
        x += needed
    strip = np.full((y + LEGEND_ROW, width, 3), 255, np.uint8)
    for train_id, x, y in places:
        cv2.rectangle(strip, (x, y + 4), (x + patch, y + LEGEND_ROW - 4), classes.colors[train_id], cv2.FILLED)
        corner = (x + patch + gap, y + LEGEND_ROW - 7)
        cv2.putText(strip, classes.names[train_id], corner, font, scale, (0, 0, 0), 1, cv2.LINE_AA)
    strip.flags.writeable = False  # it is cached
    return strip
