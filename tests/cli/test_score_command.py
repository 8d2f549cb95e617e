"""`raycap score`: the form of what comes out, where it goes, and what is refused by name."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raycap.data.images import open_image
from raycap.metrics import java as java_module
from raycap.metrics import score as score_module
from raycap.metrics.score import score_captions
from raycap.models.clip import load_trained_clip
from tests.tiny_run import TinyRun

CANDIDATES = {"1": "A man is speaking.", "2": "Rain falls."}
REFERENCES = {
    "1": ["A man speaks.", "someone speaks", "A man is speaking while a bird is chirping in the background"],
    "2": ["Rain is falling hard on a surface."],
}
COCO_CAPTION = ["bleu", "rouge", "cider", "meteor", "spice"]
COCO = {
    "images": [{"id": 1, "file_name": "x.png"}, {"id": 2, "file_name": "y.png"}],
    "annotations": [
        {"image_id": int(i), "id": 0, "caption": text} for i, texts in REFERENCES.items() for text in texts
    ],
}


def write(file: Path, content: Any) -> Path:
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


@pytest.fixture(autouse=True)
def no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    """Java machines take seconds to start, and not every machine has one."""
    monkeypatch.setattr(java_module, "find_java", lambda: None)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    results = [{"image_id": int(image), "caption": text} for image, text in CANDIDATES.items()]
    return write(tmp_path / "results.json", results), write(tmp_path / "refs.json", REFERENCES)


@pytest.fixture
def score(raycap, files):
    """score(*options) on the two files; returns the result and its JSON."""

    def run(*arguments: object):
        result = raycap("score", "--candidates", files[0], "--references", files[1], *arguments)
        assert result.exit_code == 0, result.output
        return result, json.loads(result.stdout) if result.stdout else None

    return run


def test_the_json_goes_out_and_the_table_to_standard_error(score) -> None:
    result, content = score()
    assert content == score_captions(CANDIDATES, REFERENCES, COCO_CAPTION).to_json()
    assert content["metrics"]["cider_d"] == pytest.approx(0.9613547163493905, abs=1e-12)
    assert "cider_d              0.9614" in result.stderr.split("\n")
    assert "2 images" in result.stderr


def test_all_that_coco_caption_prints_is_the_default(score, monkeypatch: pytest.MonkeyPatch) -> None:
    _, content = score()
    assert list(content["metrics"]) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d"]
    assert content["unavailable"].keys() == {"meteor", "spice"}
    assert all("no Java" in why for why in content["unavailable"].values())
    for name, value in (("meteor", 0.25), ("spice", 0.125)):
        monkeypatch.setattr(score_module, name, lambda *_, value=value: (value, [value, value]))
    result, content = score()
    assert (content["metrics"]["meteor"], content["metrics"]["spice"], content["unavailable"]) == (0.25, 0.125, {})
    assert "spice                0.1250" in result.stderr.split("\n")


def test_a_metric_by_the_key_of_its_output(score) -> None:
    _, content = score("--metrics", "bleu_4,rouge_l,cider_d,bleu,bleu_1")
    assert content == score_captions(CANDIDATES, REFERENCES, ["bleu", "rouge", "cider"]).to_json()
    _, content = score("--metrics", "refclipscore,refcompare_own_refs,refcompare_pooled")
    assert content["unavailable"].keys() == {"clipscore", "refcompare"}


def test_a_figure_that_is_no_number_is_never_written(score, refused, files, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(score_module, "meteor", lambda *_: (float("nan"), [0.5, float("inf")]))
    command = ["score", "--candidates", files[0], "--references", files[1], "--metrics", "meteor"]
    for options in ([], ["--out", tmp_path / "out.json"], ["--per-image", tmp_path / "out.json"]):
        assert "no finite number" in refused(*command, *options, code=1)
    assert not list(tmp_path.glob("*out.json*"))


def test_out_and_per_image(score, tmp_path: Path) -> None:
    out, lines = tmp_path / "new" / "metrics.json", tmp_path / "per_image.jsonl"
    result, _ = score("--out", out, "--per-image", lines, "--metrics", "cider,rouge")
    assert result.stdout == ""
    expected = score_captions(CANDIDATES, REFERENCES, ["rouge", "cider"])
    assert json.loads(out.read_text()) == expected.to_json()
    assert [json.loads(line) for line in lines.read_text().splitlines()] == [
        {"image_id": image, "caption": CANDIDATES[image], **values} for image, values in expected.per_image.items()
    ]


@pytest.mark.parametrize("form", ["coco", "jsonl"])
def test_other_forms_of_the_same_files_give_the_same(score, files: tuple[Path, Path], form: str) -> None:
    _, before = score()
    if form == "coco":
        write(files[1], COCO)
    else:
        write(files[0], "".join(json.dumps({"image_id": i, "caption": c}) + "\n" for i, c in CANDIDATES.items()))
        write(files[1], "".join(json.dumps({"image_id": i, "references": c}) + "\n" for i, c in REFERENCES.items()))
    assert score()[1] == before


def test_partial_scoring_is_asked_for_and_counted(score, refused, files: tuple[Path, Path]) -> None:
    write(files[0], {**CANDIDATES, "9": "a dog"})
    command = ["score", "--candidates", files[0], "--references", files[1]]
    assert "['9']" in refused(*command)
    result, content = score("--allow-partial")
    assert content["left_out"] == {"candidates": 1, "references": 0}
    assert content["metrics"] == score_captions(CANDIDATES, REFERENCES).metrics
    assert content["empty_candidates"] == 0
    assert "left out: 1 candidates, 0 references" in result.stderr


def test_empty_candidates_are_counted(score, files: tuple[Path, Path]) -> None:
    write(files[0], {**CANDIDATES, "2": " . "})
    result, content = score()
    assert content["empty_candidates"] == 1
    assert "1 empty candidates" in result.stderr


@pytest.mark.parametrize(
    ("candidates", "references", "named"),
    [
        ({"1": "a"}, REFERENCES, "'2'"),
        (CANDIDATES, {"1": ["a"]}, "'2'"),
        ([{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "b"}], REFERENCES, "'1'"),
        (CANDIDATES, {**REFERENCES, "2": []}, "'2'"),
        (CANDIDATES, {**REFERENCES, "2": ["a", " "]}, "'2'"),
        (CANDIDATES, {**REFERENCES, "2": [".", "😀"]}, "['2']"),
        (CANDIDATES, {**COCO, "images": COCO["images"][:1]}, "'2'"),
        ("[{", REFERENCES, "no valid JSON"),
        (CANDIDATES, "", "empty"),
    ],
)
def test_bad_input_is_refused_and_named(refused, tmp_path: Path, candidates: Any, references: Any, named: str) -> None:
    one, two = write(tmp_path / "c.json", candidates), write(tmp_path / "r.json", references)
    assert named in refused("score", "--candidates", one, "--references", two)


def test_options_that_do_not_fit_are_refused(refused, files: tuple[Path, Path], tmp_path: Path) -> None:
    command = ["score", "--candidates", files[0], "--references", files[1]]
    assert "choose from bleu" in refused(*command, "--metrics", "cider,beauty")
    assert "choose from bleu" in refused(*command, "--metrics", "bleu_5")
    assert "choose from bleu" in refused(*command, "--metrics", ",")
    assert "need both" in refused(*command, "--images", tmp_path)
    assert "need both" in refused(*command, "--clip-model", "ViT-B-32", "--clip-pretrained", "openai")
    assert "belong together" in refused(*command, "--images", tmp_path, "--clip-model", "ViT-B-32")
    assert "--clip-pretrained out" in refused(
        *command, "--images", tmp_path, "--clip-model", tmp_path, "--clip-pretrained", "openai"
    )
    assert "gone.json" in refused("score", "--candidates", tmp_path / "gone.json", "--references", files[1])


@pytest.mark.parametrize("option", ["--out", "--per-image"])
def test_targets_are_looked_at_before_the_work(
    refused, files, tmp_path: Path, option: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def work(*_: object, **__: object) -> None:
        raise AssertionError("the work was begun")

    monkeypatch.setattr(score_module, "score_captions", work)
    command = ["score", "--candidates", files[0], "--references", files[1], option]
    for folder in (".", "/", "..", tmp_path, f"{tmp_path}/"):
        line = refused(*command, folder)
        assert line.startswith(f"raycap: {option} = '{Path(folder)}': is a folder (name a file in it)")
    for place in (files[0] / "metrics.json", tmp_path / ("n" * 300) / "metrics.json", tmp_path / ("n" * 300)):
        assert f"{option} = '{place}': cannot be written" in refused(*command, place)
    assert f"{option} = '/dev/null': is no plain file" in refused(*command, "/dev/null")
    if os.geteuid():  # root may write anywhere
        tmp_path.chmod(0o500)
        assert "read-only" in refused(*command, tmp_path / "metrics.json")
        tmp_path.chmod(0o700)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(file.name for file in files)


def test_one_file_for_both_targets_is_refused(refused, files, tmp_path: Path) -> None:
    both = ["--out", tmp_path / "a.json", "--per-image", tmp_path / "." / "a.json"]
    assert "name one file" in refused("score", "--candidates", files[0], "--references", files[1], *both)


@pytest.mark.parametrize("option", ["--candidates", "--references", "--images", "--out", "--per-image"])
def test_an_empty_path_is_not_the_folder_of_now(refused, files, option: str) -> None:
    command = ["score", "--candidates", files[0], "--references", files[1], option, ""]
    assert "the path is empty" in refused(*command)


def test_metrics_by_clip_without_one_are_unavailable_and_not_0(score) -> None:
    _, content = score("--metrics", "cider,clipscore")
    assert list(content["metrics"]) == ["cider_d"]
    assert "CLIP" in content["unavailable"]["clipscore"]


@pytest.fixture
def pictures(tmp_path: Path, tiny_run: TinyRun) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for image, source in zip(CANDIDATES, tiny_run.pictures, strict=False):
        (folder / f"{image}.png").write_bytes(source.read_bytes())
    return folder


def test_clipscore_by_a_clip_of_ours_equals_the_formula(score, pictures: Path, tiny_run: TinyRun) -> None:
    folder = tiny_run.folder / "clip" / "judge"
    _, content = score("--images", pictures, "--clip-model", folder)
    clip = load_trained_clip(folder)
    seen = clip.embed_images([open_image(pictures / f"{image}.png") for image in CANDIDATES])
    spoken = clip.embed_texts(list(CANDIDATES.values()))
    cosines = (seen * spoken).sum(axis=1)
    assert content["metrics"]["clipscore"] == pytest.approx(np.mean(2.5 * np.maximum(cosines, 0)), abs=1e-6)
    assert {"bleu_4", "cider_d", "refclipscore"} <= content["metrics"].keys()
    assert "clip=raycap-scenes-judge/tiny" in content["signature"]


def test_clipscore_from_a_weights_file(score, pictures: Path, tiny_run: TinyRun) -> None:
    folder = tiny_run.folder / "clip" / "judge"
    _, by_folder = score("--images", pictures, "--clip-model", folder, "--metrics", "refcompare,clipscore")
    _, by_file = score(
        "--images", pictures, "--clip-model", "raycap-scenes-judge", "--clip-pretrained", folder / "clip.pt",
        "--metrics", "refcompare,clipscore",
    )  # fmt: skip
    assert by_file["metrics"] == by_folder["metrics"]
    assert {"refcompare_own_refs", "refcompare_pooled"} <= by_file["metrics"].keys()


def test_the_pictures_of_coco_are_found_by_their_file_names(score, files, pictures: Path, tiny_run: TinyRun) -> None:
    options = ["--images", pictures, "--clip-model", tiny_run.folder / "clip" / "judge", "--metrics", "clipscore"]
    _, before = score(*options)
    (pictures / "1.png").rename(pictures / "x.png")
    (pictures / "2.png").rename(pictures / "y.png")
    write(files[1], COCO)
    assert score(*options)[1]["metrics"] == before["metrics"]


def test_pictures_and_clips_that_are_not_there(
    refused, files, pictures: Path, tmp_path: Path, tiny_run: TinyRun
) -> None:
    command = ["score", "--candidates", files[0], "--references", files[1], "--images", pictures, "--clip-model"]
    no_clip = tmp_path / "no_clip"
    no_clip.mkdir()
    assert refused(*command, no_clip).startswith(f"raycap: --clip-model = '{no_clip}': holds no trained CLIP")
    assert "--clip-pretrained = 'gone.pt'" in refused(*command, "ViT-B-32", "--clip-pretrained", "gone.pt")
    assert "--clip-model = 'ViT-B-33'" in refused(*command, "ViT-B-33", "--clip-pretrained", "openai")
    judge = tiny_run.folder / "clip" / "judge"
    Image.new("RGB", (4, 4)).save(pictures / "1.jpg")
    assert "2 pictures answer to it" in refused(*command, judge)
    (pictures / "1.jpg").unlink()
    (pictures / "1.png").write_bytes(b"no picture")
    assert "1.png" in refused(*command, judge)
    (pictures / "1.png").unlink()
    assert "1 image id(s) have no picture" in refused(*command, judge)
    # ids that do not fit are refused before a CLIP is loaded
    write(files[0], {"1": "a"})
    assert "'2'" in refused(*command, no_clip)
