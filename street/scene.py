"""The layout of a street scene: what stands where, drawn from far to near."""

from __future__ import annotations

import numpy as np

from street.things import SOLIDS, Scene, card, draw_figure, draw_solid, strip, stroke


def draw_sky(scene: Scene) -> None:
    """Draws a gradient with clouds, down to the horizon."""
    rng = scene.rng
    rows = int(scene.horizon) + 2
    tints = scene.tints()
    high = tints["sky" if rng.random() < 0.7 else "grey sky"]
    scene.add("sky", [(card(0, 500).at(stroke(-9e3, 495, 9e3, 495, 1000)), high)], 0)
    slope = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    clouds = scene.noise((rows, scene.width), (scene.height / 16, scene.height / 6)) - rng.uniform(-0.1, 0.5)
    clouds = np.clip(clouds * 2.5, 0, 1)[..., None]
    clear = high * (1 - slope) + (high * 0.3 + scene.haze * 0.7) * slope
    scene.image[:rows] = clear * (1 - clouds) + np.minimum(high * 0.4 + 150, 255) * clouds


def draw_ground(scene: Scene, kerbs: tuple[float, float], walks: tuple[float, float]) -> None:
    """Draws grass to the horizon, and on it both sidewalks, from kerb to walk, and the road between the kerbs."""
    rng = scene.rng
    pixel = scene.height / 128
    tints = scene.tints()
    left, right = kerbs
    scene.add("terrain", [(strip(-300, 300), tints["grass"])], 0.45, (pixel, 1.5 * pixel))
    for kerb, walk in zip(kerbs, walks, strict=True):
        seams = [strip(kerb, walk, z, z * 1.012 + 0.04) for z in np.arange(2, 30, 1.2)]
        seams += [strip(x, x + 0.05) for x in np.arange(min(kerb, walk), max(kerb, walk), 0.9)]
        parts = [(strip(kerb, walk), tints["slab"]), *((seam, tints["dark slab"]) for seam in seams)]
        parts.append((strip(kerb, kerb + 0.3 * np.sign(walk - kerb)), tints["slab"] * 1.2))
        scene.add("sidewalk", parts, 0.12, (pixel, 2 * pixel))
    lane = left + rng.uniform(0.4, 0.5) * (right - left)
    z = rng.uniform(7, 16)
    lines = [strip(lane, lane + 0.16, z, z + 2.5) for z in np.arange(rng.uniform(1.2, 5), 60, 6)]
    lines += [strip(x, x + 0.12) for x in (left + 0.4, right - 0.5) if rng.random() < 0.5]
    if rng.random() < 0.3:
        lines += [strip(x, x + 0.5, z, z + 3) for x in np.arange(left + 0.4, right - 0.5)]
    parts = [(strip(left, right), tints["asphalt"]), *((line, tints["line"]) for line in lines)]
    scene.add("road", parts, 0.1, (pixel, pixel))
    if rng.random() < 0.25:
        bay = strip(right - 2.2, right, 3, rng.uniform(15, 30))
        scene.add("parking", [(bay, tints["dark slab"])], 0.15, (pixel, pixel))
    for z in rng.uniform(4, 40, rng.integers(0, 4)):
        dark = strip(*np.sort(rng.uniform(-12, 12, 2)), z, z * rng.uniform(1.1, 1.6))
        scene.add("", [(dark, tints["clear"])], 0, shade=rng.uniform(0.5, 0.75))


def draw_side(scene: Scene, x: float, side: int) -> None:
    """Draws what stands along one side of the street, from far to near."""
    rng = scene.rng
    segments = []
    z = 4.0
    while z < 60:
        kind = rng.choice(("building", "wall", "fence", "bush", ""), p=(0.32, 0.24, 0.24, 0.12, 0.08))
        segments.append((z, rng.uniform(6, 13), kind))
        z += segments[-1][1] + rng.uniform(0, 1.5)
    x += side * (rng.uniform(1.5, 4) if rng.random() < 0.6 else 0)
    for z, length, kind in reversed(segments):
        scale = (length / 9, 1, rng.uniform(0.7, 1.3))
        if kind != "building" and rng.random() < 0.5:
            draw_solid(scene, x + side * rng.uniform(10, 16), z + 2, "building", 0, scale)
        if kind != "building" and rng.random() < 0.6:
            draw_figure(scene, x + side * rng.uniform(2.5, 5), z + length, "tree")
        if kind == "bush":
            for step in np.arange(length, 0, -1.5):
                draw_figure(scene, x + side, z + step, "bush")
        if kind in SOLIDS:
            draw_solid(scene, x + side * SOLIDS[kind][0][1][1] / 2, z, kind, 0, scale)


def draw_traffic(scene: Scene, kerbs: tuple[float, float], walks: tuple[float, float]) -> None:
    """Chooses what stands and moves on the road and on the sidewalks, and draws it from far to near."""
    rng = scene.rng
    tints = scene.tints()
    things = []  # (z, function that draws it, x, the function's other arguments)
    for x, odds, reach, yaw in (
        (kerbs[0] + 1.7, (0.18, 0.17, 0.15, 0.42, 0.08), (8, 16), np.pi),
        (kerbs[0] + 4.7, (0.45, 0.25, 0.2, 0, 0.1), (13, 24), 0),
        (kerbs[1] - 1.2, (0.5, 0.2, 0.2, 0, 0.1), (8, 18), 0),
    ):
        z = rng.uniform(*reach)
        kind = rng.choice(("car", "truck", "bus", "train", ""), p=odds)
        turn = np.pi / 2 * rng.choice((-1, 1)) if rng.random() < 0.12 else rng.normal(0, 0.05)
        if kind == "train":
            rails = [(strip(x + side - 0.1, x + side + 0.1), tints["steel"]) for side in (-0.72, 0.72)]
            scene.add("rail track", [(strip(x - 1, x + 1), tints["dark asphalt"]), *rails])
        else:
            yaw += turn
        count = 0
        if kind == "car":
            count = rng.integers(1, 4)
        elif kind:
            count = 1
        things += [(z + 7 * step, draw_solid, x, kind, yaw) for step in range(count)]
    for cycle in ("bicycle", "motorcycle"):
        if rng.random() < 0.5:
            things.append((rng.uniform(5, 11), draw_figure, rng.uniform(kerbs[0] + 1, kerbs[1]), cycle, "rider"))
        if rng.random() < 0.35:
            things.append((rng.uniform(7, 13), draw_figure, rng.choice(walks) * 0.9, cycle))
    furniture = (("lamp",), ("post", "traffic light"), ("post", "traffic sign")) * 2 + (("tree",), ("static",))
    for names, side in zip(furniture, rng.integers(0, 2, len(furniture)), strict=True):
        if rng.random() < 0.6:
            draw = draw_solid if names[0] in SOLIDS else draw_figure
            things.append((rng.uniform(7, 20), draw, kerbs[side] + 0.5 * (2 * side - 1), *names))
    for side in rng.integers(0, 2, rng.integers(2, 8)):
        x = kerbs[side] + rng.random() * (walks[side] - kerbs[side])
        things.append((rng.uniform(5, 16), draw_figure, x, "person"))
    for z, draw, x, *more in sorted(things, key=lambda thing: -thing[0]):
        draw(scene, x, z, *more)


def draw_scene(seed: int | tuple[int, ...], height: int, width: int) -> tuple[np.ndarray, list[dict]]:
    """Draws one street scene.

    Returns:
        The image, (height, width, 3) uint8 RGB, and the objects of its polygons.json in painter's order: label and
        polygon, [[x, y], ...] in whole pixels inside the image.
    """
    scene = Scene(np.random.default_rng(seed), height, width)
    rng = scene.rng
    kerbs = (rng.uniform(-7, -5), rng.uniform(3.2, 5.0))
    walks = (kerbs[0] - rng.uniform(1.8, 4), kerbs[1] + rng.uniform(1.8, 4))
    draw_sky(scene)
    for x in rng.uniform(-80, 80, 6):
        draw_solid(scene, x, 100, "building", 0, (1, 1, rng.uniform(0.4, 1.2)))
        draw_figure(scene, x + 8, 90, "bush")
    draw_ground(scene, kerbs, walks)
    for walk, side in zip(walks, (-1, 1), strict=True):
        draw_side(scene, walk, side)
    draw_traffic(scene, kerbs, walks)
    if rng.random() < 0.5:
        bonnet = card(0, 3).at(stroke(0, -2.2, 0, -2.2, 2.8, 24) * (2, 1))
        scene.add("ego vehicle", [(bonnet, scene.tints()["dark paint"])])
    return scene.develop(), scene.objects
