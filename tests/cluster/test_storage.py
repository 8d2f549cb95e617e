"""Stages in storage: reuse, staleness by name and value, paths that cannot work on a cluster."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raycap.cluster.crew import RolloutCrew
from raycap.cluster.data_stages import data_root
from raycap.cluster.run import STAGES
from raycap.cluster.stages import Run
from raycap.cluster.storage import (
    StageFolder,
    check_places,
    differences,
    refuse_stale,
    run_folder,
    working_in,
    write_json,
)
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


def two_stages(folder: Path, lr: float) -> list[StageFolder]:
    mle = StageFolder(folder / "mle", "mle", {"values": {"mle": {"lr": lr}}})
    return [mle, StageFolder(folder / "scst", "scst", {"inputs": {"mle": mle.fingerprint}})]


@pytest.mark.parametrize(
    "kept", ["finished.json", "checkpoints/step-000003", "captioner/part-00002.arrow", "judge/clip.json"]
)
def test_stale_stages_stop_the_run_before_it_starts_and_are_all_named(tmp_path: Path, kept: str) -> None:
    recipe = recipe_of(tmp_path, ["mle"])
    for folder in (old := two_stages(tmp_path, 0.1)):
        folder.open(recipe)
        (folder.path / kept).parent.mkdir(exist_ok=True)
        (folder.path / kept).write_text("{}")
    refuse_stale(old)
    with pytest.raises(StaleStage, match=r"values\.mle\.lr: 0\.1 → 0\.2; with them scst") as stale:
        refuse_stale(two_stages(tmp_path, 0.2))
    assert stale.value.key == "mle, scst"
    assert all((folder.path / kept).exists() for folder in old)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.mark.parametrize("after", range(5))
def test_a_stage_that_is_removed_never_looks_finished_in_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    """Killed before each of its five parts is removed, and looked at with the old values and with new ones."""
    recipe = recipe_of(tmp_path, ["mle"])
    old, new = (StageFolder(tmp_path / "mle", "mle", {"a": value}) for value in (1, 2))
    old.open(recipe)
    for name in ("best", "checkpoints"):
        (old.path / name).mkdir()
    old.finish({})
    left, unlink, rmtree = [after], Path.unlink, shutil.rmtree

    def counted(remove: Callable[..., None]) -> Callable[..., None]:
        def counting(path: Path, *options: Any, **named: Any) -> None:
            if path.parent == old.path and not left[0]:
                raise Killed
            left[0] -= path.parent == old.path
            remove(path, *options, **named)

        return counting

    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", counted(unlink))
        patched.setattr(shutil, "rmtree", counted(rmtree))
        with pytest.raises(Killed):
            new.open(recipe)
    assert (old.path / "stage.json").exists()
    assert (old.finished is None) == (after > 0)
    assert new.changes() == ["a: 1 → 2"], "what is left is of the old values, and says so"
    assert new.open(recipe)
    assert {file.name for file in new.path.iterdir()} == {"recipe.yaml", "stage.json"}


def test_what_does_not_say_what_it_was_made_from_is_not_reused(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, ["mle"])
    folder = StageFolder(tmp_path / "mle", "mle", {"a": 1})
    folder.open(recipe)
    (folder.path / "best").mkdir()
    folder.finish({})
    (folder.path / "stage.json").unlink()
    assert folder.finished is None
    with pytest.raises(StaleStage, match=r"stage\.json is missing"):
        refuse_stale([folder])
    assert folder.open(recipe)
    assert not (folder.path / "best").exists()
    (folder.path / "stage.json").write_text("{")
    folder.finish({})
    with pytest.raises(StaleStage, match=r"stage\.json is broken"):
        refuse_stale([folder])


def test_a_stage_that_got_nowhere_is_begun_again_with_other_values(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Following the remedy of an error in `prepare` must not end in another error."""
    recipe = recipe_of(tmp_path, ["mle"])
    for folder in two_stages(tmp_path, 0.1):
        folder.open(recipe)
        (folder.path / "report.json").touch()
        (folder.path / "scenes").mkdir()
        (folder.path / ".checked.jsonl").write_text("what was found sound\n")
    corrected = two_stages(tmp_path, 0.2)
    refuse_stale(corrected)
    assert corrected[0].open(recipe)
    there = {file.name for file in corrected[0].path.iterdir()}
    assert there == {"recipe.yaml", "stage.json", ".checked.jsonl"}, "what was made with the other values stays"
    assert "begun with other values (values.mle.lr: 0.1 → 0.2)" in capsys.readouterr().out


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


def test_a_field_that_a_newer_raycap_adds_makes_nothing_stale_at_its_default(tmp_path: Path) -> None:
    stages = ["prepare", "features", "mle"]
    older = Run(recipe_of(tmp_path, stages), STAGES)
    for name in stages:
        folder = older.stage_folder(name, 0)
        folder.open(older.recipe)
        if name == "features":  # as a version without views wrote it
            made_from = json.loads(json.dumps(folder.made_from))
            del made_from["values"]["features"]["views"]
            write_json(folder.path / "stage.json", made_from)
        folder.finish({})
    for name in stages:
        assert not Run(recipe_of(tmp_path, stages), STAGES).stage_folder(name, 0).changes()
    changed = Run(recipe_of(tmp_path, stages, features={"views": 2}), STAGES)
    assert changed.stage_folder("features", 0).changes() == ["values.features.views: None → 2"]
    assert changed.stage_folder("mle", 0).changes()


def test_how_many_images_an_encoder_sees_at_once_makes_nothing_stale(tmp_path: Path) -> None:
    """It is lowered where memory was short, in the middle of hours of features; an older raycap wrote it down."""
    stages = ["prepare", "features"]
    older = Run(recipe_of(tmp_path, stages), STAGES).stage_folder("features", 0)
    older.open(recipe_of(tmp_path, stages))
    made_from = json.loads(json.dumps(older.made_from))
    assert "batch_size" not in made_from["values"]["features"]
    made_from["values"]["features"]["batch_size"] = 32
    write_json(older.path / "stage.json", made_from)
    fewer = Run(recipe_of(tmp_path, stages, features={"batch_size": 4}), STAGES).stage_folder("features", 0)
    assert not fewer.changes()
    other = Run(recipe_of(tmp_path, stages, features={"batch_size": 4, "shard_size": 7}), STAGES)
    assert "values.features.shard_size: 256 → 7" in other.stage_folder("features", 0).changes()


TRAINED = ["prepare", "features", "mle", "scst", "mle_continued"]


def lie_there(storage: Path, older: Callable[[dict[str, Any]], None] = lambda made_from: None) -> None:
    """Finished stages.

    Args:
        older: makes of what a stage is made from what a raycap of before would have written down.
    """
    run = Run(recipe_of(storage, TRAINED), STAGES)
    for name in TRAINED:
        folder = run.stage_folder(name, 0)
        folder.open(run.recipe)
        made_from = json.loads(json.dumps(folder.made_from))
        older(made_from)
        write_json(folder.path / "stage.json", made_from)
        folder.finish({})


def stale(storage: Path, **sections: Any) -> dict[str, list[str]]:
    """Stages that are stale, with what changed of their own."""
    run = Run(recipe_of(storage, TRAINED, **sections), STAGES)
    found = {name: run.stage_folder(name, 0).changes() for name in TRAINED}
    return {n: [c for c in changes if not c.startswith("inputs.")] for n, changes in found.items() if changes}


def test_how_many_captions_are_learned_from_at_a_time_makes_nothing_stale(tmp_path: Path) -> None:
    """It is lowered where memory was short, in the middle of hours of learning; an older raycap wrote it down."""

    def older(made_from: dict[str, Any]) -> None:
        for name in {"mle", "scst"} & made_from["values"].keys():
            assert "micro_batch" not in made_from["values"][name]
            made_from["values"][name]["micro_batch"] = 64

    for storage, written in (tmp_path / "now", lambda made_from: None), (tmp_path / "older", older):
        lie_there(storage, written)
        assert stale(storage, mle={"micro_batch": 8}, scst={"micro_batch": 4}) == {}
    changed = stale(tmp_path / "now", mle={"micro_batch": 8, "lr": 0.1})
    assert changed == {"mle": ["values.mle.lr: 0.001 → 0.1"], "scst": [], "mle_continued": []}


def test_the_type_that_is_asked_for_is_part_of_what_is_trained(tmp_path: Path) -> None:
    """What learned in bfloat16 is not reused for a recipe of float32; an older raycap asked for that only."""
    now, before = tmp_path / "now", tmp_path / "before"
    lie_there(now)
    lie_there(before, lambda made_from: made_from["values"].pop("cluster", None))
    assert stale(before) == stale(now) == {}
    trained = ("mle", "scst", "mle_continued")
    changes = {
        now: "values.cluster.precision: float32 → bfloat16",
        before: "values.cluster: None → {'precision': 'bfloat16'}",
    }
    for storage, change in changes.items():
        assert stale(storage, cluster={"precision": "bfloat16"}) == {name: [change] for name in trained}
    assert stale(now, cluster={"learner_recompute": True, "learner_threads": 7}) == {}
    assert stale(now, cluster={"learner_workers": 2, "learner_sharding": "fsdp"}) == {}


def test_scenes_that_another_version_draws_are_drawn_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepared() -> StageFolder:
        return Run(recipe_of(tmp_path, ["prepare"]), STAGES).stage_folder("prepare", 0)

    prepared().open(recipe_of(tmp_path, ["prepare"]))
    prepared().finish({})
    assert not prepared().changes()
    monkeypatch.setattr("raycap.cluster.stages.VERSION", 99)
    assert any(change.startswith("source.scenes") for change in prepared().changes())


def test_scenes_of_a_raycap_that_did_not_record_their_version_are_of_the_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lie_there(tmp_path, lambda made_from: made_from.pop("source", None))
    assert stale(tmp_path) == {}
    monkeypatch.setattr("raycap.cluster.stages.VERSION", 3)
    assert stale(tmp_path)["prepare"] == ["source: None → {'scenes': '3'}"]


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


def test_a_home_folder_may_be_written_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "photos").mkdir()
    recipe = recipe_of(tmp_path, ["prepare"], data={"format": "folder", "root": "~/photos"})
    assert data_root(recipe) == tmp_path / "photos"
    assert run_folder(recipe.model_copy(update={"storage": "~/runs"})) == tmp_path / "runs" / recipe.name


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


def test_another_judge_makes_only_its_own_work_stale(tmp_path: Path) -> None:
    stages = ["prepare", "clip", "features", "mle", "scst", "evaluate"]
    clips = {"reward": {"model": "raycap-scenes-reward", "seed": 1}, "judge": {"model": "raycap-scenes-judge"}}
    run = Run(recipe_of(tmp_path, stages, clip=clips, rewards={"clip": {}}), STAGES)
    judged = Run(recipe_of(tmp_path, stages, clip={**clips, "judge": {**clips["judge"], "seed": 3}},
                           rewards={"clip": {}}), STAGES)  # fmt: skip
    rewarded = Run(recipe_of(tmp_path, stages, clip={**clips, "reward": {**clips["reward"], "seed": 3}},
                             rewards={"clip": {}}), STAGES)  # fmt: skip

    def stale(other: Run) -> set[str]:
        pairs = {n: [r.stage_folder(n, 0).fingerprint for r in (run, other)] for n in stages}
        return {name for name, (a, b) in pairs.items() if a != b}

    assert stale(judged) == {"clip", "evaluate"}
    assert stale(rewarded) == {"clip", "scst", "evaluate"}  # its features are timm's


def test_a_judge_that_is_named_later_is_asked(tmp_path: Path) -> None:
    without = Run(recipe_of(tmp_path, ["mle", "evaluate"]), STAGES)
    judge = {"model": "ViT-B-32", "pretrained": "/weights.pt"}
    named = Run(recipe_of(tmp_path, ["mle", "evaluate"], clip={"judge": judge}), STAGES)
    assert without.stage_folder("mle", 0).fingerprint == named.stage_folder("mle", 0).fingerprint
    assert without.stage_folder("evaluate", 0).fingerprint != named.stage_folder("evaluate", 0).fingerprint


def test_stages_that_a_job_does_not_name_are_taken_as_they_lie_there(tmp_path: Path) -> None:
    """`stages=[scst]` after a whole run: the same SCST, not one without an MLE."""
    stages = ["prepare", "features", "mle", "scst"]
    whole = Run(recipe_of(tmp_path, stages), STAGES)
    for name in stages:
        folder = whole.stage_folder(name, 0)
        folder.open(whole.recipe)
        folder.finish({})
    alone = Run(recipe_of(tmp_path, ["scst"]), STAGES)
    assert alone.stage_folder("scst", 0).fingerprint == whole.stage_folder("scst", 0).fingerprint
    assert not alone.stage_folder("scst", 0).open(alone.recipe)
    assert alone.has("mle")
    assert not alone.has("mle_continued")


def test_prepare_is_made_from_what_lies_in_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    (root / "deep").mkdir(parents=True)
    (root / "deep" / "a.jpg").write_bytes(b"1234")
    (root / "captions.csv").write_text("image,caption\ndeep/a.jpg,a dog\n")

    def made_from() -> dict[str, Any]:
        run = Run(recipe_of(tmp_path, ["prepare"], data={"format": "folder", "root": str(root)}), STAGES)
        return dict(run.stage_folder("prepare", 0).made_from)

    first = made_from()
    os.utime(root / "deep" / "a.jpg", (1, 1))
    (root / ".hidden").touch()
    assert made_from() == first, "a copy of the data is the same data"
    (root / "deep" / "b.jpg").write_bytes(b"12")
    more = made_from()
    assert differences(first, more)[0].startswith("source.pictures: 1 files, ")
    (root / "captions.csv").write_text("image,caption\ndeep/a.jpg,a cat\n")
    assert any(d.startswith("source.tables") for d in differences(more, made_from()))


def test_a_data_root_in_the_environment_is_nothing_to_scenes(tmp_path: Path) -> None:
    plain, other = (Run(recipe_of(tmp_path, ["prepare"], data={"root": root}), STAGES) for root in (None, "/data"))
    assert plain.stage_folder("prepare", 0).fingerprint == other.stage_folder("prepare", 0).fingerprint


def test_one_job_at_a_time_works_in_a_run(tmp_path: Path) -> None:
    with working_in(tmp_path / "run"):
        with pytest.raises(RecipeError, match=r"another job works in this run: process \d+ on"):  # noqa: SIM117
            with working_in(tmp_path / "run"):
                raise AssertionError("both are in")
        with working_in(tmp_path / "other"):
            pass
    with working_in(tmp_path / "run"):
        pass


def test_a_folder_that_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RecipeError, match=r"storage = .*cannot be written to"):
        check_places(recipe_of(tmp_path / "file", ["mle"]))


def test_weights_of_a_package_that_is_not_there_are_missed_before_anything_starts(tmp_path: Path) -> None:
    features = {"encoder": "tf_efficientnet_lite0", "weights": "package:no_such_package"}
    with pytest.raises(RecipeError, match=r"features.weights = 'package:no_such_package': the package is not"):
        check_places(recipe_of(tmp_path, ["prepare", "features"], features=features))
    features["weights"] = str(tmp_path / "weights.pth")
    with pytest.raises(RecipeError, match=r"features.weights = .*no such file"):
        check_places(recipe_of(tmp_path, ["prepare", "features"], features=features))
    (tmp_path / "weights.pth").touch()
    check_places(recipe_of(tmp_path, ["prepare", "features"], features=features))


@pytest.mark.parametrize(
    ("total", "overrides", "shares"),
    [
        (0, {}, {"learner": 0, "rollout": 0, "cider": 0, "clip": 0}),
        (1, {}, {"learner": 0.25, "rollout": 0.25, "cider": 0, "clip": 0.25}),
        (9, {}, {"learner": 1, "rollout": 1, "cider": 0, "clip": 1}),
        (1, {"learner_gpus": 0.5}, {"learner": 0.5, "rollout": 0.16, "cider": 0, "clip": 0.16}),
        (1, {"rollout_gpus": 0}, {"learner": 0.5, "rollout": 0, "cider": 0, "clip": 0.5}),
        (4, {"learner_workers": 3}, {"learner": 1, "rollout": 0.33, "cider": 0, "clip": 0.33}),
    ],
)
def test_gpus_of_the_cluster_are_shared_among_those_that_want_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, total: float, overrides: dict[str, Any], shares: dict[str, float]
) -> None:
    """With two rollout workers; the driver's own node has no GPU, which decides nothing."""
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    there = {"CPU": 8.0, "GPU": total} if total else {"CPU": 8.0}
    monkeypatch.setattr("ray.cluster_resources", lambda: there)
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": there}])
    clips = {"reward": {"model": "raycap-scenes-reward"}}
    run = Run(recipe_of(tmp_path, ["scst"], clip=clips, rewards={"cider": {}, "clip": {}}, cluster=overrides), STAGES)
    assert {role: run.gpus(role) for role in shares} == pytest.approx(shares)
    assert {role: run.device_of(role) for role in shares} == {r: "cuda" if s else "cpu" for r, s in shares.items()}
    workers = overrides.get("learner_workers", 1)
    used = shares["learner"] * workers + 2 * shares["rollout"] + shares["clip"]
    assert used <= total, "more is asked for than there is: somebody would wait for ever"
    if total and "learner_gpus" not in overrides:
        assert run.gpus("learner", alone=True) == 1


def test_more_gpus_than_there_are_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"GPU": 1.0})
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"GPU": 1.0}}])
    run = Run(recipe_of(tmp_path, ["scst"], cluster={"learner_gpus": 1}), STAGES)
    with pytest.raises(
        RecipeError,
        match=r"cluster.rollout_gpus = None: of the cluster's 1 GPUs nothing is left .* beside learner 1 x 1",
    ):
        run.gpus("rollout")


def test_a_crew_gives_up_only_when_nothing_is_delivered_between_deaths() -> None:
    crew = RolloutCrew(lambda name: None, None, size=2, hopeless_after=2)
    assert [crew.is_hopeless(delivered) for delivered in (0, 0, 0, 5, 5, 9, 9, 9, 9)] == [
        False, False, False, False, False, False, False, False, True,
    ]  # fmt: skip


def test_the_storage_of_runs_inside_the_data_set_is_not_part_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"1")
    run = Run(recipe_of(tmp_path / "runs", ["prepare"], data={"format": "folder", "root": str(tmp_path)}), STAGES)
    before = run.source
    run.folder.mkdir(parents=True)
    (run.folder / "recipe.json").write_text("{}")
    assert Run(run.recipe, STAGES).source == before
