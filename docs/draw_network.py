"""Draws docs/network.png from the network itself: the shapes are those that its modules return.

python docs/draw_network.py
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.patches import FancyBboxPatch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from model import FastSCNN  # noqa: E402

COLORS = {
    "learning_to_downsample": "#4e79a7",
    "global_feature_extractor": "#f28e2b",
    "feature_fusion": "#59a14f",
    "classifier": "#b07aa1",
}
# module, what it is, column, row; column 0 is the input
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
WIDTH, HEIGHT, STEP_X, STEP_Y = 1.28, 0.86, 1.62, 1.9


def shapes() -> dict[str, str]:
    """Returns the output of every block for a 1024x2048 picture, as text."""
    found = {}
    with torch.device("meta"), torch.no_grad():
        model = FastSCNN().eval()
        for name, *_ in BLOCKS:

            def note(_: object, __: object, output: torch.Tensor, name: str = name) -> None:
                _, channels, height, width = output.shape
                found[name] = f"{height} x {width}\n{channels} channels"

            model.get_submodule(name).register_forward_hook(note)
        model(torch.empty(1, 3, 1024, 2048))
    return found


def main() -> None:
    """Draws and saves the picture."""
    figure, axes = plt.subplots(figsize=(16, 3.9), dpi=110)
    places = {}

    def box(x: float, y: float, text: str, below: str, color: str) -> None:
        axes.add_patch(
            FancyBboxPatch(
                (x - WIDTH / 2, y - HEIGHT / 2), WIDTH, HEIGHT, boxstyle="round,pad=0.02", fc=color, ec="none"
            )
        )
        axes.text(x, y, text, ha="center", va="center", color="white", fontsize=8.6)
        axes.text(x, y - HEIGHT / 2 - 0.08, below, ha="center", va="top", color="#444444", fontsize=8)

    def arrow(start: tuple[float, float], end: tuple[float, float]) -> None:
        axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": "#555555", "lw": 1.3})

    outputs = shapes()
    box(0, STEP_Y, "picture", "1024 x 2048\n3 channels", "#888888")
    places["input"] = (0, STEP_Y)
    for name, text, column, row in BLOCKS:
        places[name] = (column * STEP_X, row * STEP_Y)
        box(*places[name], text, outputs[name], COLORS[name.split(".")[0]])
    box(12 * STEP_X, STEP_Y, "bilinear x8", "1024 x 2048\n19 classes", "#888888")
    places["output"] = (12 * STEP_X, STEP_Y)

    chain = ["input", *(name for name, *_ in BLOCKS), "output"]
    for first, second in pairwise(chain):
        (x0, y0), (x1, y1) = places[first], places[second]
        if y0 == y1:
            arrow((x0 + WIDTH / 2, y0), (x1 - WIDTH / 2, y1))
        elif y1 < y0:
            arrow((x0 + WIDTH / 2, y0 - 0.3), (x1 - WIDTH / 2, y1 + 0.3))
        else:
            arrow((x0 + WIDTH / 2, y0 + 0.3), (x1 - WIDTH / 2, y1 - 0.3))
    shallow, fusion = places["learning_to_downsample.dsconv2"], places["feature_fusion"]
    arrow((shallow[0] + WIDTH / 2, shallow[1]), (fusion[0] - WIDTH / 2, fusion[1]))
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
