"""Draws docs/network.png; the shapes come from running the network.

python docs/draw_network.py
"""

from __future__ import annotations

import functools
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import FancyBboxPatch
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from model import FastSCNN  # noqa: E402

COLORS = {
    "learning_to_downsample": "#4e79a7",
    "global_feature_extractor": "#f28e2b",
    "feature_fusion": "#59a14f",
    "classifier": "#b07aa1",
}
# Module, text, column, row; column 0 is the input.
BLOCKS = (
    ("learning_to_downsample.conv", "Conv 3x3\nstride 2", 1, 1),
    ("learning_to_downsample.dsconv1", "DSConv\nstride 2", 2, 1),
    ("learning_to_downsample.dsconv2", "DSConv\nstride 2", 3, 1),
    ("global_feature_extractor.bottleneck1", "bottleneck\n3 times\nstride 2", 4, 0),
    ("global_feature_extractor.bottleneck2", "bottleneck\n3 times\nstride 2", 5, 0),
    ("global_feature_extractor.bottleneck3", "bottleneck\n3 times", 6, 0),
    ("global_feature_extractor.pyramid_pooling", "pyramid\npooling", 7, 0),
    ("feature_fusion", "upsample,\nadd", 8, 1),
    ("classifier.dsconv1", "DSConv", 9, 1),
    ("classifier.dsconv2", "DSConv", 10, 1),
    ("classifier.conv", "Conv 1x1", 11, 1),
)
WIDTH, HEIGHT = 1.28, 0.86  # of a box
STEP_X, STEP_Y = 1.62, 1.9  # between the centers of two boxes


def shapes() -> dict[str, str]:
    """Returns the output shape of every block for a 1024x2048 image, as text."""
    found = {}
    with torch.device("meta"), torch.no_grad():
        model = FastSCNN().eval()
        for name, *_ in BLOCKS:
            model.get_submodule(name).register_forward_hook(functools.partial(note, found, name))
        model(torch.empty(1, 3, 1024, 2048))
    return found


def note(found: dict[str, str], name: str, _module: nn.Module, _inputs: tuple, output: torch.Tensor) -> None:
    """Forward hook: adds the shape of a module's output."""
    _, channels, height, width = output.shape
    found[name] = f"{height} x {width}\n{channels} channels"


def box(axes: plt.Axes, x: float, y: float, text: str, below: str, color: str) -> None:
    """Draws a block centered at (x, y), with its output shape below."""
    corner = (x - WIDTH / 2, y - HEIGHT / 2)
    axes.add_patch(FancyBboxPatch(corner, WIDTH, HEIGHT, boxstyle="round,pad=0.02", fc=color, ec="none"))
    axes.text(x, y, text, ha="center", va="center", color="white", fontsize=8.6)
    axes.text(x, y - HEIGHT / 2 - 0.08, below, ha="center", va="top", color="#444444", fontsize=8)


def arrow(axes: plt.Axes, first: tuple[float, float], second: tuple[float, float]) -> None:
    """Draws an arrow from the right edge of one block to the left edge of another; each is given by its center."""
    (x0, y0), (x1, y1) = first, second
    slant = 0.3 * ((y1 > y0) - (y1 < y0))
    start, end = (x0 + WIDTH / 2, y0 + slant), (x1 - WIDTH / 2, y1 - slant)
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#555555", "lw": 1.3})


def main() -> None:
    """Draws and saves the figure."""
    figure, axes = plt.subplots(figsize=(16, 3.9), dpi=110)
    outputs = shapes()
    places = {"input": (0, STEP_Y), "output": (12 * STEP_X, STEP_Y)}
    places |= {name: (column * STEP_X, row * STEP_Y) for name, _, column, row in BLOCKS}
    box(axes, *places["input"], "picture", "1024 x 2048\n3 channels", "#888888")
    for name, text, _, _ in BLOCKS:
        box(axes, *places[name], text, outputs[name], COLORS[name.split(".")[0]])
    box(axes, *places["output"], "bilinear x8", "1024 x 2048\n19 classes", "#888888")

    chain = ["input", *(name for name, *_ in BLOCKS), "output"]
    for first, second in pairwise(chain):
        arrow(axes, places[first], places[second])
    shallow, fusion = places["learning_to_downsample.dsconv2"], places["feature_fusion"]
    arrow(axes, shallow, fusion)
    axes.text((shallow[0] + fusion[0]) / 2, STEP_Y + 0.08, "skip connection, 1/8", ha="center", fontsize=8.5)
    for name, color in COLORS.items():
        columns = [column for block, _, column, _ in BLOCKS if block.startswith(name)]
        row = next(row for block, _, _, row in BLOCKS if block.startswith(name))
        middle = STEP_X * sum(columns) / len(columns)
        axes.text(middle, row * STEP_Y + 0.6, name, ha="center", color=color, fontsize=10.5, weight="bold")
    axes.set_xlim(-0.9, 12 * STEP_X + 0.9)
    axes.set_ylim(-1.15, STEP_Y + 1.0)
    axes.axis("off")
    figure.savefig(HERE / "network.png", bbox_inches="tight", pad_inches=0.05)
    print(HERE / "network.png")


if __name__ == "__main__":
    main()
