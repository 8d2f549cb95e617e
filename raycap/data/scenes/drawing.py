"""A scene as pixels, in whole numbers only, so that every machine draws the same ones.

A thing's shape is a test on points (u, v), its own coordinates with 4096 to the radius; a pixel's coverage is counted
on a 3 x 3 grid inside it. Then light falls unevenly and the camera adds grain: perception should not be trivial.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from raycap.data.scenes import world
from raycap.data.scenes.backgrounds import draw_background
from raycap.data.scenes.draws import Draws
from raycap.data.scenes.styles import Rgb, find_style
from raycap.data.scenes.world import Scene, Thing

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
UNIT = 4096
GRID = 3
SIDE = 64
JITTER_DEGREES = 12


def draw(scene: Scene, *, side: int = SIDE) -> NDArray[np.uint8]:
    """The picture, uint8 [side, side, 3]."""
    style = find_style(scene.style)
    draws = Draws("drawing", scene.style, scene.seed, scene.scene_id)
    canvas = draw_background(scene, style, side, draws)
    previous: Thing | None = None
    color: Rgb = (0, 0, 0)
    for thing in reversed(scene.things):  # the inner thing of `inside` comes first and lies on top
        if previous is None or (thing.shape, thing.color) != (previous.shape, previous.color):
            color = _varied(style.palette[thing.color], draws)
        _paint(canvas, thing, color, draws)
        previous = thing
    return _photograph(canvas, style.grain, style.grain_cell, draws)


def _varied(color: Rgb, draws: Draws) -> Rgb:
    red, green, blue = (min(max(value + draws.between(-16, 16), 0), 255) for value in color)
    return red, green, blue


def _paint(canvas: Ints, thing: Thing, color: Rgb, draws: Draws) -> None:
    """Adds one thing to the canvas, int64 [side, side, 3], in place."""
    side = canvas.shape[0]
    top, bottom = _pixels(thing.y, thing.radius, side)
    left, right = _pixels(thing.x, thing.radius, side)
    across, down = _own(thing.x, thing.radius, left, right, side), _own(thing.y, thing.radius, top, bottom, side)
    turned_u, turned_v = _turn(across[None, :], down[:, None], _angle(thing, draws))
    inside = _INSIDE[thing.shape](turned_u, turned_v)
    marked = inside & _TEXTURE[thing.texture](turned_u, turned_v)
    whole, part = _count(inside), _count(marked)
    patch = canvas[top:bottom, left:right]
    for channel, (value, mark) in enumerate(zip(color, _mark_color(color), strict=True)):
        covered = patch[..., channel] * (GRID * GRID - whole) + value * (whole - part) + mark * part
        patch[..., channel] = covered // (GRID * GRID)


def _pixels(centre: int, radius: int, side: int) -> tuple[int, int]:
    """First and last pixel (exclusive) that a thing may touch, turned corners included."""
    reach = radius * 3 // 2
    return max((centre - reach) * side // 1000, 0), min((centre + reach) * side // 1000 + 1, side)


def _own(centre: int, radius: int, start: int, stop: int, side: int) -> Ints:
    """The sample points' coordinates along one axis in the thing's units, int64 [(stop - start) * GRID]."""
    samples = np.arange(start * GRID, stop * GRID, dtype=np.int64)
    thousandths_64 = (2 * samples + 1) * 32000 // (side * GRID)
    return (thousandths_64 - centre * 64) * UNIT // (radius * 64)


def _count(inside: Bools) -> Ints:
    """Samples inside each pixel, 0 to GRID * GRID, int64 [height, width]."""
    height, width = inside.shape[0] // GRID, inside.shape[1] // GRID
    return inside.reshape(height, GRID, width, GRID).sum(axis=(1, 3), dtype=np.int64)


def _angle(thing: Thing, draws: Draws) -> int:
    quarter = draws.below(4) * 90 if thing.shape in ("arrow", "crescent") else 0
    return quarter + draws.between(-JITTER_DEGREES, JITTER_DEGREES)


def _turn(u: Ints, v: Ints, degrees: int) -> tuple[Ints, Ints]:
    # Rounded to 1/4096: far coarser than the last bits in which mathematics libraries differ.
    cosine, sine = round(UNIT * math.cos(math.radians(degrees))), round(UNIT * math.sin(math.radians(degrees)))
    return (u * cosine + v * sine) // UNIT, (v * cosine - u * sine) // UNIT


def _mark_color(color: Rgb) -> Rgb:
    """The colour of stripes and dots: darker on light things, lighter on dark ones."""
    light = sum(color) > 330
    red, green, blue = (value * 5 // 11 if light else value + (255 - value) * 6 // 10 for value in color)
    return red, green, blue


def _photograph(canvas: Ints, grain: tuple[int, int], cell: int, draws: Draws) -> NDArray[np.uint8]:
    """Uneven light over the canvas, then grain in cells of `cell` pixels."""
    side = canvas.shape[0]
    across, down = draws.between(-45, 45), draws.between(-45, 45)
    ramp = 2 * np.arange(side, dtype=np.int64) + 1 - side
    light = 256 + draws.between(-18, 18) + (ramp[None, :] * across + ramp[:, None] * down) // side
    strength = draws.between(*grain)
    cells = -(-side // cell)
    noise = np.repeat(np.repeat(draws.noise(cells, cells, 3), cell, axis=0), cell, axis=1)[:side, :side]
    return np.clip(canvas * light[..., None] // 256 + noise * strength // 255, 0, 255).astype(np.uint8)


def _polygon(points: list[tuple[int, int]]) -> Callable[[Ints, Ints], Bools]:
    """A test whether (u, v) lies inside the polygon (even-odd rule), exact in whole numbers."""

    def inside(u: Ints, v: Ints) -> Bools:
        found = np.zeros(u.shape, dtype=bool)
        for (x1, y1), (x2, y2) in zip(points, points[1:] + points[:1], strict=True):
            if y1 == y2:
                continue
            left = (u - x1) * (y2 - y1) < (x2 - x1) * (v - y1)
            found ^= ((y1 > v) != (y2 > v)) & (left == (y2 > y1))
        return found

    return inside


def _round(u: Ints, v: Ints, radius: int = UNIT, x: int = 0, y: int = 0) -> Bools:
    return (u - x) ** 2 + (v - y) ** 2 < radius * radius


def _around(radii: list[int], turn: int) -> list[tuple[int, int]]:
    """Points on rays at equal angles, the first at `turn` degrees from upwards; y downwards."""
    points = []
    for number, radius in enumerate(radii):
        angle = math.radians(turn + 360 * number / len(radii))
        points.append((round(radius * math.sin(angle)), round(-radius * math.cos(angle))))
    return points


def _heart(u: Ints, v: Ints) -> Bools:
    lobes = _round(u, v, 2150, -1950, -1350) | _round(u, v, 2150, 1950, -1350)
    return lobes | _polygon([(-3900, -450), (3900, -450), (0, 3900)])(u, v) | ((abs(u) < 1900) & (abs(v + 900) < 600))


_ARM = 1350
_CROSS = [
    (-_ARM, -UNIT), (_ARM, -UNIT), (_ARM, -_ARM), (UNIT, -_ARM), (UNIT, _ARM), (_ARM, _ARM),
    (_ARM, UNIT), (-_ARM, UNIT), (-_ARM, _ARM), (-UNIT, _ARM), (-UNIT, -_ARM), (-_ARM, -_ARM),
]  # fmt: skip
_ARROW = [(-4000, -1200), (400, -1200), (400, -3300), (4000, 0), (400, 3300), (400, 1200), (-4000, 1200)]
_INSIDE: dict[str, Callable[[Ints, Ints], Bools]] = {
    "circle": _round,
    "square": lambda u, v: (abs(u) < 3500) & (abs(v) < 3500),
    "triangle": _polygon([(0, -3800), (4000, 3200), (-4000, 3200)]),
    "star": _polygon(_around([4500, 1850] * 5, 0)),
    "heart": _heart,
    "diamond": lambda u, v: abs(u) * 10 + abs(v) * 7 < UNIT * 7,
    "cross": _polygon(_CROSS),
    "ring": lambda u, v: _round(u, v) & ~_round(u, v, 2450),
    "crescent": lambda u, v: _round(u, v) & ~_round(u, v, 3500, 1900, 0),
    "hexagon": _polygon(_around([UNIT] * 6, 0)),
    "arrow": _polygon(_ARROW),
    "oval": lambda u, v: u * u * 4 + v * v * 11 < 4 * UNIT * UNIT,
}
_TEXTURE: dict[str, Callable[[Ints, Ints], Bools]] = {
    "plain": lambda u, v: np.zeros(u.shape, dtype=bool),
    "striped": lambda u, v: ((u + v + 4 * UNIT) // 1350) % 2 == 0,
    "dotted": lambda u, v: _round((u + 4 * UNIT) % 2100, (v + 4 * UNIT) % 2100, 640, 1050, 1050),
}
assert set(_INSIDE) == set(world.SHAPES)
