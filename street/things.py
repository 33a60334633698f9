"""The look of the things in a synthetic street, and the camera and light of its images.

A scene is built in metres (x to the right, y up, z ahead of the camera; the road is at y = 0) and seen through a
pinhole camera. Shape, texture and place tell what a thing is. Its color tells little, and light, haze and exposure
differ between images, so that a network has to learn more than a table of colors.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

SQUARE = np.array(((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)))
UP = np.array((0.0, 1.0, 0.0))
# fmt: off
# Colors, drawn for every object: the lowest and highest hue, saturation and value.
TINTS = {
    "sky": (0.53, 0.63, 0.1, 0.7, 0.55, 1), "grey sky": (0, 1, 0, 0.2, 0.5, 0.95), "haze": (0, 1, 0, 0.25, 0.6, 0.9),
    "grass": (0.14, 0.28, 0.35, 0.7, 0.45, 0.75), "leaf": (0.2, 0.4, 0.4, 0.9, 0.2, 0.5),
    "bark": (0.02, 0.1, 0, 0.5, 0.2, 0.5), "asphalt": (0, 1, 0, 0.1, 0.25, 0.45), "line": (0, 1, 0, 0.1, 0.75, 1),
    "slab": (0, 0.15, 0.05, 0.25, 0.5, 0.85), "plaster": (0, 1, 0, 0.6, 0.3, 0.95), "frame": (0, 1, 0, 0.3, 0.4, 1),
    "pane": (0, 1, 0, 0.5, 0.1, 0.4), "glass": (0, 1, 0, 0.3, 0.08, 0.35), "glint": (0, 1, 0, 0.5, 0.5, 0.9),
    "paint": (0, 1, 0, 1, 0.15, 0.95), "second": (0, 1, 0, 1, 0.2, 0.95), "metal": (0, 1, 0, 0.4, 0.15, 0.75),
    "cloth": (0, 1, 0, 1, 0.1, 0.95), "trousers": (0, 1, 0, 0.8, 0.08, 0.6), "skin": (0.03, 0.1, 0.2, 0.6, 0.3, 0.95),
    "hair": (0.03, 0.14, 0, 0.7, 0.05, 0.5), "dark": (0.6, 0.7, 0, 0.2, 0.08, 0.16), "steel": (0, 1, 0, 0.1, 0.35, 0.6),
    "white": (0, 1, 0, 0.05, 0.85, 1), "red": (0.97, 1, 0.8, 0.95, 0.7, 0.95), "amber": (0.1, 0.13, 0.7, 0.95, 0.85, 1),
    "blue": (0.58, 0.64, 0.7, 0.95, 0.6, 0.9), "green": (0.36, 0.45, 0.7, 0.9, 0.7, 0.95),
}
# Solid things are boxes: distance ahead of the thing's middle, (length, width, height), base, color, kind.
SOLIDS = {
    "car": ((0, (4.2, 1.7, 0.5), 0, "dark", ""), (0, (4.3, 1.8, 0.65), 0.25, "paint", "body"),
            (-0.35, (2.5, 1.55, 0.62), 0.9, "paint", "cab")),
    "truck": ((0, (8, 2.2, 0.95), 0, "dark", "chassis"), (3, (1.9, 2.4, 2.2), 0.6, "paint", "cab"),
              (-1.1, (5.9, 2.5, 2.7), 0.9, "second", "cargo")),
    "bus": ((0, (10.8, 2.4, 0.5), 0, "dark", ""), (0, (11, 2.55, 2.7), 0.3, "paint", "coach")),
    "train": ((0, (24, 2.3, 0.4), 0, "dark", ""), (0, (24, 2.6, 3), 0.25, "paint", "tram"),
              (0, (22, 1.2, 0.4), 3.25, "steel", "")),
    "building": ((0, (9, 8, 9), 0, "plaster", "house"),), "wall": ((0, (9, 0.4, 2.7), 0, "dark plaster", "wall"),),
    "fence": ((0, (9, 0.02, 2.1), 0, "clear", "fence"),), "static": ((0, (0.8, 0.7, 1.1), 0, "paint", "bin"),),
}
# Details of their faces: a color and (left, low, right, high) in fractions of the face. If (width, height) in metres
# follow, cells of this size fill the area, and the last two numbers are the colored fractions of each cell.
LAMPS, BUS_LAMPS = (-0.2, 0.5, 1.2, 0.85, 1.2, 9, 0.3, 1), (-0.2, 0.12, 1.2, 0.24, 1.7, 9, 0.2, 1)
WINDOW = (0.03, 0.1, 0.97, 0.97, 2.4, 3)
BUS_END = (("glass", 0.06, 0.42, 0.94, 0.84), ("dark", 0.2, 0.87, 0.8, 0.96), ("amber", 0.28, 0.89, 0.72, 0.94))
TRAM_END = (("second", 0, 0.08, 1, 0.2), ("glass", 0.1, 0.36, 0.9, 0.94), ("amber", 0.3, 0.84, 0.7, 0.92),
            ("white", 0.42, 0.23, 0.58, 0.31))
HOUSE = (("frame", *WINDOW, 0.7, 0.75), ("pane", *WINDOW, 0.55, 0.6), ("frame", 0, 0.96, 1, 1),
         ("dark plaster", 0, 0, 1, 0.06))
DETAILS = {
    "body rear": (("dark", 0, 0, 1, 0.22), ("red", *LAMPS), ("white", 0.35, 0.28, 0.65, 0.48)),
    "body front": (("dark", 0, 0, 1, 0.3), ("white", *LAMPS), ("white", 0.38, 0.15, 0.62, 0.32)),
    "body side": (("dark paint", 0, 0.45, 1, 0.52),), "cab side": (("glass", 0.05, 0.3, 0.95, 0.85, 1.2, 9, 0.88, 1),),
    "cab rear": (("glass", 0.08, 0.3, 0.92, 0.88),), "cab front": (("glass", 0.08, 0.3, 0.92, 0.88),),
    "cargo side": (("dark second", 0, 0.03, 1, 0.97, 0.6, 9, 0.15, 1),),
    "cargo rear": (("dark", 0.48, 0.03, 0.52, 0.97), ("red", -0.2, 0, 1.2, 0.07, 1.7, 9, 0.25, 1)),
    "coach side": (("second", 0, 0.12, 1, 0.28), ("glass", 0.02, 0.45, 0.98, 0.85, 1.5, 9, 0.86, 1)),
    "coach rear": (*BUS_END, ("red", *BUS_LAMPS)), "coach front": (*BUS_END, ("white", *BUS_LAMPS)),
    "tram side": (("second", 0, 0.08, 1, 0.2), ("glass", 0, 0.42, 1, 0.86), ("glint", 0, 0.45, 1, 0.82, 2, 9, 0.2, 1),
                  ("dark second", 0, 0.06, 1, 0.88, 4, 9, 0.28, 1)),
    "tram rear": TRAM_END, "tram front": TRAM_END,
    "house rear": HOUSE, "house side": (*HOUSE, ("paint", 0.45, 0, 0.57, 0.28)),
    "wall side": (("plaster", 0, 0, 1, 0.94, 0.7, 0.35, 0.88, 0.8), ("plaster", 0, 0.94, 1, 1)),
    "bin side": (("dark", 0, 0.8, 1, 1),), "bin rear": (("dark", 0, 0.8, 1, 1),),
    "fence side": (("metal", 0, 0, 1, 1, 0.35, 9, 0.3, 1), ("metal", 0, 0.1, 1, 0.9, 99, 1.2, 1, 0.1)),
}
WHEELS = {"body": 0.36, "chassis": 0.48, "coach": 0.48}  # radius in metres, on the sides
# Flat things are lines from (x, y) to (x, y) with a thickness and a color; a line without length is a disc.
FIGURES = {
    "lamp": ((0, 0, 0, 6, 0.28, "metal"), (0.07, 0, 0.07, 6, 0.09, "dark metal"), (0, 6, 1.6, 6.3, 0.2, "metal")),
    "post": ((0, 0, 0, 3.2, 0.26, "metal"), (0.06, 0, 0.06, 3.2, 0.08, "dark metal")),
    "traffic light": ((0, 2.8, 0, 4.5, 0.64, "dark"), (0, 3.15, 0, 3.15, 0.4, "green"),
        (0, 3.65, 0, 3.65, 0.4, "amber"), (0, 4.15, 0, 4.15, 0.4, "red")),
    "traffic sign": ((0, 3.1, 0, 3.1, 1.3, "rim"), (0, 3.1, 0, 3.1, 0.9, "inner"),
        (-0.2, 3.1, 0.2, 3.1, 0.13, "dark")),
    "tree": ((0, 0, 0, 3.5, 0.35, "bark"), *((0, 4.3, 0, 4.3, 1.6, "dark leaf"),) * 5,
        *((0, 4.6, 0, 4.6, 1.2, "leaf"),) * 5),
    "bush": ((0, 0, 0, 1, 0.5, "bark"), *((0, 0.8, 0, 0.8, 1.3, "dark leaf"),) * 4,
        *((0, 0.9, 0, 0.9, 1, "leaf"),) * 4),
    "person": ((-0.08, 0.9, -0.22, 0, 0.19, "trousers"), (0.08, 0.9, 0.22, 0, 0.19, "dark trousers"),
        (-0.22, 1.36, -0.36, 0.8, 0.13, "dark cloth"), (0.22, 1.36, 0.36, 0.8, 0.13, "dark cloth"),
        (0, 0.8, 0, 1.48, 0.46, "cloth"), (0, 1.45, 0, 1.6, 0.12, "skin"), (0, 1.69, 0, 1.69, 0.28, "hair"),
        (0, 1.65, 0, 1.65, 0.22, "skin")),
    "rider": ((-0.25, 0.95, 0.2, 0.75, 0.2, "trousers"), (0.2, 0.8, -0.02, 0.25, 0.16, "dark trousers"),
        (-0.27, 0.85, 0.08, 1.5, 0.36, "cloth"), (0.08, 1.42, 0.38, 1.08, 0.13, "dark cloth"),
        (0.17, 1.66, 0.17, 1.66, 0.3, "paint"), (0.22, 1.62, 0.22, 1.62, 0.2, "skin")),
    "bicycle": ((-0.58, 0.36, -0.58, 0.36, 0.72, "tyre"), (0.58, 0.36, 0.58, 0.36, 0.72, "tyre"),
        (-0.58, 0.36, -0.1, 0.3, 0.07, "paint"), (-0.58, 0.36, -0.25, 0.85, 0.07, "paint"),
        (-0.1, 0.3, -0.25, 0.95, 0.07, "paint"), (-0.22, 0.8, 0.42, 0.85, 0.07, "paint"),
        (-0.1, 0.3, 0.42, 0.8, 0.07, "paint"), (0.58, 0.36, 0.38, 1.05, 0.07, "paint"),
        (-0.4, 0.96, -0.12, 0.96, 0.09, "dark"), (0.2, 1.05, 0.45, 1.05, 0.07, "dark")),
    "motorcycle": ((-0.58, 0.36, -0.58, 0.36, 0.72, "dark"), (0.58, 0.36, 0.58, 0.36, 0.72, "dark"),
        (-0.58, 0.36, -0.58, 0.36, 0.34, "steel"), (0.58, 0.36, 0.58, 0.36, 0.34, "steel"),
        (-0.3, 0.5, 0.25, 0.5, 0.44, "steel"), (-0.55, 0.62, 0.35, 0.72, 0.3, "paint"),
        (-0.9, 0.85, -0.4, 0.68, 0.16, "paint"), (0, 0.85, 0.5, 0.88, 0.3, "paint"),
        (-0.75, 0.86, -0.05, 0.84, 0.14, "dark"), (0.58, 0.36, 0.38, 1, 0.1, "steel"),
        (0.4, 1, 0.3, 1.3, 0.09, "dark"), (0.46, 0.92, 0.6, 0.92, 0.2, "white")),
}
TINT_NAMES = (*TINTS, *(f"dark {name}" for name in TINTS), "clear")
SIGNS = (("red", "white"), ("white", "blue"), ("blue", "white"), ("white", "paint"))  # rim and inner color
FIGURE_LABELS = {"lamp": "pole", "post": "pole", "tree": "vegetation", "bush": "vegetation"}
# fmt: on


def stroke(x0: float, y0: float, x1: float, y1: float, width: float, corners: int = 14) -> np.ndarray:
    """Returns a thick line as a rectangle, (4, 2), or as a disc, (corners, 2), if both ends are one point."""
    if (x0, y0) == (x1, y1):
        turns = 2 * np.pi / corners * np.arange(corners)
        return np.stack((x0 + width / 2 * np.sin(turns), y0 + width / 2 * np.cos(turns)), 1)
    half = width / 2 / math.hypot(x1 - x0, y1 - y0)
    dx, dy = (y0 - y1) * half, (x1 - x0) * half
    return np.array(((x0 + dx, y0 + dy), (x1 + dx, y1 + dy), (x1 - dx, y1 - dy), (x0 - dx, y0 - dy)))


def strip(x0: float, x1: float, z0: float = 1.2, z1: float = 150.0) -> np.ndarray:
    """Returns a rectangle on the ground, (1, 4, 3)."""
    return np.array((((x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)),), float)


class Face(NamedTuple):
    """A flat side of a thing: lower left corner, directions of width and height, size in metres, name, brightness."""

    origin: np.ndarray
    along: np.ndarray
    up: np.ndarray = UP
    width: float = 1.0
    height: float = 1.0
    name: str = "rear"
    light: float = 1.0

    def at(self, shapes: np.ndarray) -> np.ndarray:
        """Places shapes given in metres, (n, 2) or (P, n, 2), on the face: (P, n, 3)."""
        shapes = shapes.reshape(-1, *shapes.shape[-2:])
        return self.origin + shapes[..., :1] * self.along + shapes[..., 1:] * self.up

    def grid(self, area: tuple = (0, 0, 1, 1), cell: tuple = (99, 99), fill: tuple = (1, 1)) -> np.ndarray:
        """Places the rectangles that a row of DETAILS describes: (P, 4, 3)."""
        left, low = area[0] * self.width, area[1] * self.height
        width, height = (area[2] - area[0]) * self.width, (area[3] - area[1]) * self.height
        columns, rows = max(round(width / cell[0]), 1), max(round(height / cell[1]), 1)
        steps = np.indices((columns, rows)).reshape(2, -1).T[:, None] + 0.5
        return self.at((steps + SQUARE * fill) * (width / columns, height / rows) + (left, low))


def card(x: float, z: float, yaw: float = 0.0) -> Face:
    """Returns an upright plane for flat things on the ground at (x, z)."""
    return Face(np.array((x, 0.0, z)), np.array((np.cos(yaw), 0.0, np.sin(yaw))))


class Scene:
    """An image under construction: its pixels, its labelled polygons, its camera and its light."""

    def __init__(self, rng: np.random.Generator, height: int, width: int):
        self.rng = rng
        self.height = height
        self.width = width
        self.image = np.zeros((height, width, 3), np.uint8)
        self.objects: list[dict] = []
        self.focal = rng.uniform(1.15, 1.5) * (height + width / 2) / 2  # in pixels
        self.middle = width * rng.uniform(0.42, 0.58)
        self.horizon = height * rng.uniform(0.4, 0.5)
        self.eye = rng.uniform(1.5, 2.2)  # height of the camera
        self.sun = rng.uniform(-np.pi, np.pi)  # direction
        self.haze = self.tints()["haze"]
        self.visibility = rng.uniform(80, 300)

    def tints(self) -> dict[str, np.ndarray]:
        """Returns an RGB color, 0 to 255, for each of TINTS, a darker one of it, and "clear", which is not painted."""
        low, high = np.array(list(TINTS.values())).reshape(-1, 3, 2).transpose(2, 0, 1)
        hsv = (self.rng.uniform(low, high) * (360, 1, 1)).astype(np.float32)
        rgb = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0] * np.float64(255)
        return dict(zip(TINT_NAMES, (*rgb, *(0.7 * rgb), np.full(3, np.nan)), strict=True))

    def project(self, points: np.ndarray) -> np.ndarray:
        """Maps points in metres, (N, 3), to whole pixels (x, y), which may lie outside the image."""
        scale = self.focal / np.maximum(points[:, 2], 0.3)
        pixels = self.middle + points[:, 0] * scale, self.horizon + (self.eye - points[:, 1]) * scale
        return np.rint(np.stack(pixels, 1)).clip(-16000, 16000).astype(np.int32)

    def noise(self, shape: tuple[int, int], cell: tuple[float, float]) -> np.ndarray:
        """Returns smooth noise from -1 to 1 in two octaves, of grains of `cell` pixels and a third of that."""
        total = np.zeros(shape, np.float32)
        for octave in (1, 3):
            size = [int(length / max(grains * octave, 1.0)) + 2 for length, grains in zip(shape, cell, strict=True)]
            total += cv2.resize(self.rng.random(size, dtype=np.float32) - np.float32(0.5), shape[::-1])
        return total

    def add(self, label: str, parts: list, grain: float = 0.1, cell: tuple | None = None, shade: float = 1) -> None:
        """Paints an object over the image and labels its outline, the contour of its largest connected piece.

        Args:
            label: its class; empty for a shadow, which is not labelled.
            parts: polygons, (P, n, 3) in metres, and their color, painted in this order.
            grain: strength of the texture.
            cell: (height, width) of the grains of the texture in pixels; None: 0.15 m.
            shade: factor on the brightness inside the outline.
        """
        depth = float(np.maximum(parts[0][0][..., 2], 0.3).mean())
        corners = self.project(np.concatenate([polygons.reshape(-1, 3) for polygons, _ in parts]))
        x0, y0 = corners.min(0).clip(0).tolist()
        x1, y1 = np.minimum(corners.max(0) + 1, (self.width, self.height)).tolist()
        if x1 - x0 < 2 or y1 - y0 < 2:
            return
        ends = np.cumsum([polygons.size // 3 for polygons, _ in parts])[:-1]
        shapes = [c.reshape(*p.shape[:2], 2) for c, (p, _) in zip(np.split(corners, ends), parts, strict=True)]
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        for shape in shapes:
            cv2.fillPoly(mask, list(shape), 1, offset=(-x0, -y0))
        contours, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        outline = cv2.approxPolyDP(max(contours, key=cv2.contourArea), 0.7, True)[:, 0] if contours else corners[:0]
        if len(outline) < 3 or cv2.contourArea(outline) < 3:
            return
        clear = np.exp(-depth / self.visibility)
        for shape, (_, color) in zip(shapes, parts, strict=True):
            if not np.isnan(color[0]):
                cv2.fillPoly(self.image, list(shape), (color * clear + self.haze * (1 - clear)).tolist())
        if grain or shade != 1:
            mask = cv2.fillPoly(np.zeros_like(mask), [outline], 1)
            noise = grain * clear * self.noise(mask.shape, cell or (0.15 * self.focal / depth,) * 2)
            factor = np.where(mask, shade + noise, np.float32(1))[..., None]
            self.image[y0:y1, x0:x1] = np.clip(self.image[y0:y1, x0:x1] * factor, 0, 255)
        if label:
            self.objects.append({"label": label, "polygon": (outline + (x0, y0)).tolist()})

    def box(self, x: float, z: float, size: np.ndarray, base: float, yaw: float) -> list[Face]:
        """Returns the visible faces of a box of (length, width, height) centered over (x, z); yaw 0 shows its rear."""
        center = np.array((x, base, z))
        height = size[2]
        faces = []
        for turn, name in enumerate(("rear", "side", "front", "side")):
            angle = yaw - turn * np.pi / 2
            width = size[1 - turn % 2]
            depth = size[turn % 2]
            along = np.array((np.cos(angle), 0, -np.sin(angle)))
            normal = -np.array((np.sin(angle), 0, np.cos(angle)))
            origin = center - along * width / 2 + normal * depth / 2
            if normal @ origin < 0:
                faces.append(Face(origin, along, UP, width, height, name, 0.8 + 0.2 * np.cos(angle - self.sun)))
            if turn == 0 and base + height < self.eye:
                faces.append(Face(origin + (0, height, 0), along, -normal, width, depth, "top", 1.1))
        return faces

    def develop(self) -> np.ndarray:
        """Returns the image as from a camera: with uneven light, exposure, color cast, blur and noise."""
        rng = self.rng
        gain = rng.uniform(0.4, 0.55) if rng.random() < 0.1 else rng.uniform(0.8, 1.2)
        uneven = cv2.resize(rng.uniform(0.85, 1.15, (3, 4)).astype(np.float32), (self.width, self.height))
        curve = np.linspace(0, 1, 256, dtype=np.float32) ** np.float32(rng.uniform(0.85, 1.2)) * np.float32(255 * gain)
        image = curve[cv2.GaussianBlur(self.image, (3, 3), rng.uniform(0.3, 0.8))]
        image *= uneven[..., None] * rng.uniform(0.92, 1.08, 3).astype(np.float32)
        image += rng.integers(-128, 128, image.shape, np.int8) * np.float32(rng.uniform(0.01, 0.1))
        return np.clip(image, 0, 255).astype(np.uint8)


def draw_solid(scene: Scene, x: float, z: float, label: str, yaw: float = 0.0, scale: tuple = (1, 1, 1)) -> None:
    """Draws a thing of SOLIDS whose near end is about z ahead; yaw 0 shows its rear, pi its front."""
    tints = scene.tints()
    length, width, _ = np.multiply(SOLIDS[label][0][1], scale)
    boxes = []
    parts = []
    z += (abs(length * np.cos(yaw)) + abs(width * np.sin(yaw))) / 2
    for shift, size, base, color, kind in SOLIDS[label]:
        cx, cz = x + shift * np.sin(yaw), z + shift * np.cos(yaw)
        faces = scene.box(cx, cz, np.multiply(size, scale), base, yaw)
        boxes.append((round(base), -np.hypot(cx, cz), color, kind, faces))
    feet = [(face.at(stroke(-0.1, -0.03, face.width + 0.1, -0.03, 0.06)), tints["clear"]) for face in boxes[0][4]]
    scene.add("", feet, 0, shade=0.5)
    for _, _, color, kind, faces in sorted(boxes, key=lambda box: box[:2]):
        for face in faces:
            parts.append((face.grid(), tints[color] * face.light))
            for paint, *area in DETAILS.get(f"{kind} {face.name}", ()):
                polygons = face.grid(area[:4], area[4:6] or (99, 99), area[6:] or (1, 1))
                parts.append((polygons, tints[paint] * face.light))
            if kind in WHEELS and face.name == "side":
                y = WHEELS[kind] - face.origin[1]
                for u in (0.2 * face.width, 0.82 * face.width):
                    for size, paint in ((2 * WHEELS[kind], "dark"), (WHEELS[kind], "steel")):
                        parts.append((face.at(stroke(u, y, u, y, size)), tints[paint]))
    scene.add(label, parts, 0 if label == "fence" else 0.07)


def draw_figure(scene: Scene, x: float, z: float, *names: str) -> None:
    """Draws things of FIGURES at one place, such as a bicycle and its rider."""
    rng = scene.rng
    tints = scene.tints()
    face = card(x, z, rng.uniform(-0.9, 0.9) + np.pi * rng.integers(2) if "cycle" in names[0] else 0.0)
    scene.add("", [(strip(x - 0.5, x + 0.5, z - 0.2, z + 0.2), tints["clear"])], 0, shade=0.6)
    stretch = 1.0 if len(names) > 1 else rng.uniform((0.75, 0.85), (1.2, 1.1))
    for name in names:
        leafy = name in ("tree", "bush")
        parts = []
        corners = 14
        if name == "traffic sign":
            corners = rng.choice((3, 4, 8, 14))
            rim, inner = SIGNS[rng.integers(len(SIGNS))]
            tints |= {"rim": tints[rim], "inner": tints[inner]}
        for x0, y0, x1, y1, width, color in FIGURES[name]:
            dx, dy = rng.normal(0, 0.3, 2) if leafy and color != "bark" else (0, 0)
            shape = stroke(x0 + dx, y0 + dy, x1 + dx, y1 + dy, width, corners) * stretch
            if color == "tyre":  # a ring that shows the background: a polygon inside another is a hole
                parts.append((face.at(shape), tints["clear"]))
                shape, color = np.stack((shape, 0.8 * shape + 0.2 * shape.mean(0))), "dark"
            parts.append((face.at(shape), tints[color]))
        scene.add(FIGURE_LABELS.get(name, name), parts, 0.5 if leafy else 0)
