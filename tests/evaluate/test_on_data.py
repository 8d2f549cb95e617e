"""A split of any data set: checked like a run's own, captioned in one pass, scored as `raycap score` scores."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from raycap.data.images import ImageMissing
from raycap.errors import DataError
from raycap.evaluate.on_data import Split, evaluate_system, evaluation_report, read_split, result_rows
from raycap.evaluate.report import render_report
from raycap.evaluate.system import System
from raycap.metrics.score import score_captions
from tests.tiny_run import TinyRun


@pytest.fixture(scope="module")
def system(tiny_run: TinyRun) -> System:
    return System.open(tiny_run.stage, "cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """folder({"a.png": ["caption", ...]}) makes pictures with a .txt of captions beside each."""

    def make(captions: dict[str, list[str]]) -> Path:
        root = tmp_path / "mine"
        root.mkdir()
        for number, (name, lines) in enumerate(captions.items()):
            Image.new("RGB", (70 + number, 64), (40 * number, 100, 200)).save(root / name)
            if lines:
                (root / name).with_suffix(".txt").write_text("\n".join(lines))
        return root

    return make


def test_a_split_has_pictures_and_references_in_order(tiny_run: TinyRun) -> None:
    split = read_split(tiny_run.scenes, split="test")
    assert (split.name, split.format) == ("test", "scenes")
    assert list(split.paths) == list(split.references) == [f"test_{number:05d}" for number in range(7)]
    assert all(path.is_absolute() and path.is_file() for path in split.paths.values())
    entries = [json.loads(line) for line in (tiny_run.scenes / "captions.jsonl").read_text().splitlines()]
    assert {e["image_id"]: tuple(e["captions"]) for e in entries if e["split"] == "test"} == split.references


def test_all_is_every_split(tiny_run: TinyRun) -> None:
    names = [image_id.split("_")[0] for image_id in read_split(tiny_run.scenes, split="all").paths]
    assert [names.count(split) for split in ("train", "dev", "test")] == [4, 2, 7]


def test_evaluating_leaves_the_data_set_alone(tiny_run: TinyRun) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_run.scenes.rglob("*")}
    read_split(tiny_run.scenes, split="test")
    assert {path: path.stat().st_mtime_ns for path in tiny_run.scenes.rglob("*")} == before


def test_a_picture_without_a_caption_is_a_fault_here(folder) -> None:
    root = folder({"a.png": ["a dog", "the dog"], "b.png": [], "c.png": ["a cat"]})
    with pytest.raises(DataError, match=r"1 image_without_caption \[b\.png") as caught:
        read_split(root, split="all")
    assert "all of them" not in str(caught.value)  # a file in a folder that is gone helps nobody
    split = read_split(root, split="all", skip=["image_without_caption"])
    assert list(split.paths) == ["a.png", "c.png"]
    assert split.report.summary() == "skipped 1 image_without_caption"


def test_nothing_to_score_is_refused(folder) -> None:
    root = folder({"a.png": [], "b.png": []})
    with pytest.raises(DataError, match=r"none of its 2 images has a caption.*raycap caption"):
        read_split(root, split="all", skip="all")
    (root / "captions.csv").write_text("image,caption,split\na.png,a dog,train\nb.png,a cat,train\n")
    with pytest.raises(DataError, match=r"split = 'test': no image of the data set is in this split.*or all"):
        read_split(root, split="test")


@pytest.fixture(scope="module")
def split(tiny_run: TinyRun) -> Split:
    return read_split(tiny_run.scenes, split="test")


def test_an_evaluation_is_the_score_of_its_captions(system: System, split: Split) -> None:
    seen: list[tuple[int, int]] = []
    evaluation = evaluate_system(
        system, split, ["bleu", "cider"], beam_size=2, batch_size=3, progress=lambda *now: seen.append(now)
    )
    assert list(evaluation.captions) == ["greedy", "beam"]
    for name, captions in evaluation.captions.items():
        assert list(captions) == list(split.references)
        assert (
            evaluation.metrics_json()[name] == score_captions(captions, split.references, ["bleu", "cider"]).to_json()
        )
    assert evaluation.captions["greedy"] != evaluation.captions["beam"]
    assert seen == [(0, 7), (3, 7), (6, 7), (7, 7)]
    assert evaluation.judge is None
    # length, bad endings, vocabulary: on the page, not among what `raycap score` prints
    assert {"length", "bad_ending_rate", "vocabulary"} <= evaluation.scores["greedy"].metrics.keys()


def test_the_batch_changes_nothing(system: System, split: Split) -> None:
    one = evaluate_system(system, split, ["cider", "clipscore"], beam_size=2, batch_size=1)
    all_ = evaluate_system(system, split, ["cider", "clipscore"], beam_size=2, batch_size=100)
    assert one.captions == all_.captions
    for decoding in ("greedy", "beam"):
        first, second = (each.metrics_json()[decoding]["metrics"] for each in (one, all_))
        assert first["clipscore"] == pytest.approx(second.pop("clipscore"), abs=1e-5)


def test_without_a_judge_clipscore_is_unavailable_and_never_0(tiny_run: TinyRun, system: System, split: Split) -> None:
    recipe = tiny_run.recipe
    no_judge = recipe.model_copy(update={"clip": recipe.clip.model_copy(update={"judge": None})})
    blind = System(system.captioner, system.encoder, replace(system.origin, recipe=no_judge), "cpu")
    evaluation = evaluate_system(blind, split, ["cider", "clipscore"], beam_size=2, batch_size=7)
    for content in evaluation.metrics_json().values():
        assert list(content["metrics"]) == ["cider_d"]
        assert content["unavailable"] == {"clipscore": "no judge"}


def test_the_judge_scores_and_is_named(system: System, split: Split) -> None:
    evaluation = evaluate_system(system, split, ["clipscore", "refcompare"], beam_size=2, batch_size=7)
    assert evaluation.judge == "raycap-scenes-judge/tiny"
    content = evaluation.metrics_json()["greedy"]
    assert list(content["metrics"]) == ["clipscore", "refclipscore", "refcompare_own_refs", "refcompare_pooled"]
    assert "clip=raycap-scenes-judge/tiny" in content["signature"]


def test_a_picture_that_goes_bad_in_between_is_named(system: System, folder) -> None:
    split = read_split(folder({"a.png": ["a dog"], "b.png": ["a cat"]}), split="all")
    split.paths["b.png"].unlink()
    with pytest.raises(ImageMissing, match=r"b\.png"):
        evaluate_system(system, split, ["cider"], beam_size=2, batch_size=7)


def test_the_page_shows_pictures_captions_and_where_they_come_from(system: System, folder) -> None:
    split = read_split(folder({"a.png": ["a <b>bold</b> dog"], "b.png": ["a cat"]}), split="all")
    evaluation = evaluate_system(system, split, ["cider", "clipscore"], beam_size=2, batch_size=7)
    page = render_report(evaluation_report(system, evaluation))
    assert page.count("data:image/jpeg;base64,") >= 2
    assert "a &lt;b&gt;bold&lt;/b&gt; dog" in page
    for fact in ("tiny/scst, seed 0, step 7 on mine, split all", str(system.origin.folder), "beam2",
                 "raycap-scenes-judge/tiny", evaluation.captions["greedy"]["a.png"], "nothing skipped"):  # fmt: skip
        assert fact in page
    rows = result_rows(system, evaluation)
    assert [(row.label, row.decoding, row.num_images, row.steps) for row in rows] == [
        ("scst", "greedy", 2, 7), ("scst", "beam2", 2, 7),
    ]  # fmt: skip
