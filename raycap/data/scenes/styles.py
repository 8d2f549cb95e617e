"""Colours and words of a style. The look and the wording differ between styles, the grammar does not.

Words come as (text, weight): annotators differ, and some words are more usual than others.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from raycap.errors import DataError

Rgb = tuple[int, int, int]
Words = tuple[tuple[str, int], ...]

SHAPES = (
    "circle", "square", "triangle", "star", "heart", "diamond", "cross", "ring", "crescent", "hexagon", "arrow", "oval",
)  # fmt: skip
SIZES = ("small", "medium", "big")
TEXTURES = ("plain", "striped", "dotted")


@dataclass(frozen=True)
class BackgroundWords:
    """How a background is said: `where` after a thing ("on the grass"), `what` by itself ("a grassy field").

    `{c}` and `{d}` stand for the background's colours. `verbs` say how things are there (sits, floats).
    """

    where: Words
    what: Words
    verbs: tuple[str, ...] = ("sit", "stand")


@dataclass(frozen=True)
class Style:
    """Everything that makes one style. `grain` is the strength of the noise, 0 to 255."""

    name: str
    palette: dict[str, Rgb]
    background_palette: dict[str, Rgb]
    shape_words: dict[str, Words]
    size_words: dict[str, Words]
    texture_words: dict[str, Words]
    any_shape: Words
    pictures: Words
    backgrounds: dict[str, tuple[int, BackgroundWords]] = field(repr=False)
    grain: tuple[int, int] = (8, 20)
    grain_cell: int = 1


_GRASS = BackgroundWords(
    (("on the grass", 4), ("on green grass", 2), ("in a grassy field", 2), ("in a green field", 1)),
    (("a grassy field", 3), ("green grass", 2), ("a green field", 1)),
    ("sit", "lie", "rest"),
)
_NIGHT = BackgroundWords(
    (("in the night sky", 4), ("in a starry sky", 2), ("in a dark sky", 2), ("at night", 1)),
    (("a night sky", 3), ("a starry sky", 2), ("a dark sky", 1)),
    ("float", "hover", "hang"),
)
_BRICK = BackgroundWords(
    (("on a brick wall", 4), ("in front of a brick wall", 2), ("against a brick wall", 2), ("on a red wall", 1)),
    (("a brick wall", 4), ("a wall of bricks", 1)),
    ("hang",),
)
_WATER = BackgroundWords(
    (("on the water", 3), ("in the water", 3), ("on blue waves", 1), ("in the sea", 2)),
    (("blue water", 2), ("the sea", 2), ("blue waves", 1)),
    ("float", "drift"),
)
_SAND = BackgroundWords(
    (("on the sand", 4), ("on a sandy beach", 2), ("on the beach", 2)),
    (("a sandy beach", 3), ("the sand", 1), ("a beach", 1)),
    ("lie", "rest"),
)
_WOOD = BackgroundWords(
    (("on a wooden floor", 4), ("on wooden boards", 2), ("on a wooden table", 2)),
    (("a wooden floor", 3), ("a wooden table", 2)),
    ("lie", "rest"),
)
_PLAIN = BackgroundWords(
    (("on a {c} background", 5), ("against a {c} background", 2), ("on a plain {c} background", 2), ("on {c}", 1)),
    (("a {c} background", 4), ("a plain {c} background", 2)),
    ("sit", "stand", "appear"),
)
_STRIPED = BackgroundWords(
    (("on a striped background", 3), ("on {c} and {d} stripes", 3), ("over {c} and {d} stripes", 1)),
    (("a striped background", 2), ("{c} and {d} stripes", 2)),
    ("sit", "stand", "appear"),
)
_CHECKERED = BackgroundWords(
    (("on a checkered background", 3), ("on a {c} and {d} checkerboard", 2), ("on a checkerboard", 2)),
    (("a checkered background", 2), ("a {c} and {d} checkerboard", 2)),
    ("sit", "stand", "lie"),
)
_GRADIENT = BackgroundWords(
    (("on a fading {c} background", 3), ("on a background from {c} to {d}", 2), ("on a shaded background", 1)),
    (("a fading {c} background", 2), ("a background from {c} to {d}", 2)),
    ("sit", "stand", "appear"),
)

DEFAULT = Style(
    name="default",
    palette={
        "red": (214, 40, 40), "orange": (245, 130, 32), "yellow": (250, 214, 40), "green": (40, 150, 60),
        "blue": (40, 90, 210), "purple": (130, 50, 170), "pink": (245, 130, 180), "brown": (120, 75, 40),
        "white": (245, 245, 245), "black": (25, 25, 28), "gray": (130, 130, 135),
    },
    background_palette={
        "white": (238, 238, 238), "gray": (160, 160, 160), "black": (30, 30, 32), "light blue": (170, 205, 240),
        "dark blue": (25, 40, 95), "light green": (180, 225, 175), "dark green": (20, 75, 40), "pink": (250, 195, 215),
        "yellow": (245, 230, 140), "purple": (105, 60, 140), "red": (175, 40, 45),
    },
    shape_words={
        "circle": (("circle", 6), ("disc", 2), ("ball", 1)), "square": (("square", 6), ("box", 2)),
        "triangle": (("triangle", 1),), "star": (("star", 1),), "heart": (("heart", 1),),
        "diamond": (("diamond", 1),), "cross": (("cross", 5), ("plus sign", 2)), "ring": (("ring", 4), ("hoop", 1)),
        "crescent": (("crescent", 3), ("moon", 3)), "hexagon": (("hexagon", 1),), "arrow": (("arrow", 1),),
        "oval": (("oval", 4), ("ellipse", 1)),
    },
    size_words={"small": (("small", 5), ("little", 3), ("tiny", 2)), "big": (("big", 5), ("large", 4), ("huge", 1))},
    texture_words={"striped": (("striped", 1),), "dotted": (("spotted", 2), ("dotted", 3))},
    any_shape=(("shape", 3), ("object", 2), ("figure", 1)),
    pictures=(("picture", 5), ("image", 4), ("scene", 1)),
    backgrounds={
        "plain": (9, _PLAIN), "striped": (3, _STRIPED), "checkered": (3, _CHECKERED), "gradient": (3, _GRADIENT),
        "night": (3, _NIGHT), "grass": (3, _GRASS), "brick": (3, _BRICK), "water": (3, _WATER), "sand": (2, _SAND),
        "wood": (2, _WOOD),
    },
)  # fmt: skip

_PAPER = BackgroundWords(
    (("on {c} paper", 4), ("on a sheet of {c} paper", 2)),
    (("a {c} sheet", 1), ("{c} paper", 2)),
)
_LINES = BackgroundWords((("on lined paper", 3), ("on {c} and {d} lines", 1)), (("lined paper", 1),))
_GRAPH = BackgroundWords((("on graph paper", 3), ("on {c} and {d} graph paper", 1)), (("graph paper", 1),))
_SMUDGE = BackgroundWords((("on shaded {c} paper", 2), ("on smudged paper", 2)), (("shaded {c} paper", 1),))

CRAYON = Style(
    name="crayon",
    palette={
        "crimson": (190, 20, 60), "coral": (250, 130, 110), "gold": (225, 170, 20), "olive": (125, 130, 35),
        "teal": (20, 130, 130), "navy": (25, 35, 115), "lilac": (190, 150, 215), "maroon": (105, 20, 35),
        "black": (35, 32, 32), "silver": (180, 182, 188), "mint": (140, 225, 185),
    },
    background_palette={
        "white": (250, 248, 242), "cream": (248, 236, 200), "peach": (252, 212, 185), "navy": (30, 40, 100),
        "silver": (195, 197, 202), "mint": (190, 238, 215), "charcoal": (55, 55, 60),
    },
    shape_words={
        "circle": (("ball", 5), ("circle", 2)), "square": (("block", 5), ("square", 2)),
        "triangle": (("pyramid", 2), ("triangle", 3)), "star": (("star", 1),), "heart": (("heart", 1),),
        "diamond": (("gem", 3), ("diamond", 2)), "cross": (("plus", 3), ("cross", 2)),
        "ring": (("wheel", 4), ("ring", 2)),
        "crescent": (("moon", 4), ("banana", 1)), "hexagon": (("hexagon", 2), ("honeycomb", 1)),
        "arrow": (("arrow", 1),), "oval": (("egg", 4), ("oval", 2)),
    },
    size_words={"small": (("mini", 3), ("tiny", 4), ("small", 2)), "big": (("giant", 4), ("huge", 3), ("big", 2))},
    texture_words={"striped": (("stripy", 2), ("striped", 1)), "dotted": (("dotty", 2), ("dotted", 1))},
    any_shape=(("thing", 3), ("toy", 2)),
    pictures=(("drawing", 5), ("sketch", 3), ("page", 1)),
    backgrounds={
        "plain": (9, _PAPER), "striped": (4, _LINES), "checkered": (4, _GRAPH), "gradient": (3, _SMUDGE),
        "night": (2, _NIGHT), "grass": (2, _GRASS), "water": (2, _WATER), "wood": (2, _WOOD),
    },
    grain=(22, 44),
    grain_cell=2,
)  # fmt: skip

STYLES: dict[str, Style] = {style.name: style for style in (DEFAULT, CRAYON)}


def find_style(name: str) -> Style:
    """The style of that name; raises DataError with the known ones."""
    if name not in STYLES:
        raise DataError("no such style", key="data.scenes.style", value=name, remedy=f"one of {', '.join(STYLES)}")
    return STYLES[name]
