"""What is in a scene: one to four things in a layout, on a background. Places and radii in thousandths of the side.

A scene depends on (style, seed, scene_id) and nothing else: a larger set keeps the pictures of a smaller one.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from raycap.data.scenes.draws import Draws
from raycap.data.scenes.styles import SHAPES, Rgb, Style, find_style

ROOMY = ("circle", "square", "ring", "hexagon", "oval")
RADII = {"small": (90, 108), "medium": (132, 150), "big": (195, 215)}
LAYOUTS = (("one", 20), ("pair", 30), ("inside", 10), ("group", 16), ("group_and_one", 13), ("trio", 11))
NIGHT_SKY, GRASS, BRICK, MORTAR = (16, 20, 52), (70, 150, 60), (160, 75, 58), (205, 195, 185)
WATER, SAND, WOOD = (60, 130, 200), (222, 196, 140), (168, 118, 70)
FIXED_COLORS: dict[str, tuple[Rgb, ...]] = {
    "night": (NIGHT_SKY,), "grass": (GRASS,), "brick": (BRICK,), "water": (WATER,), "sand": (SAND,), "wood": (WOOD,),
}  # fmt: skip
CONTRAST = 165
Place = tuple[int, int]


@dataclass(frozen=True)
class Thing:
    """One coloured shape: centre (x, y) and radius in thousandths of the picture's side, y downwards."""

    shape: str
    color: str
    size: str
    texture: str
    x: int
    y: int
    radius: int


@dataclass(frozen=True)
class Scene:
    """The truth about one picture.

    `layout`: one, pair, inside (things: inner, outer), group (alike things), group_and_one (the one is last) or trio.
    `arrangement`: row, column or scattered. `background_colors`: one or two names of the style's background palette,
    none for backgrounds with their own colour (night, grass ...).
    """

    scene_id: str
    style: str
    seed: int
    layout: str
    arrangement: str
    background: str
    background_colors: tuple[str, ...]
    things: tuple[Thing, ...]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Scene:
        things = tuple(Thing(**thing) for thing in fields["things"])
        return cls(**{**fields, "background_colors": tuple(fields["background_colors"]), "things": things})


def imagine(scene_id: str, *, seed: int, style: str = "default") -> Scene:
    """The scene of that id. Raises DataError for an unknown style."""
    words = find_style(style)
    draws = Draws("scene", style, seed, scene_id)
    background = draws.weighted([(kind, weight) for kind, (weight, _) in words.backgrounds.items()])
    colors = _background_colors(background, words, draws)
    behind = [words.background_palette[name] for name in colors] or list(FIXED_COLORS[background])
    layout = draws.weighted(LAYOUTS)
    arrangement, things = _LAYOUT[layout](words, behind, draws)
    return Scene(scene_id, style, seed, layout, arrangement, background, colors, things)


def _background_colors(background: str, style: Style, draws: Draws) -> tuple[str, ...]:
    if background in FIXED_COLORS:
        return ()
    names = draws.shuffled(list(style.background_palette))
    if background == "plain":
        return (names[0],)
    first = style.background_palette[names[0]]
    other = next(name for name in names[1:] if distance(first, style.background_palette[name]) >= 120)
    return names[0], other


def distance(one: Rgb, other: Rgb) -> int:
    """Sum of absolute differences of two colours, 0 to 765."""
    return sum(abs(a - b) for a, b in zip(one, other, strict=True))


def _color(style: Style, behind: list[Rgb], draws: Draws, avoid: tuple[str, ...] = ()) -> str:
    """A colour that can be told from the background."""
    palette = style.palette
    seen = [name for name in palette if min(distance(palette[name], rgb) for rgb in behind) >= CONTRAST]
    return draws.pick([name for name in seen if name not in avoid] or seen or list(palette))


def _texture(size: str, draws: Draws) -> str:
    return "plain" if size == "small" or not draws.chance(22) else draws.pick(("striped", "dotted"))


def _thing(
    style: Style,
    behind: list[Rgb],
    draws: Draws,
    size: str,
    place: Place,
    avoid: tuple[Thing, ...] = (),
    jitter: int = 35,
) -> Thing:
    """A thing near `place`, wholly inside the picture, of another shape or another colour than those in `avoid`."""
    radius = draws.between(*RADII[size])
    x, y = _near(place, jitter, radius, draws)
    usual = [shape for shape in SHAPES if all(shape != other.shape for other in avoid)]
    shape = draws.pick(SHAPES if draws.chance(20) else usual)
    taken = tuple(other.color for other in avoid if other.shape == shape or draws.chance(70))
    return Thing(shape, _color(style, behind, draws, taken), size, _texture(size, draws), x, y, radius)


def _near(place: Place, jitter: int, radius: int, draws: Draws) -> Place:
    margin = radius + 15
    x, y = (min(max(along + draws.between(-jitter, jitter), margin), 1000 - margin) for along in place)
    return x, y


def _one(style: Style, behind: list[Rgb], draws: Draws) -> tuple[str, tuple[Thing, ...]]:
    size = draws.weighted((("small", 3), ("medium", 3), ("big", 4)))
    return "scattered", (
        _thing(style, behind, draws, size, (draws.pick((190, 500, 810)), draws.pick((190, 500, 810)))),
    )


def _pair(style: Style, behind: list[Rgb], draws: Draws) -> tuple[str, tuple[Thing, ...]]:
    sizes = draws.pick((("small", "big"), ("big", "small"), ("medium", "medium"), ("small", "small"), ("medium", "big"),
                        ("big", "medium"), ("small", "medium")))  # fmt: skip
    arrangement = draws.weighted((("row", 5), ("column", 5), ("scattered", 3)))
    apart = draws.pick((480, 560))
    near, far = 500 - apart // 2, 500 + apart // 2
    across = draws.between(260, 740)
    places = {
        "row": ((near, across), (far, across)),
        "column": ((across, near), (across, far)),
        "scattered": ((near, 260), (far, 740)) if draws.chance(50) else ((near, 740), (far, 260)),
    }[arrangement]
    first = _thing(style, behind, draws, sizes[0], places[0])
    return arrangement, (first, _thing(style, behind, draws, sizes[1], places[1], avoid=(first,)))


def _inside(style: Style, behind: list[Rgb], draws: Draws) -> tuple[str, tuple[Thing, ...]]:
    shape, radius = draws.pick(ROOMY), draws.between(310, 350)
    x, y = draws.between(420, 580), draws.between(420, 580)
    outer = Thing(shape, _color(style, behind, draws), "big", "plain", x, y, radius)
    around = [style.palette[outer.color]] if shape != "ring" else [style.palette[outer.color], *behind]
    inner = _thing(style, around, draws, "small", (x, y), avoid=(outer,), jitter=30)
    return "inside", (inner, outer)


def _alike(style: Style, behind: list[Rgb], draws: Draws, size: str, places: list[Place]) -> tuple[Thing, ...]:
    """Things that differ in nothing but their place."""
    first = _thing(style, behind, draws, size, places[0])
    moved = [_near(place, 8, first.radius, draws) for place in places]
    return tuple(replace(first, x=x, y=y) for x, y in moved)


def _places(count: int, arrangement: str, across: int, draws: Draws) -> list[Place]:
    step = {2: 450, 3: 325, 4: 235}[count]
    along = [500 + step * place - step * (count - 1) // 2 for place in range(count)]
    if arrangement == "row":
        return [(place, across) for place in along]
    if arrangement == "column":
        return [(across, place) for place in along]
    corners = draws.shuffled([(250, 240), (750, 270), (270, 750), (740, 740)])
    return corners[:count]


def _group(style: Style, behind: list[Rgb], draws: Draws) -> tuple[str, tuple[Thing, ...]]:
    count = draws.weighted(((2, 3), (3, 4), (4, 3)))
    arrangement = draws.weighted((("row", 4), ("column", 3), ("scattered", 3 if count > 2 else 0)))
    size = draws.pick({2: ("small", "medium", "big"), 3: ("small", "medium"), 4: ("small",)}[count])
    return arrangement, _alike(style, behind, draws, size, _places(count, arrangement, draws.between(280, 720), draws))


def _group_and_one(style: Style, behind: list[Rgb], draws: Draws) -> tuple[str, tuple[Thing, ...]]:
    count = draws.pick((2, 2, 3))
    arrangement = draws.pick(("row", "column"))
    across, other = draws.pick(((230, 740), (770, 260)))
    group = _alike(style, behind, draws, "small", _places(count, arrangement, across, draws))
    place = (draws.between(400, 600), other) if arrangement == "row" else (other, draws.between(400, 600))
    size = draws.pick(("small", "medium", "big"))
    return arrangement, (*group, _thing(style, behind, draws, size, place, avoid=group[:1]))


def _trio(style: Style, behind: list[Rgb], draws: Draws) -> tuple[str, tuple[Thing, ...]]:
    arrangement = draws.pick(("row", "column", "scattered"))
    sizes = draws.pick((("small", "medium", "small"), ("small", "small", "small"), ("medium", "small", "medium")))
    things: tuple[Thing, ...] = ()
    for size, place in zip(sizes, _places(3, arrangement, draws.between(330, 670), draws), strict=True):
        things += (_thing(style, behind, draws, size, place, avoid=things, jitter=15),)
    return arrangement, things


_LAYOUT = {
    "one": _one,
    "pair": _pair,
    "inside": _inside,
    "group": _group,
    "group_and_one": _group_and_one,
    "trio": _trio,
}
