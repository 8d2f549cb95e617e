"""A system: from a checkpoint alone to captions of pictures, the same ones in whatever batch."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from raycap.data.images import open_image
from raycap.decoding.filters import Filters
from raycap.errors import CheckpointError, Refused
from raycap.evaluate.system import Decoding, System, pick_device
from raycap.models.clip import Clip
from raycap.models.origin import read_origin
from tests.tiny_run import TinyRun


@pytest.fixture(scope="module")
def system(tiny_run: TinyRun) -> System:
    return System.open(tiny_run.stage, "cpu")


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"kind": "nucleus"}, "decoding"),
        ({"kind": "beam", "beam_size": 0}, "beam_size"),
        ({"kind": "sample", "num_captions": 0}, "num_captions"),
        ({"kind": "sample", "temperature": 0.0}, "temperature"),
        ({"kind": "sample", "temperature": float("nan")}, "temperature"),
        ({"kind": "greedy", "num_captions": 2}, "num_captions"),
        ({"kind": "beam", "beam_size": 2, "num_captions": 3}, "num_captions"),
        ({"kind": "beam", "beam_size": 3, "beam_groups": 2}, "beam_groups"),
        ({"kind": "beam", "length_penalty": float("inf")}, "length_penalty"),
        ({"kind": "beam", "diversity": float("nan")}, "diversity"),
        ({"kind": "beam", "filters": Filters(top_p=0.5)}, "top_p"),
        ({"kind": "greedy", "filters": Filters(top_k=2)}, "top_k"),
    ],
)
def test_a_decoding_that_makes_no_sense_is_refused(values: dict, key: str) -> None:
    with pytest.raises(Refused) as refused:
        Decoding(**values)
    assert refused.value.key == key


def test_labels() -> None:
    assert [Decoding(kind, beam_size=5).label for kind in ("greedy", "beam", "sample")] == ["greedy", "beam5", "sample"]


def test_features_are_those_on_disk(system: System, tiny_run: TinyRun) -> None:
    """The captioner was trained on float16 files: what it is given later must be rounded alike."""
    pictures = [open_image(path) for path in tiny_run.pictures]
    features = system.features(pictures)
    assert features.dtype == torch.float32
    assert features.shape[:2] == (7, 4)
    on_disk = system.encoder(pictures).numpy().astype(np.float16)
    assert torch.equal(features, torch.from_numpy(on_disk.astype(np.float32)))
    assert not torch.equal(features, system.encoder(pictures))


@pytest.mark.parametrize(
    "decoding", [Decoding(), Decoding("beam", beam_size=2), Decoding("sample", num_captions=3, seed=4)], ids=str
)
def test_captions_do_not_hang_on_the_batch(system: System, tiny_run: TinyRun, decoding: Decoding) -> None:
    features = system.features([open_image(path) for path in tiny_run.pictures])
    whole = system.caption(features, decoding)
    assert len(set(whole)) > 3
    assert all(len(captions) == decoding.num_captions for captions in whole)
    parts = [system.caption(features[rows], decoding, rows) for rows in ([0, 1], [2], [3, 4, 5, 6])]
    assert [captions for part in parts for captions in part] == whole


def test_temperature_and_seed_reach_the_samples(system: System, tiny_run: TinyRun) -> None:
    features = system.features([open_image(path) for path in tiny_run.pictures])
    greedy = system.caption(features, Decoding())
    cold = system.caption(features, Decoding("sample", temperature=1e-4))
    assert cold == greedy
    assert system.caption(features, Decoding("sample")) != greedy
    assert system.caption(features, Decoding("sample", seed=1)) != system.caption(features, Decoding("sample", seed=2))


def test_every_way_to_name_the_checkpoint_is_the_same_system(tiny_run: TinyRun) -> None:
    ways = [tiny_run.stage, tiny_run.stage / "best", tiny_run.stage / "checkpoints" / "step-000007"]
    states = [System.open(way, "cpu").captioner.state_dict() for way in ways]
    for state in states[1:]:
        assert all(torch.equal(value, states[0][name]) for name, value in state.items())


def test_a_run_that_was_moved_as_a_whole_still_sees(tiny_run: TinyRun, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.folder, tmp_path / "moved")
    moved = tmp_path / "moved"
    config = moved / "scst" / "best" / "captioner.json"
    config.write_text(config.read_text().replace(str(tiny_run.folder), "/nowhere/any/more"))
    system = System.open(moved / "scst", "cpu")
    assert system.origin.trained_clip("reward") == moved / "clip" / "reward"
    assert isinstance(system.judge(), Clip)


def test_a_lonely_checkpoint_cannot_see_and_says_why(tiny_run: TinyRun, tmp_path: Path) -> None:
    shutil.copytree(tiny_run.stage / "best", tmp_path / "best")
    config = tmp_path / "best" / "captioner.json"
    config.write_text(config.read_text().replace(str(tiny_run.folder), "/nowhere/any/more"))
    with pytest.raises(CheckpointError, match=r"/nowhere/any/more/clip/reward.*export"):
        System.open(tmp_path / "best")


def test_the_judge_is_another_clip_or_a_reason(system: System, tiny_run: TinyRun, tmp_path: Path) -> None:
    judge = system.judge()
    assert isinstance(judge, Clip)
    assert judge.name == "raycap-scenes-judge/tiny"
    assert judge.name not in system.encoder.source
    shutil.copytree(tiny_run.folder, tmp_path / "tiny")
    config = tmp_path / "tiny" / "scst" / "best" / "captioner.json"
    config.write_text(config.read_text().replace(str(tiny_run.folder), str(tmp_path / "tiny")))
    (tmp_path / "tiny" / "clip" / "judge" / "clip.pt").unlink()
    assert "the judge cannot be loaded" in str(System.open(tmp_path / "tiny" / "scst").judge())


def test_devices() -> None:
    assert pick_device("cpu") == "cpu"
    assert pick_device("auto") in ("cpu", "cuda")
    with pytest.raises(Refused, match="device = 'abacus'"):
        pick_device("abacus")


def test_an_origin_names_itself(tiny_run: TinyRun) -> None:
    origin = read_origin(tiny_run.stage)
    assert origin.name == "tiny/scst, seed 0, step 7"
    assert origin.recipe == tiny_run.recipe
