"""What an earlier job left and this one does not name: finished, made for this recipe, and of one lineage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from raycap.cluster.lineage import check_inputs
from raycap.cluster.run import STAGES
from raycap.cluster.stages import Run
from raycap.errors import RecipeError

from .conftest import recipe_of

EVERYTHING = ["prepare", "features", "mle", "scst", "evaluate"]


def run_of(storage: Path, stages: list[str], **sections: Any) -> Run:
    return Run(recipe_of(storage, stages, **sections), STAGES)


def finish(run: Run, *names: str) -> None:
    """The stages lie there as if the run had made them."""
    for name in names:
        folder = run.stage_folder(name, 0)
        folder.open(run.recipe)
        folder.finish({})


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    finish(run_of(tmp_path, EVERYTHING), *EVERYTHING)
    return tmp_path


def test_a_job_may_build_on_what_was_made_for_its_recipe(storage: Path) -> None:
    for stages in (EVERYTHING, ["scst"], ["mle", "scst"], ["evaluate"], ["features"]):
        check_inputs(run_of(storage, stages))


def test_how_long_an_input_was_trained_is_its_own_affair(storage: Path) -> None:
    run = run_of(storage, ["scst"], mle={"epochs": 3})
    check_inputs(run)
    assert run.about("scst", 0)["recipe"]["mle"]["epochs"] == 20, "the checkpoint says what was done, not what is asked"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"features": {"image_size": 64}}, r"features is not among them.*features\.image_size: None → 64"),
        ({"captioner": {"max_length": 9}}, r"mle is not among them.*captioner\.max_length: 12 → 9"),
        ({"data": {"num_labeled": 5}}, r"mle is not among them.*data\.num_labeled: None → 5"),
    ],
)  # fmt: skip
def test_what_later_stages_read_again_must_be_as_it_was(storage: Path, sections: Any, message: str) -> None:
    """Else the checkpoint says it was trained on features that it never saw."""
    for stages in (["scst"], ["evaluate"]):
        with pytest.raises(RecipeError, match=message):
            check_inputs(run_of(storage, stages, **sections))
    check_inputs(run_of(storage, ["prepare", "features", "mle", "scst"], **sections))  # for `refuse_stale` to say


def test_an_input_that_has_not_finished_is_no_start(tmp_path: Path) -> None:
    run = run_of(tmp_path, EVERYTHING)
    finish(run, "prepare", "features")
    run.stage_folder("mle", 0).open(run.recipe)  # stopped after an epoch
    with pytest.raises(RecipeError, match=r"mle is needed and has not finished.*add mle"):
        check_inputs(run_of(tmp_path, ["scst"]))
    with pytest.raises(RecipeError, match=r"features is needed|prepare is needed"):
        check_inputs(run_of(tmp_path / "other", ["mle"]))


def test_systems_of_another_lineage_are_not_compared(storage: Path) -> None:
    """MLE is made again: the SCST that started from the old one is no longer what comes after it."""
    stages = ["prepare", "features", "mle", "evaluate"]
    assert run_of(storage, stages).has("scst")
    again = run_of(storage, stages, mle={"epochs": 3})
    assert again.is_finished("scst")
    assert not again.has("scst")
    check_inputs(again)


@pytest.mark.parametrize(("judge", "allowed"), [("ViT-B-32-quickgelu", False), ("RN50", True)])
def test_the_clip_that_rewarded_an_earlier_job_does_not_judge_it(tmp_path: Path, judge: str, allowed: bool) -> None:
    rewarding = {"clip": {"reward": {"model": "ViT-B-32", "pretrained": "openai"}}, "rewards": {"clip": {}}}
    finish(run_of(tmp_path, EVERYTHING, **rewarding), *EVERYTHING)
    later = run_of(tmp_path, ["evaluate"], clip={"judge": {"model": judge, "pretrained": "openai"}})
    if allowed:
        check_inputs(later)
        return
    with pytest.raises(RecipeError, match=r"clip\.judge = 'ViT-B-32-quickgelu': SCST was rewarded by 'ViT-B-32'"):
        check_inputs(later)


def test_clips_that_nobody_trained_are_missed_before_anything_is_done(tmp_path: Path) -> None:
    clip = {"judge": {"model": "raycap-scenes-judge", "seed": 2}, "reward": {"model": "raycap-scenes-reward"}}
    stages = ["prepare", "features", "mle", "scst"]
    with pytest.raises(RecipeError, match=r"needs clip\.judge.*add clip"):
        check_inputs(run_of(tmp_path, EVERYTHING, clip=clip))
    check_inputs(run_of(tmp_path, stages, clip=clip))  # nobody looks through them
    with pytest.raises(RecipeError, match=r"needs clip\.reward"):
        check_inputs(run_of(tmp_path, stages, clip=clip, rewards={"clip": {}}))
    with pytest.raises(RecipeError, match=r"needs clip\.reward"):
        check_inputs(run_of(tmp_path, ["prepare", "features"], clip=clip, features={"encoder": "clip.reward"}))
    check_inputs(run_of(tmp_path, EVERYTHING, clip=clip, evaluate={"metrics": ["cider"]}))
    check_inputs(run_of(tmp_path, ["prepare", "clip", *EVERYTHING[1:]], clip=clip))
