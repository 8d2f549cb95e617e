"""Captions of a scene: several true sentences by different templates, so that consensus between them means something.

Every template mentions part of the truth in its own order. `references` takes a different template for each caption of
an image, `candidate_captions` samples all of them (for the ceiling), `sentences` writes about scenes nobody draws.
Captions are lower case, without punctuation, 5 to 16 words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from raycap.data.scenes.draws import Draws
from raycap.data.scenes.phrases import Phrases, is_plural, with_article
from raycap.data.scenes.world import Scene, Thing, imagine

FEWEST_WORDS, MOST_WORDS = 5, 16


class Core(NamedTuple):
    """ "a red star" + "above a blue circle": what a caption is about, and what is said of it."""

    subject: str
    rest: str


def references(scene: Scene, *, count: int = 5, salt: int | str = "") -> tuple[str, ...]:
    """`count` (up to 6) captions by different templates; another `salt` gives another five of the same scene."""
    draws = Draws("captions", scene.style, scene.seed, scene.scene_id, salt)
    return tuple(write(scene, draws, template) for template in draws.weighted_order(_TEMPLATES)[:count])


def candidate_captions(scene: Scene, *, count: int = 200, salt: int | str = "") -> tuple[str, ...]:
    """Up to `count` different true captions of a scene, from all templates in their usual shares."""
    draws = Draws("candidates", scene.style, scene.seed, scene.scene_id, salt)
    found: dict[str, None] = {}
    for _ in range(4 * count):
        found[write(scene, draws, draws.weighted(_TEMPLATES))] = None
        if len(found) == count:
            break
    return tuple(found)


def sentences(seed: int, number: int, *, style: str = "default") -> Iterator[str]:
    """`number` sentences of the grammar, each about a scene of its own that is never drawn as a picture."""
    for place in range(number):
        scene = imagine(f"sentence-{place}", seed=seed, style=style)
        yield references(scene, count=1)[0]


def write(scene: Scene, draws: Draws, template: Template) -> str:
    """One caption by a template; drawn again while it is too short or too long."""
    caption = ""
    for attempt in range(40):
        details = (("full", 3), ("usual", 5), ("sparse", 2)) if attempt < 20 else (("usual", 1), ("sparse", 1))
        caption = template(Phrases(scene, draws, draws.weighted(details)))
        if FEWEST_WORDS <= len(caption.split()) <= MOST_WORDS:
            return caption
    raise AssertionError(f"no caption of {scene.scene_id} has {FEWEST_WORDS} to {MOST_WORDS} words: {caption!r}")


Template = Callable[[Phrases], str]


def _parts(scene: Scene) -> list[tuple[Thing, ...]]:
    """The things of a scene, alike ones together."""
    if scene.layout == "group":
        return [scene.things]
    if scene.layout == "group_and_one":
        return [scene.things[:-1], scene.things[-1:]]
    return [(thing,) for thing in scene.things]


def _core(words: Phrases) -> Core:
    """The subject and a relation, place or arrangement that is true of it."""
    scene, draws = words.scene, words.draws
    if scene.layout == "one":
        return Core(words.thing(scene.things[0]), words.place(scene.things[0]))
    if scene.layout == "inside":
        inner, outer = scene.things
        return Core(words.thing(inner), f"{words.inside()} {words.thing(outer)}")
    if scene.layout == "group":
        subject = words.alike(scene.things)
        arranged = subject.startswith(("a row", "a column"))
        return Core(subject, words.behind() if arranged else words.arrangement())
    if scene.layout == "trio" and scene.arrangement != "scattered" and draws.chance(60):
        left, middle, right = scene.things
        return Core(words.thing(middle), f"between {words.thing(left)} and {words.thing(right)}")
    first, second = draws.shuffled(_parts(scene))[:2]
    return Core(words.nouns(first), f"{words.relation(first, second)} {words.nouns(second)}")


def _listing(words: Phrases) -> str:
    """The things joined by "and", mostly the largest first."""
    parts = sorted(_parts(words.scene), key=lambda part: (-part[0].radius, part[0].x))
    if len(parts) > 1 and words.draws.chance(25):
        parts = words.draws.shuffled(parts)
    phrases = [words.nouns(part) for part in parts]
    if len(phrases) == 3:
        return f"{phrases[0]} with {phrases[1]} and {phrases[2]}"
    return " and ".join(phrases)


def _with_background(words: Phrases, caption: str, percent: int) -> str:
    """Adds the background to some captions that do not name it yet."""
    behind = words.behind()
    return f"{caption} {behind}" if words.draws.chance(percent) and behind not in caption else caption


def _there_is(words: Phrases) -> str:
    subject, rest = _core(words) if words.draws.chance(60) else Core(_listing(words), words.behind())
    verb = "are" if is_plural(subject) else "is"
    return _with_background(words, f"there {verb} {subject} {rest}", 15)


def _picture_of(words: Phrases) -> str:
    picture, draws = words.picture(), words.draws
    about = " ".join(_core(words)) if draws.chance(45) else _listing(words)
    one = with_article(picture)
    lead = draws.weighted(((f"{one} of", 6), (f"the {picture} shows", 3), (f"{one} with", 1)))
    return _with_background(words, f"{lead} {about}", 40)


def _plain(words: Phrases) -> str:
    return _with_background(words, " ".join(_core(words)), 45)


def _verb(words: Phrases) -> str:
    subject, rest = _core(words)
    ongoing = words.draws.chance(45)
    verb = words.verb(plural=is_plural(subject), ongoing=ongoing)
    return _with_background(words, f"{subject} {verb} {rest}", 30)


def _background_first(words: Phrases) -> str:
    about = _listing(words) if words.draws.chance(60) else " ".join(_core(words))
    return f"{words.background()} with {about}"


def _on_background(words: Phrases) -> str:
    """The things and what they are on, without a word about how they lie to each other."""
    about = _listing(words)
    verb = f" {words.verb(plural=True, ongoing=True)}" if words.draws.chance(25) else ""
    return f"{about}{verb} {words.behind()}"


def _counting(words: Phrases) -> str:
    scene, draws = words.scene, words.draws
    count = len(scene.things)
    if scene.layout == "one":
        noun = words.thing(scene.things[0]).split(" ", 1)[1]
        return f"{draws.pick(('only one', 'a single', 'just one'))} {noun} {words.behind()}"
    colors = sorted({thing.color for thing in scene.things})
    about = words.any_shapes(count)
    if len(colors) == 1:
        about = about.replace(" ", f" {colors[0]} ", 1)
    elif len({thing.shape for thing in scene.things}) == count and draws.chance(35):
        about = about.replace(" ", " different ", 1)
    if scene.layout == "inside" and len(colors) == 2 and draws.chance(60):
        return f"{about} with the {scene.things[0].color} one inside the {scene.things[1].color} one"
    single = [part[0] for part in _parts(scene) if len(part) == 1]
    if single and draws.chance(45):
        return f"{about} and one of them is {words.thing(draws.pick(single))}"
    return f"{about} {draws.pick(('can be seen ', ''))}{words.behind()}"


def _container(words: Phrases) -> str:
    """Only of `inside`; elsewhere it is the plain template."""
    if words.scene.layout != "inside":
        return _plain(words)
    inner, outer = words.scene.things
    joined = words.draws.weighted((("around", 3), ("that contains", 2), ("with", 4)))
    ending = " inside it" if joined == "with" else ""
    return _with_background(words, f"{words.thing(outer)} {joined} {words.thing(inner)}{ending}", 35)


_TEMPLATES: tuple[tuple[Template, int], ...] = (
    (_plain, 6),
    (_there_is, 6),
    (_picture_of, 5),
    (_verb, 5),
    (_on_background, 5),
    (_background_first, 4),
    (_counting, 2),
    (_container, 2),
)
