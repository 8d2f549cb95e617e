"""The embedded data set: the same everywhere, true, and various."""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raycap.data.input_report import InputReport
from raycap.data.prepare import prepare
from raycap.data.scenes.dataset import draw_scenes, import_scenes, load_truth
from raycap.data.scenes.drawing import draw
from raycap.data.scenes.draws import Draws
from raycap.data.scenes.grammar import candidate_captions, references, sentences
from raycap.data.scenes.oracle import fresh_references, oracle_caption
from raycap.data.scenes.phrases import COUNTS, plural_of
from raycap.data.scenes.styles import STYLES
from raycap.data.scenes.world import Scene, Thing, imagine
from raycap.errors import DataError

PINNED = {
    "default": (
        "4a478ea51dbb639adf147bf391f1544c41d2a682132877e9ea90cf8a0b30590a",
        "28132c5f629c7e725a1fbd971bd34a5884948e746f3fdc368f4e750e1c1ad946",
    ),
    "crayon": (
        "0888113ca1c4007e6f2bccdacf4174dd40cafa9eab5fc84c3375e5e5ce446fc6",
        "446f3ae74f8a5fd2e8a7de00eb6da849e955425288298260c9a1f475db7e24fd",
    ),
}


def some_scenes(number: int, style: str = "default", seed: int = 0) -> list[Scene]:
    return [imagine(f"s{place}", seed=seed, style=style) for place in range(number)]


@pytest.mark.parametrize("style", STYLES)
def test_pixels_and_captions_are_the_same_on_every_machine(style: str) -> None:
    scenes = some_scenes(60, style)
    pixels, words = hashlib.sha256(), hashlib.sha256()
    for scene in scenes:
        pixels.update(draw(scene).tobytes())
        words.update("\n".join(references(scene)).encode())
    assert (pixels.hexdigest(), words.hexdigest()) == PINNED[style]


def test_draws_are_fixed_numbers() -> None:
    draws = Draws("a", 1)
    assert [draws.below(1000) for _ in range(4)] == [686, 275, 676, 686]
    noise = Draws("b").noise(50, 40)
    assert (noise.min() >= -255, noise.max() <= 255, noise.dtype) == (True, True, np.int64)
    assert abs(float(noise.mean())) < 6
    order = Draws("c").weighted_order([("a", 1), ("b", 5), ("c", 1)])
    assert sorted(order) == ["a", "b", "c"]


@pytest.mark.parametrize("style", STYLES)
def test_things_lie_inside_the_picture_and_apart_from_each_other(style: str) -> None:
    for scene in some_scenes(400, style):
        assert 1 <= len(scene.things) <= 4
        for place, thing in enumerate(scene.things):
            assert thing.radius <= thing.x <= 1000 - thing.radius
            assert thing.radius <= thing.y <= 1000 - thing.radius
            for other in scene.things[place + 1 :]:
                apart = max(abs(thing.x - other.x), abs(thing.y - other.y))
                if scene.layout == "inside":
                    assert apart + thing.radius < other.radius * 6 // 10
                else:
                    assert apart > thing.radius + other.radius - 1, scene


def test_every_thing_can_be_seen() -> None:
    for scene in some_scenes(150):
        pixels = draw(scene).astype(int)
        assert pixels.shape == (64, 64, 3)
        for thing in scene.things:
            color = np.array(STYLES["default"].palette[thing.color])
            if thing.shape in ("ring", "crescent") or thing.texture != "plain" or scene.layout == "inside":
                continue
            row, column = thing.y * 64 // 1000, thing.x * 64 // 1000
            middle = pixels[row - 1 : row + 2, column - 1 : column + 2].mean(axis=(0, 1))
            assert abs(middle - color).max() < 80, (scene, middle)


def test_pictures_of_another_side_show_the_same_scene() -> None:
    scene = imagine("s0", seed=0)
    small, large = draw(scene, side=64), draw(scene, side=128)
    shrunk = large.reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert abs(shrunk - small).mean() < 30


def said_things(caption: str, style: str) -> tuple[set[str], set[str]]:
    """(shapes, colours) that a caption names, by a reading of its own; background phrases are taken off first."""
    words = STYLES[style]
    for name in ("starry sky", "red wall", "green grass", "green field", "blue water", "blue waves"):
        caption = caption.replace(name, "")
    caption = re.sub(r"(light |dark )?\w+ and (light |dark )?\w+ (stripes|checkerboard|lines|graph paper)", "", caption)
    caption = re.sub(r"background from (light |dark )?\w+ to (light |dark )?\w+", "", caption)
    caption = re.sub(
        r"(on )?(a )?(plain |fading |shaded |sheet of )*(light |dark )?\w+ (background|paper|sheet)\b", "", caption
    )
    caption = re.sub(r" on (light |dark )?\w+$", "", caption)
    nouns = {noun: shape for shape, nouns in words.shape_words.items() for noun, _ in nouns}
    nouns |= {plural_of(noun): shape for noun, shape in nouns.items()}
    shapes = {shape for noun, shape in nouns.items() if re.search(rf"\b{noun}\b", caption)}
    if "plus" in caption and style == "default":
        shapes |= {"cross"} if "plus sign" in caption else set()
    return shapes, {color for color in words.palette if re.search(rf"\b{color}\b", caption)}


@pytest.mark.parametrize("style", STYLES)
def test_captions_name_only_what_is_there(style: str) -> None:
    for scene in some_scenes(500, style, seed=5):
        for caption in references(scene):
            shapes, colors = said_things(caption, style)
            assert shapes <= {thing.shape for thing in scene.things}, (caption, scene)
            assert colors <= {thing.color for thing in scene.things}, (caption, scene)
            counts = [count for count, word in COUNTS.items() if count > 1 and re.search(rf"\b{word}\b", caption)]
            alike = len(scene.things) - (scene.layout == "group_and_one")
            assert set(counts) <= {len(scene.things), alike}, (caption, scene)


def test_relations_are_true() -> None:
    checked = Counter()
    hows = "to the left of|to the right of|above|below"
    lead = r"^(?:there is )?an? (?P<first>[\w ]+?) (?:is |sits |stands )?"
    pattern = re.compile(rf"{lead}(?P<how>{hows}) an? (?P<second>[\w ]+)$")
    for scene in some_scenes(1500, seed=9):
        if scene.layout != "pair" or len({thing.color for thing in scene.things}) < 2:
            continue
        for caption in references(scene):
            match = pattern.match(caption)
            if not match:
                continue
            found = {}
            for side in ("first", "second"):
                _, colors = said_things(match[side], "default")
                found[side] = [thing for thing in scene.things if thing.color in colors]
            if len(found["first"]) != 1 or len(found["second"]) != 1:
                continue
            first, second = found["first"][0], found["second"][0]
            how = match["how"].removeprefix("to the ").removesuffix(" of")
            assert {
                "left": first.x < second.x, "right": first.x > second.x,
                "above": first.y < second.y, "below": first.y > second.y,
            }[how], (caption, scene)  # fmt: skip
            checked[how] += 1
    assert min(checked[how] for how in ("left", "right", "above", "below")) > 15


@pytest.mark.parametrize("style", STYLES)
def test_captions_are_well_formed(style: str) -> None:
    for scene in some_scenes(300, style, seed=2):
        captions = references(scene)
        assert len(captions) == 5
        assert len(set(captions)) >= 4
        for caption in captions:
            words = caption.split()
            assert re.fullmatch(r"[a-z ]+", caption), caption
            assert 5 <= len(words) <= 16
            for word, following in pairwise(words):
                assert word != following, caption
                assert word != "a" or following[0] not in "aeiou", caption
                assert word != "an" or following[0] in "aeiou", caption
            wrong = r"\bthere is (two|three|four|several)\b|\bthere are an? (?!couple|few)"
            assert not re.search(wrong, caption), caption


def test_singular_and_plural_agree() -> None:
    stems = "sit|stand|float|lie|rest|hang|appear|drift|hover"
    for scene in some_scenes(400, seed=3):
        for caption in references(scene):
            assert not re.search(rf"^(two|three|four) (?:[a-z]+ )+?({stems})s\b", caption), caption
            assert not re.search(rf"^an? (?!couple|few)(?:[a-z]+ )+?({stems}) ", caption), caption


def test_the_vocabulary_is_small_and_used() -> None:
    for style in STYLES:
        counted = Counter(word for caption in sentences(1, 2500, style=style) for word in caption.split())
        assert 100 <= len(counted) <= 210
        assert sum(count >= 3 for count in counted.values()) > 0.9 * len(counted)


def test_different_templates_and_annotators_differ() -> None:
    scene = imagine("s4", seed=0)
    again = references(scene, salt="another five")
    assert references(scene) == references(scene)
    assert set(again) != set(references(scene))
    openings = Counter(" ".join(caption.split()[:2]) for each in some_scenes(200) for caption in references(each))
    assert openings.most_common(1)[0][1] < 0.25 * 1000


def test_sentences_and_candidates() -> None:
    assert list(sentences(4, 5)) == list(sentences(4, 9))[:5]
    assert list(sentences(4, 5)) != list(sentences(5, 5))
    for scene in some_scenes(5):
        candidates = candidate_captions(scene, count=40)
        assert len(set(candidates)) == len(candidates) == 40


def overlap(candidates, fresh):
    """Shared bigrams: a stand-in for CIDEr-D."""

    def grams(caption: str) -> Counter[str]:
        words = caption.split()
        return Counter(map(" ".join, pairwise(words)))

    wanted = [grams(reference) for reference in fresh]
    return [sum((grams(each) & other).total() / (1 + len(each.split())) for other in wanted) for each in candidates]


def test_the_oracle_beats_a_random_true_caption() -> None:
    scenes = some_scenes(12)
    oracle = sum(overlap([oracle_caption(scene, overlap, candidates=40)], references(scene))[0] for scene in scenes)
    random = sum(overlap([candidate_captions(scene, count=1)[0]], references(scene))[0] for scene in scenes)
    assert oracle > 1.1 * random
    assert len(fresh_references(scenes[0], sets=3)) == 15


def test_a_thing_in_json_comes_back() -> None:
    scene = imagine("s3", seed=1)
    assert Scene.from_json(scene.to_json()) == scene
    assert isinstance(scene.things[0], Thing)


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    draw_scenes(tmp_path / "scenes", num_train=20, num_dev=4, num_test=6, unlabelled_share=0.5, seed=3)
    return tmp_path / "scenes"


def test_the_drawn_folder_comes_back_through_the_importer(drawn: Path, tmp_path: Path) -> None:
    report = InputReport()
    records = import_scenes(drawn, report=report)
    report.raise_if_refused()
    assert Counter(record.split for record in records) == {"train": 20, "dev": 4, "test": 6}
    assert sum(not record.captions for record in records) == 10
    assert {len(record.captions) for record in records} == {0, 5}
    truth = load_truth(drawn)
    for record in records:
        assert record.captions in ((), references(truth[record.image_id]))
        with Image.open(record.path) as picture:
            assert picture.info == {}
            assert (np.asarray(picture) == draw(truth[record.image_id])).all()
    dataset = prepare(records, tmp_path / "out", report=report)
    assert len(dataset.labelled_ids()) == 9
    assert len(dataset.captioner_ids()) == 19
    assert [record.split for record in import_scenes(drawn, splits={"dev"}, report=report)] == ["dev"] * 4


def test_a_larger_set_holds_the_pictures_of_a_smaller_one(drawn: Path, tmp_path: Path) -> None:
    draw_scenes(tmp_path / "larger", num_train=30, num_dev=4, num_test=6, unlabelled_share=0.2, seed=3)
    for path in (drawn / "images").iterdir():
        assert path.read_bytes() == (tmp_path / "larger" / "images" / path.name).read_bytes()


def test_drawing_again_does_nothing_and_goes_on_where_it_was(drawn: Path) -> None:
    asked = {"num_train": 20, "num_dev": 4, "num_test": 6, "unlabelled_share": 0.5, "seed": 3}
    before = {path.name: path.stat().st_mtime_ns for path in drawn.rglob("*")}
    draw_scenes(drawn, **asked)
    assert {path.name: path.stat().st_mtime_ns for path in drawn.rglob("*")} == before
    (drawn / "scenes.json").unlink()
    (drawn / "images" / "test_00001.png").unlink()
    with pytest.raises(DataError, match="no finished set of scenes"):
        import_scenes(drawn, report=InputReport())
    draw_scenes(drawn, **asked)
    assert (drawn / "images" / "train_00000.png").stat().st_mtime_ns == before["train_00000.png"]
    assert len(import_scenes(drawn, report=InputReport())) == 30


def test_another_seed_or_style_draws_others(drawn: Path, tmp_path: Path) -> None:
    pictures = {(drawn / "images" / "train_00000.png").read_bytes()}
    for options in ({"seed": 4}, {"style": "crayon", "seed": 3}):
        draw_scenes(tmp_path / "other", num_train=1, num_dev=0, num_test=0, **options)
        pictures.add((tmp_path / "other" / "images" / "train_00000.png").read_bytes())
    assert len(pictures) == 3


def test_impossible_sets_name_their_keys(tmp_path: Path) -> None:
    sizes = {"num_train": 1, "num_dev": 0, "num_test": 0}
    with pytest.raises(DataError, match=r"data\.scenes\.style = 'oil'.*default, crayon"):
        draw_scenes(tmp_path, **sizes, style="oil")
    with pytest.raises(DataError, match=r"data\.scenes\.num_test = -1"):
        draw_scenes(tmp_path, **{**sizes, "num_test": -1})
    with pytest.raises(DataError, match=r"data\.scenes\.unlabelled_share = 1\.5"):
        draw_scenes(tmp_path, **sizes, unlabelled_share=1.5)
    draw_scenes(tmp_path, **sizes)
    with pytest.raises(DataError, match=r"data\.scenes\.num_dev = 0"):
        import_scenes(tmp_path, splits={"dev"}, report=InputReport())


def test_a_hundred_scenes_take_well_under_two_seconds(tmp_path: Path) -> None:
    started = time.process_time()
    draw_scenes(tmp_path, num_train=100, num_dev=0, num_test=0)
    assert time.process_time() - started < 2
