"""Phrases about the parts of one scene: a thing, a group, a place, a relation, the background. True and grammatical.

A `Phrases` is one annotator writing one caption: how much detail they give and which synonym they use is drawn once.
"""

from __future__ import annotations

from collections.abc import Sequence

from raycap.data.scenes.draws import Draws
from raycap.data.scenes.styles import STYLES, Words
from raycap.data.scenes.world import Scene, Thing

COUNTS = {1: "one", 2: "two", 3: "three", 4: "four"}
# Per cent of things whose size, texture and colour are said. As with people, most captions leave most details out, and
# yet most details are in some caption: the likeliest caption of a picture is not the one that agrees best with all.
DETAIL = {"full": (80, 80, 100), "usual": (30, 40, 92), "sparse": (5, 10, 65)}
PLACES = {
    (0, 0): ("in the top left corner", "in the upper left corner", "in the upper left"),
    (1, 0): ("at the top", "near the top", "at the top edge"),
    (2, 0): ("in the top right corner", "in the upper right corner", "in the upper right"),
    (0, 1): ("on the left", "on the left side", "near the left edge"),
    (1, 1): ("in the middle", "in the center", "right in the middle"),
    (2, 1): ("on the right", "on the right side", "near the right edge"),
    (0, 2): ("in the bottom left corner", "in the lower left corner", "in the lower left"),
    (1, 2): ("at the bottom", "near the bottom", "at the bottom edge"),
    (2, 2): ("in the bottom right corner", "in the lower right corner", "in the lower right"),
}
RELATIONS: dict[str, Words] = {
    "left": (("to the left of", 5), ("left of", 3), ("on the left of", 1)),
    "right": (("to the right of", 5), ("right of", 3), ("on the right of", 1)),
    "above": (("above", 6), ("over", 2), ("higher than", 1)),
    "below": (("below", 5), ("under", 3), ("beneath", 1), ("lower than", 1)),
    "near": (("next to", 5), ("beside", 2), ("close to", 2)),
    "far": (("far from", 2), ("away from", 1)),
    "inside": (("inside", 5), ("in the middle of", 3), ("within", 1)),
}
ARRANGEMENTS: dict[str, Words] = {
    "row": (("in a row", 4), ("side by side", 3), ("in a line", 2)),
    "column": (("in a column", 3), ("on top of each other", 2), ("one below the other", 1)),
    "scattered": (("scattered around", 2), ("spread out", 1), ("in different places", 1)),
}
_IRREGULAR = {"box": "boxes", "cross": "crosses", "plus": "pluses"}


class Phrases:
    """One caption's way of speaking about a scene.

    Args:
        detail: full, usual or sparse.
    """

    def __init__(self, scene: Scene, draws: Draws, detail: str = "usual") -> None:
        self.scene, self.draws, self.detail = scene, draws, detail
        self.style = STYLES[scene.style]
        self._words: dict[str, str] = {}

    def word(self, key: str, words: Words) -> str:
        """One of the synonyms, the same one each time in this caption."""
        return self._words.setdefault(key, self.draws.weighted(words))

    def thing(self, thing: Thing) -> str:
        """ "a small striped red star" """
        return with_article(self._noun_phrase(thing, plural=False))

    def alike(self, things: Sequence[Thing]) -> str:
        """ "three small red stars"; "a row of red stars", "a pair of red stars" now and then."""
        nouns = self._noun_phrase(things[0], plural=True)
        count = len(things)
        usual, how_many = COUNTS[count], self.draws.below(100)
        if how_many < 72:
            return f"{usual} {nouns}"
        if count == 2:
            return f"{self.draws.pick(('a pair of', 'a couple of'))} {nouns}"
        if self.scene.arrangement in ("row", "column") and how_many < 88:
            return f"a {self.scene.arrangement} of {self.draws.pick((usual + ' ', ''))}{nouns}"
        return f"{self.draws.pick(('several', 'a few', 'a group of', f'a group of {usual}'))} {nouns}"

    def nouns(self, things: Sequence[Thing]) -> str:
        """A thing or alike things."""
        return self.thing(things[0]) if len(things) == 1 else self.alike(things)

    def _noun_phrase(self, thing: Thing, *, plural: bool) -> str:
        size_share, texture_share, color_share = DETAIL[self.detail]
        words = []
        if thing.size != "medium" and self.draws.chance(size_share):
            words.append(self.word(thing.size, self.style.size_words[thing.size]))
        if thing.texture != "plain" and self.draws.chance(texture_share):
            words.append(self.word(thing.texture, self.style.texture_words[thing.texture]))
        if self.draws.chance(color_share):
            words.append(thing.color)
        general = bool(words) and self.draws.chance(3)
        noun = self.word(
            "any shape" if general else thing.shape,
            self.style.any_shape if general else self.style.shape_words[thing.shape],
        )
        return " ".join([*words, plural_of(noun) if plural else noun])

    def place(self, thing: Thing) -> str:
        """ "in the top left corner", sometimes "of the picture"."""
        column, row = (0 if along < 370 else 1 if along < 630 else 2 for along in (thing.x, thing.y))
        phrase = self.draws.weighted(tuple(zip(PLACES[column, row], (4, 2, 2), strict=True)))
        return f"{phrase} of the {self.picture()}" if self.draws.chance(25) else phrase

    def relation(self, first: Sequence[Thing], second: Sequence[Thing]) -> str:
        """A true relation between two sets of things: "to the left of"."""
        across, across_gap = _apart([(t.x, t.radius) for t in first], [(t.x, t.radius) for t in second])
        down, down_gap = _apart([(t.y, t.radius) for t in first], [(t.y, t.radius) for t in second])
        possible: list[tuple[str, int]] = []
        if across_gap > 0:
            possible.append(("right" if across > 0 else "left", 8 if across_gap > down_gap else 3))
        if down_gap > 0:
            possible.append(("below" if down > 0 else "above", 8 if down_gap > across_gap else 3))
        gap = max(across_gap, down_gap)
        if gap < 170:
            possible.append(("near", 3))
        elif gap > 300:
            possible.append(("far", 1))
        return self.draws.weighted(RELATIONS[self.draws.weighted(possible)])

    def inside(self) -> str:
        return self.draws.weighted(RELATIONS["inside"])

    def arrangement(self) -> str:
        """ "in a row" """
        return self.draws.weighted(ARRANGEMENTS[self.scene.arrangement])

    def behind(self) -> str:
        """The background after a thing: "on the grass"."""
        return self._colored(self.word("where", self.style.backgrounds[self.scene.background][1].where))

    def background(self) -> str:
        """The background by itself: "a grassy field"."""
        return self._colored(self.word("what", self.style.backgrounds[self.scene.background][1].what))

    def verb(self, *, plural: bool, ongoing: bool = False) -> str:
        """How things are there: "sits", "sit", "sitting"."""
        stem = self.draws.pick(self.style.backgrounds[self.scene.background][1].verbs)
        if ongoing:
            return {"sit": "sitting", "lie": "lying"}.get(stem, stem + "ing")
        return stem if plural else stem + "s"

    def picture(self) -> str:
        return self.word("picture", self.style.pictures)

    def any_shapes(self, count: int) -> str:
        """ "two shapes" """
        return f"{COUNTS[count]} {plural_of(self.word('any shape', self.style.any_shape))}"

    def _colored(self, phrase: str) -> str:
        first, second = (*self.scene.background_colors, "", "")[:2]
        return phrase.replace("{c}", first).replace("{d}", second)


def _apart(first: Sequence[tuple[int, int]], second: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """(direction, gap) along one axis: direction > 0 when `first` is further on; gap < 0 when they overlap."""
    low = min(centre - radius for centre, radius in first) - max(centre + radius for centre, radius in second)
    high = min(centre - radius for centre, radius in second) - max(centre + radius for centre, radius in first)
    return (1, low) if low >= high else (-1, high)


def with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plural_of(noun: str) -> str:
    head, space, last = noun.rpartition(" ")
    return head + space + _IRREGULAR.get(last, last + "s")


def is_plural(phrase: str) -> bool:
    """Whether "there are" goes with a phrase: "two stars", "a few stars", but not "a row of stars"."""
    return phrase.startswith(("a couple", "a few")) or not phrase.startswith(("a ", "an "))
