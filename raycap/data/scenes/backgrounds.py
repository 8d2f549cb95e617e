"""What is behind the things: colours and patterns, night sky, grass, bricks, water, sand, wood. Whole numbers only."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from raycap.data.scenes import world
from raycap.data.scenes.draws import Draws
from raycap.data.scenes.styles import Rgb, Style
from raycap.data.scenes.world import Scene

Ints = NDArray[np.int64]


def draw_background(scene: Scene, style: Style, side: int, draws: Draws) -> Ints:
    """The picture without its things, int64 [side, side, 3], values 0 to 255."""
    named = [style.background_palette[name] for name in scene.background_colors]
    colors = named or list(world.FIXED_COLORS[scene.background])
    # y [side, 1] and x [1, side]: pixel centres in thousandths of the side
    along = (2 * np.arange(side, dtype=np.int64) + 1) * 500 // side
    canvas = _DRAWN[scene.background](colors, along[None, :], along[:, None], draws)
    shift = np.array([draws.between(-10, 10) for _ in range(3)], dtype=np.int64)
    return np.clip(canvas + shift, 0, 255)


def _mixed(first: Rgb, second: Rgb, share: Ints) -> Ints:
    """`share` of the second colour in 256ths, [side, side] to [side, side, 3]."""
    one, two = np.array(first, dtype=np.int64), np.array(second, dtype=np.int64)
    return (one * (256 - share[..., None]) + two * share[..., None]) // 256


def _square(x: Ints, y: Ints) -> Ints:
    """Zeros [side, side] for the axes x [1, side] and y [side, 1]."""
    return np.zeros((y.shape[0], x.shape[1]), dtype=np.int64)


def _plain(colors: list[Rgb], x: Ints, y: Ints, draws: Draws) -> Ints:
    return _mixed(colors[0], colors[0], _square(x, y))


def _striped(colors: list[Rgb], x: Ints, y: Ints, draws: Draws) -> Ints:
    slope = draws.pick(((1, 0), (0, 1), (1, 1)))
    width = draws.between(80, 125)
    return _mixed(colors[0], colors[1], (x * slope[0] + y * slope[1]) // width % 2 * 256)


def _checkered(colors: list[Rgb], x: Ints, y: Ints, draws: Draws) -> Ints:
    width = draws.between(110, 170)
    return _mixed(colors[0], colors[1], (x // width + y // width) % 2 * 256)


def _gradient(colors: list[Rgb], x: Ints, y: Ints, draws: Draws) -> Ints:
    share = draws.pick((x, y)) * 256 // 1000
    return _mixed(colors[0], colors[1], _square(x, y) + share)


def _night(colors: list[Rgb], x: Ints, y: Ints, draws: Draws) -> Ints:
    canvas = _mixed(colors[0], (44, 40, 92), _square(x, y) + y * 200 // 1000)
    side = canvas.shape[0]
    for _ in range(side * side // 110):
        canvas[draws.below(side), draws.below(side)] = draws.between(150, 255)
    return canvas


def _grass(colors: list[Rgb], x: Ints, y: Ints, draws: Draws) -> Ints:
    side = _square(x, y).shape[0]
    blades = draws.noise(-(-side // 4), side)
    return _shaded(colors[0], np.repeat(blades, 4, axis=0)[:side], 55)


def _brick(colors: list[Rgb], x: Ints, y: Ints, draws: Draws) -> Ints:
    height, width = 125, 250
    row = y // height
    mortar = (y % height < 18) | ((x + row % 2 * width // 2) % width < 18)
    bricks = _shaded(colors[0], draws.noise(16, 16)[row % 16, (x + row % 2 * width // 2) // width % 16], 30)
    return np.where(mortar[..., None], np.array(world.MORTAR, dtype=np.int64), bricks)


def _water(colors: list[Rgb], x: Ints, y: Ints, draws: Draws) -> Ints:
    wave = abs((x + draws.below(400)) % 250 - 125) // 3
    band = (y + wave) % 125
    return _shaded(colors[0], (band < 28) * 150 - (band > 90) * 90 + _square(x, y), 70)


def _sand(colors: list[Rgb], x: Ints, y: Ints, draws: Draws) -> Ints:
    return _shaded(colors[0], draws.noise(*_square(x, y).shape), 42)


def _wood(colors: list[Rgb], x: Ints, y: Ints, draws: Draws) -> Ints:
    side = _square(x, y).shape[0]
    grain = np.repeat(draws.noise(side, -(-side // 8)), 8, axis=1)[:, :side]
    boards = draws.noise(16, 1)[y // 200 % 16, 0]
    edge = (y % 200 < 17) * 200
    return _shaded(colors[0], grain // 2 + boards // 2 - edge, 45)


def _shaded(color: Rgb, strength: Ints, amount: int) -> Ints:
    """A colour lighter or darker by strength (-255 to 255) x amount / 255, the same for its three channels."""
    return np.clip(np.array(color, dtype=np.int64) + (strength * amount // 255)[..., None], 0, 255)


_DRAWN: dict[str, Callable[[list[Rgb], Ints, Ints, Draws], Ints]] = {
    "plain": _plain, "striped": _striped, "checkered": _checkered, "gradient": _gradient, "night": _night,
    "grass": _grass, "brick": _brick, "water": _water, "sand": _sand, "wood": _wood,
}  # fmt: skip
