"""`raycap evaluate`, `raycap caption`, `raycap export` on a finished run in small."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raycap.data.detect import import_dataset
from raycap.data.images import open_image
from raycap.data.input_report import InputReport
from raycap.evaluate.system import Decoding, System
from raycap.metrics.files import read_candidates
from tests.tiny_run import TinyRun, make_run

WITHOUT_JAVA = "bleu,rouge,cider,clipscore"


@pytest.fixture(scope="module")
def captions(tiny_run: TinyRun) -> dict[Path, str]:
    """The run's greedy caption of each test picture, one by one."""
    system = System.open(tiny_run.stage, "cpu")
    return {p: system.caption(system.features([open_image(p)]), Decoding())[0][0] for p in tiny_run.pictures}


@pytest.fixture
def flickr8k(tmp_path: Path, tiny_run: TinyRun) -> Path:
    """Only the list and the photographs of `test` are there; the captions of all splits are."""
    root = tmp_path / "flickr8k"
    (root / "Flicker8k_Dataset").mkdir(parents=True)
    lines = ["gone.jpg.1#0\tnobody knows", "elsewhere.png#0\tA dog .", "elsewhere.png#1\tThe dog ."]
    for number, picture in enumerate(tiny_run.pictures):
        shutil.copy(picture, root / "Flicker8k_Dataset")
        lines += [f"{picture.name}#{n}\tA {word} shape number {number} ." for n, word in enumerate(["blue", "small"])]
    (root / "Flickr8k.token.txt").write_text("\n".join(lines) + "\n")
    (root / "Flickr_8k.testImages.txt").write_text("\n".join(p.name for p in tiny_run.pictures))
    return root


def test_evaluate_writes_what_it_promises(raycap, tmp_path: Path, tiny_run: TinyRun, captions) -> None:
    out = tmp_path / "new" / "out"
    result = raycap(
        "evaluate", "--checkpoint", tiny_run.stage, "--data", tiny_run.scenes, "--out", out, "--metrics", WITHOUT_JAVA
    )
    assert (result.exit_code, result.stdout) == (0, "")
    assert {path.name for path in out.iterdir()} == {
        "metrics.json", "captions.greedy.json", "captions.beam.json", "report.html", "input.json",
    }  # fmt: skip
    assert json.loads((out / "captions.greedy.json").read_text()) == [
        {"image_id": picture.stem, "caption": caption} for picture, caption in captions.items()
    ]
    page = (out / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") >= 7
    assert "tiny/scst, seed 0, step 7" in page
    assert "Training curves of scst" in page  # the stage lies around the checkpoint; its log ends in mid-line
    assert "beam3" in result.stderr
    assert "images/s" in result.stderr


def test_metrics_are_those_that_score_prints(raycap, tmp_path: Path, tiny_run: TinyRun) -> None:
    out, options = tmp_path / "out", ["--metrics", WITHOUT_JAVA]
    command = ["evaluate", "--checkpoint", tiny_run.stage / "checkpoints" / "step-000007", "--data", tiny_run.scenes]
    assert raycap(*command, "--out", out, *options).exit_code == 0
    entries = [json.loads(line) for line in (tiny_run.scenes / "captions.jsonl").read_text().splitlines()]
    references = {e["image_id"]: e["captions"] for e in entries if e["split"] == "test"}
    (tmp_path / "refs.json").write_text(json.dumps(references))
    metrics = json.loads((out / "metrics.json").read_text())
    assert list(metrics) == ["greedy", "beam"]
    for decoding, content in metrics.items():
        result = raycap(
            "score", "--candidates", out / f"captions.{decoding}.json", "--references", tmp_path / "refs.json",
            "--images", tiny_run.scenes / "images", "--clip-model", tiny_run.folder / "clip" / "judge", *options,
        )  # fmt: skip
        scored = json.loads(result.stdout)
        assert content["metrics"].pop("clipscore") == pytest.approx(scored["metrics"].pop("clipscore"), abs=1e-5)
        assert content["metrics"].pop("refclipscore") == pytest.approx(scored["metrics"].pop("refclipscore"), abs=1e-5)
        assert content == scored
    # without --out the same goes to standard output
    printed = json.loads(raycap(*command, *options).stdout)
    assert printed == json.loads((out / "metrics.json").read_text())


def test_a_flickr8k_folder_with_nothing_but_the_asked_split(raycap, tmp_path, tiny_run, flickr8k, captions) -> None:
    out = tmp_path / "out"
    result = raycap(
        "evaluate", "--checkpoint", tiny_run.stage, "--data", flickr8k, "--split", "test", "--out", out,
        "--metrics", "cider", "--batch-size", "2",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "counted 3 caption_without_image" in result.stderr
    assert json.loads((out / "input.json").read_text())["noted"]["counts"] == {"caption_without_image": 3}
    assert read_candidates(out / "captions.greedy.json") == {p.name: text for p, text in captions.items()}


def test_evaluate_refuses_and_says_what_to_do(raycap, refused, tmp_path, tiny_run, flickr8k) -> None:
    command = ["evaluate", "--checkpoint", tiny_run.stage, "--data", flickr8k]
    assert "Flickr_8k.devImages.txt" in refused(*command, "--split", "dev")
    assert "--data = " in refused(*command[:-1], tmp_path / "gone")
    (flickr8k / "Flicker8k_Dataset" / tiny_run.pictures[2].name).write_bytes(b"broken")
    message = refused(*command)
    assert "1 image_broken" in message
    assert "--skip image_broken" in message
    out = tmp_path / "out"
    assert raycap(*command, "--skip", "image_broken", "--metrics", "cider", "--out", out).exit_code == 0
    assert json.loads((out / "metrics.json").read_text())["greedy"]["num_images"] == 6
    assert json.loads((out / "input.json").read_text())["skipped"]["counts"] == {"image_broken": 1}
    assert "unknown kind 'dust'" in refused(*command, "--skip", "dust")
    assert "2000 allowed" in refused(*command, "--max-pixels", "2000")
    (tmp_path / "file").write_text("")
    assert "file" in refused(*command, "--out", tmp_path / "file")


def test_results_of_before_do_not_stay_beside_a_refused_evaluation(raycap, refused, tmp_path, tiny_run) -> None:
    out = tmp_path / "out"
    command = ["evaluate", "--checkpoint", tiny_run.stage, "--metrics", "cider", "--out", out]
    assert raycap(*command, "--data", tiny_run.scenes).exit_code == 0
    assert len(list(out.iterdir())) == 5
    (out / "notes.txt").write_text("mine")
    refused("evaluate", "--checkpoint", tmp_path / "mistyped", "--data", tiny_run.scenes, "--out", out)
    assert len(list(out.iterdir())) == 6, "a mistyped checkpoint costs nothing"
    refused(*command, "--data", tmp_path / "gone")
    assert [path.name for path in out.iterdir()] == ["notes.txt"]


def test_captions_are_written_before_a_judge_fails(raycap, tmp_path, tiny_run, monkeypatch) -> None:
    def broken(self, captions, batch_size=256):
        return np.full((len(captions), 8), np.nan, np.float32)

    monkeypatch.setattr("raycap.models.clip.Clip.embed_texts", broken)
    out = tmp_path / "out"
    result = raycap("evaluate", "--checkpoint", tiny_run.stage, "--data", tiny_run.scenes, "--out", out)
    assert result.exit_code == 1, result.output
    assert "the judge's" in result.stderr
    assert "NaN or infinity" in result.stderr
    assert sorted(path.name for path in out.iterdir()) == ["captions.beam.json", "captions.greedy.json"]


def test_an_out_that_is_read_only_is_refused_before_the_work(refused, tmp_path, tiny_run, monkeypatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: mode != os.W_OK or Path(path) != tmp_path)
    monkeypatch.setattr("raycap.evaluate.system.System.open", lambda *_: pytest.fail("the work was begun"))
    command = ["evaluate", "--checkpoint", tiny_run.stage, "--data", tiny_run.scenes, "--out", tmp_path]
    assert f"--out = '{tmp_path}': cannot be written to: it is read-only" in refused(*command)


def test_all_metrics_are_computed_or_said_to_be_unavailable(raycap, tiny_run: TinyRun, monkeypatch) -> None:
    for tool in ("meteor", "spice"):
        monkeypatch.setattr(f"raycap.metrics.score.{tool}", lambda *sides, tool=tool: f"no Java for {tool}")
    result = raycap("evaluate", "--checkpoint", tiny_run.stage, "--data", tiny_run.scenes)
    assert result.exit_code == 0, result.output
    for content in json.loads(result.stdout).values():
        assert set(content["metrics"]) == {
            "bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider_d", "clipscore", "refclipscore",
        }  # fmt: skip
        assert content["unavailable"] == {"meteor": "no Java for meteor", "spice": "no Java for spice"}


def test_what_was_refused_is_listed_in_out(refused, tmp_path: Path, tiny_run: TinyRun, flickr8k: Path) -> None:
    out, command = tmp_path / "out", ["evaluate", "--checkpoint", tiny_run.stage, "--data", flickr8k]
    for picture in tiny_run.pictures[:5]:
        (flickr8k / "Flicker8k_Dataset" / picture.name).write_bytes(b"broken")
    message = refused(*command)
    assert "and 2 more" in message
    assert ".json" not in message
    out.mkdir()
    (out / "metrics.json").write_text("of another evaluation")
    assert f"all of them: {out / 'input.json'}" in refused(*command, "--out", out)
    assert json.loads((out / "input.json").read_text())["refused"]["counts"] == {"image_broken": 5}
    assert [path.name for path in out.iterdir()] == ["input.json"]


def test_no_training_picture_of_a_captioner_is_in_the_test_split_of_its_own_folder(raycap, tmp_path: Path) -> None:
    """A table of plain names beside images/ looks like the CSV layout, whose ids and pictures are not the folder's."""
    run = make_run(tmp_path / "storage", ["data.format=folder", "data.splits=[train,test]", "data.seed=3"])
    names = [f"{number}.png" for number in range(40)]
    (tmp_path / "mine" / "images").mkdir(parents=True)
    for number, name in enumerate(names):
        Image.new("RGB", (64, 64), (6 * number, 100, 200)).save(tmp_path / "mine" / "images" / name)
    rows = [f"{name},picture number {number}" for number, name in enumerate(names)]
    (tmp_path / "mine" / "captions.csv").write_text("\n".join(["image,caption", *rows]))
    trained = {
        split: {record.image_id for record in import_dataset(
            tmp_path / "mine", format="folder", splits={"train", "test"}, seed=3, report=InputReport()
        ) if record.split == split} for split in ("train", "test")
    }  # fmt: skip
    command = ["evaluate", "--checkpoint", run.stage, "--data", tmp_path / "mine", "--metrics", "bleu"]
    for options in ([], ["--format", "csv"]):
        result = raycap(*command, *options, "--out", tmp_path / "out")
        assert result.exit_code == 0, result.output
        made = read_candidates(tmp_path / "out" / "captions.greedy.json")
        assert {f"images/{Path(image_id).name}" for image_id in made} == trained["test"]
        assert (set(made) == trained["test"]) == (not options)
    assert len(trained["train"]) + len(trained["test"]) == 40
    result = raycap(*command, "--split", "dev")  # the recipe has none: these were trained on
    assert result.exit_code == 2
    assert "no image of the data set is in this split" in result.stderr


def bomb() -> bytes:
    """A PNG of a few bytes that announces 100,000 x 100,000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    packed = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.fixture
def album(tmp_path: Path, tiny_run: TinyRun) -> Path:
    """Good pictures among bad ones, in sub-folders."""
    folder = tmp_path / "album"
    (folder / "deeper").mkdir(parents=True)
    good = [picture.read_bytes() for picture in tiny_run.pictures[:3]]
    for name, content in {"a.png": good[0], "b_bomb.png": bomb(), "c_cut.png": good[1][:300], "d.png": good[1],
                          "e_empty.jpg": b"", "f_words.jpg": b"hello", "deeper/g.png": good[2],
                          "notes.txt": b"no picture"}.items():  # fmt: skip
        (folder / name).write_bytes(content)
    return folder


def test_caption_prints_a_line_an_image_and_the_others_go_on(raycap, tmp_path, tiny_run, album, captions) -> None:
    strip = tmp_path / "strip.png"
    Image.new("RGB", (300, 1)).save(strip)
    gone = tmp_path / "gone.jpg"
    result = raycap("caption", album, strip, gone, "--checkpoint", tiny_run.stage, "--batch-size", "2")
    assert result.exit_code == 1
    assert result.stderr.strip().endswith("6 of 9 pictures cannot be read; their lines say why")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    names = ["a.png", "b_bomb.png", "c_cut.png", "d.png", "deeper/g.png", "e_empty.jpg", "f_words.jpg"]
    assert [line["image"] for line in lines] == [*(str(album / name) for name in names), str(strip), str(gone)]
    good = {0: 0, 3: 1, 4: 2}  # place here: which picture it is
    for place, line in enumerate(lines):
        if place in good:
            assert line == {"image": line["image"], "caption": captions[tiny_run.pictures[good[place]]]}
        else:
            assert set(line) == {"image", "error"}
            assert line["error"]
    assert "pixels" in lines[1]["error"]
    assert lines[-1]["error"] == "no such file"


def test_caption_is_0_when_all_is_well_and_1_when_the_only_picture_is_gone(raycap, tiny_run, captions) -> None:
    picture = tiny_run.pictures[0]
    result = raycap("caption", picture, picture, "--checkpoint", tiny_run.stage)
    assert (result.exit_code, result.stderr) == (0, "")
    assert [json.loads(line)["caption"] for line in result.stdout.splitlines()] == [captions[picture]] * 2
    result = raycap("caption", "gone.png", "--checkpoint", tiny_run.stage)
    assert result.exit_code == 1
    assert json.loads(result.stdout) == {"image": "gone.png", "error": "no such file"}


def test_decodings_of_caption(raycap, refused, tiny_run, captions) -> None:
    command = ["caption", tiny_run.scenes / "images", "--checkpoint", tiny_run.stage, "--decoding"]

    def lines(*options: object) -> list[dict]:
        return [json.loads(line) for line in raycap(*command, *options).stdout.splitlines()]

    greedy, beam = lines("greedy"), lines("beam", "--beam-size", 4)
    assert len(greedy) == len(beam) == 13
    assert [line["caption"] for line in greedy] != [line["caption"] for line in beam]
    assert [line["caption"] for line in lines("beam", "--beam-size", 1)] == [line["caption"] for line in greedy]
    sample = lines("sample", "--num-captions", 3, "--seed", 5, "--batch-size", 2)
    assert sample == lines("sample", "--num-captions", 3, "--seed", 5, "--batch-size", 13)
    assert sample != lines("sample", "--num-captions", 3, "--seed", 6)
    assert all(len(line["captions"]) == 3 and line["caption"] == line["captions"][0] for line in sample)
    assert len({caption for line in sample for caption in line["captions"]}) > 13
    assert "--num-captions = 3: greedy has one" in refused(*command, "greedy", "--num-captions", 3)
    assert "--top-k = 3: greedy takes the likeliest" in refused(*command, "greedy", "--top-k", 3)
    assert "--beam-groups = 2: expected a divisor" in refused(*command, "beam", "--beam-size", 3, "--beam-groups", 2)


def test_every_number_of_a_decoding_reaches_it(raycap, tiny_run, monkeypatch) -> None:
    command = ["caption", *tiny_run.pictures[:3], "--checkpoint", tiny_run.stage, "--decoding"]

    def lines(*options: object) -> list[dict]:
        return [json.loads(line) for line in raycap(*command, *options).stdout.splitlines()]

    beams = lines("beam", "--beam-size", 4, "--num-captions", 4)
    assert all(len(set(line["captions"])) > 1 for line in beams)
    assert [line["caption"] for line in beams] == [line["caption"] for line in lines("beam", "--beam-size", 4)]
    diverse = ("beam", "--beam-size", 4, "--num-captions", 4, "--beam-groups", 4, "--diversity", 5.0)
    firsts = [{caption.split()[0] for caption in line["captions"]} for line in lines(*diverse)]
    assert all(len(words) == 4 for words in firsts), "a high price of the same word: no two groups begin alike"
    asked = {}
    monkeypatch.setattr(
        "raycap.evaluate.system.beam_captions", lambda *_, **given: asked.update(given) or [[("a", 0.0)]] * 3
    )
    lines("beam", "--length-penalty", 0.5)
    assert asked["length_penalty"] == 0.5
    greedy = lines("greedy")
    for filtered in (("--top-k", 1), ("--top-p", 1e-6)):
        assert lines("sample", "--seed", 3, *filtered) == greedy
    once = lines("greedy", "--no-repeat-ngram", 1, "--min-length", 6)
    assert all(len(line["caption"].split()) == len(set(line["caption"].split())) >= 6 for line in once)


def test_long_work_shows_its_progress(raycap, tiny_run) -> None:
    result = raycap("caption", tiny_run.scenes / "images", "--checkpoint", tiny_run.stage, "--batch-size", 4)
    assert "13/13 images  100%" in result.stderr.replace("   ", " ")
    assert len(result.stdout.splitlines()) == 13


def test_a_wrong_checkpoint_says_what_was_looked_for(refused, tmp_path: Path, tiny_run: TinyRun) -> None:
    picture = tiny_run.pictures[0]
    for wrong, said in {
        tmp_path / "gone": "no such folder",
        tmp_path: "neither captioner.json nor best/captioner.json",
        tiny_run.folder: f"did you mean {tiny_run.stage}?",
        tiny_run.stage / "checkpoints": f"did you mean {tiny_run.stage / 'checkpoints' / 'step-000007'}?",
        tiny_run.stage / "log.jsonl": "is a file",
    }.items():
        message = refused("caption", picture, "--checkpoint", wrong)
        assert message.startswith(f"raycap: checkpoint = '{wrong}': ")
        assert said in message
    assert "no such folder" in refused("export", "--checkpoint", tmp_path / "gone", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert "device = 'tpu9'" in refused("caption", picture, "--checkpoint", tiny_run.stage, "--device", "tpu9")


def test_an_empty_path_is_not_the_folder_of_now(refused, tmp_path: Path, tiny_run: TinyRun) -> None:
    checkpoint = ["--checkpoint", tiny_run.stage]
    assert "the path is empty" in refused("caption", "", *checkpoint)
    assert "the path is empty" in refused("caption", tiny_run.pictures[0], "--checkpoint", "")
    assert "the path is empty" in refused("evaluate", *checkpoint, "--data", "")
    assert "the path is empty" in refused("evaluate", *checkpoint, "--data", tmp_path, "--out", "")
    assert "the path is empty" in refused("export", *checkpoint, "--out", "")


def test_an_export_that_cannot_be_written_is_refused(refused, tmp_path: Path, tiny_run: TinyRun) -> None:
    (tmp_path / "file").write_text("")
    message = refused("export", "--checkpoint", tiny_run.stage, "--out", tmp_path / "file" / "export")
    assert f"--out = '{tmp_path / 'file' / 'export'}': cannot be written" in message


def test_a_folder_without_a_picture_is_refused(refused, tmp_path: Path, tiny_run: TinyRun) -> None:
    (tmp_path / "notes.txt").write_text("no picture")
    assert "known endings: .avif" in refused("caption", tmp_path, "--checkpoint", tiny_run.stage)


def test_an_export_captions_when_its_run_is_gone(raycap, tmp_path: Path, captions) -> None:
    run = make_run(tmp_path / "storage")
    result = raycap("export", "--checkpoint", run.stage, "--out", tmp_path / "export")
    assert (result.exit_code, result.stdout, result.stderr) == (0, f"{tmp_path / 'export'}\n", "")
    (tmp_path / "elsewhere").mkdir()
    shutil.move(tmp_path / "export", tmp_path / "elsewhere" / "captioner")
    scenes = shutil.move(run.scenes, tmp_path / "scenes")
    shutil.rmtree(tmp_path / "storage")
    checkpoint = tmp_path / "elsewhere" / "captioner"
    result = raycap(
        "evaluate", "--checkpoint", checkpoint, "--data", scenes, "--out", tmp_path / "out", "--metrics", WITHOUT_JAVA
    )
    assert result.exit_code == 0, result.output
    made = read_candidates(tmp_path / "out" / "captions.greedy.json")
    assert made == {picture.stem: caption for picture, caption in captions.items()}
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["greedy"]
    assert "clipscore" in metrics["metrics"]  # the judge travels as well


def test_lines_come_as_they_are_made_and_a_closed_pipe_is_no_traceback(tiny_run: TinyRun) -> None:
    code = "from raycap.cli import main; main()"
    command = [sys.executable, "-c", code, "caption", *map(str, tiny_run.pictures * 40), "--batch-size", "1",
               "--checkpoint", str(tiny_run.stage)]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = json.loads(process.stdout.readline())
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(timeout=120) == 1
    assert first["image"] == str(tiny_run.pictures[0])
    assert "Traceback" not in errors
