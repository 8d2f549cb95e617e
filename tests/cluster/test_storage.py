"""Stages in storage: reuse, staleness by name and value, paths that cannot work on a cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycap.cluster.data_stages import data_root
from raycap.cluster.run import STAGES
from raycap.cluster.stages import Run
from raycap.cluster.storage import StageFolder, differences, run_folder
from raycap.errors import RecipeError, StaleStage
from tests.cluster.conftest import recipe_of


def test_a_finished_unchanged_stage_is_reused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, ["mle"])
    folder = StageFolder(tmp_path / "mle", "mle", {"values": {"mle": {"lr": 0.1}}})
    assert folder.open(recipe)
    assert folder.open(recipe), "unfinished: there is work to do"
    folder.finish({"seconds": 1.0})
    assert not folder.open(recipe)
    assert folder.finished == {"seconds": 1.0}


def test_a_stale_stage_stops_the_run_and_names_what_changed(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, ["mle"])
    old = StageFolder(tmp_path / "mle", "mle", {"values": {"mle": {"lr": 0.1}}})
    old.open(recipe)
    old.finish({})
    new = StageFolder(tmp_path / "mle", "mle", {"values": {"mle": {"lr": 0.2}}})
    with pytest.raises(StaleStage, match=r"values\.mle\.lr: 0\.1 → 0\.2"):
        new.open(recipe)
    assert old.finished is not None


def test_rerun_stale_makes_it_again(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, ["mle"]).model_copy(update={"rerun": "stale"})
    old = StageFolder(tmp_path / "mle", "mle", {"a": 1})
    old.open(recipe)
    (old.path / "leftover").touch()
    old.finish({})
    new = StageFolder(tmp_path / "mle", "mle", {"a": 2})
    assert new.open(recipe)
    assert not (new.path / "leftover").exists()


def test_a_change_upstream_makes_everything_downstream_stale(tmp_path: Path) -> None:
    stages = ["prepare", "features", "mle", "scst"]
    run = Run(recipe_of(tmp_path, stages), STAGES)
    other = Run(recipe_of(tmp_path, stages, features={"grid_size": 3}), STAGES)
    same = {name: run.stage_folder(name, 0).fingerprint == other.stage_folder(name, 0).fingerprint for name in stages}
    assert same == {"prepare": True, "features": False, "mle": False, "scst": False}


def test_the_number_of_workers_makes_nothing_stale(tmp_path: Path) -> None:
    stages = ["prepare", "features", "mle", "scst"]
    run = Run(recipe_of(tmp_path, stages), STAGES)
    other = Run(recipe_of(tmp_path, stages, cluster={"rollout_workers": 3}), STAGES)
    assert all(run.stage_folder(n, 0).fingerprint == other.stage_folder(n, 0).fingerprint for n in stages)


def test_labelled_images_do_not_make_features_stale(tmp_path: Path) -> None:
    stages = ["prepare", "features", "mle"]
    run = Run(recipe_of(tmp_path, stages), STAGES)
    fewer = Run(recipe_of(tmp_path, stages, data={"num_labeled": 5}), STAGES)
    assert run.stage_folder("features", 0).fingerprint == fewer.stage_folder("features", 0).fingerprint
    assert run.stage_folder("mle", 0).fingerprint != fewer.stage_folder("mle", 0).fingerprint


def test_seeds_share_what_does_not_hang_on_them(tmp_path: Path) -> None:
    run = Run(recipe_of(tmp_path, ["prepare", "mle"], seeds=[3, 4]), STAGES)
    assert run.path("prepare", 3) == run.path("prepare", 4)
    assert run.path("mle", 3) == run.folder / "seed-3" / "mle"
    alone = Run(recipe_of(tmp_path, ["prepare", "mle"]), STAGES)
    assert alone.path("mle", 0) == alone.folder / "mle"


@pytest.mark.parametrize("storage", ["runs", "./runs", "s3://bucket/runs"])
def test_storage_that_a_job_cannot_use_is_refused(tmp_path: Path, storage: str) -> None:
    recipe = recipe_of(tmp_path, ["mle"]).model_copy(update={"storage": storage})
    with pytest.raises(RecipeError, match="storage"):
        run_folder(recipe)


def test_storage_that_is_not_set_says_how_to_set_it(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="RAYCAP_STORAGE"):
        run_folder(recipe_of(tmp_path, ["mle"]).model_copy(update={"storage": None}))


@pytest.mark.parametrize(
    ("root", "message"),
    [(None, "RAYCAP_DATA"), ("flickr8k", "relative path"), ("/nowhere/at/all", "put the data set there")],
)
def test_a_missing_data_set_says_what_to_put_where(tmp_path: Path, root: str | None, message: str) -> None:
    recipe = recipe_of(tmp_path, ["prepare"], data={"format": "flickr8k", "root": root})
    with pytest.raises(RecipeError, match=message) as raised:
        data_root(recipe)
    assert "Flickr8k.token.txt" in str(raised.value) or "RAYCAP_DATA" in str(raised.value)
    assert raised.value.exit_code == 2


def test_differences_names_dotted_keys() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": 4}) == ["a.c: 2 → 3", "d: None → 4"]
