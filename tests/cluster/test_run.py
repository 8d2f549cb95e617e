"""A whole run in miniature: every stage of `scenes`, what is reused, what is stale, what an interruption costs."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

from raycap.cluster import run as run_module
from raycap.cluster.data_stages import missing_clips, used_clips
from raycap.cluster.following import followed
from raycap.cluster.run import STAGES, check_room, run_recipe
from raycap.cluster.stages import Run, Stage
from raycap.cluster.training_stages import mle_stage, reward_signatures, scst_schedule
from raycap.data.features import FeatureStore
from raycap.errors import DataError, RecipeError, StaleStage, Stopped
from raycap.evaluate.captions import caption_images
from raycap.models.checkpoint import load_captioner
from raycap.models.export import export_captioner
from raycap.models.lora import is_adapter
from raycap.models.weights import snapshot
from raycap.recipe import Recipe, SCSTRecipe
from raycap.train.journal import read_log
from raycap.types import WeightsId

from .conftest import NUM_TRAIN, recipe_of

pytestmark = pytest.mark.ray

ALL = ["prepare", "clip", "features", "mle", "scst", "mle_continued", "evaluate"]


def whole(storage: Path, **sections: Any) -> Recipe:
    values: dict[str, Any] = {
        "clip": {
            "reward": {"model": "raycap-scenes-reward", "seed": 1},
            "judge": {"model": "raycap-scenes-judge", "seed": 2},
            "train": {"epochs": 1, "batch_size": 8},
        },
        "features": {"encoder": "clip.reward", "kind": "grid", "grid_size": 2, "views": 1},
        "mle": {"epochs": 2, "batch_size": 8},
        "scst": {"steps": 2, "select_every": 1},
        "rewards": {"cider": {"weight": 1.0}, "clip": {"weight": 0.1}},
        "evaluate": {"report_images": 3, "beam_size": 2, "samples": 3},
    }
    return recipe_of(storage, ALL, **{**values, **sections})


@pytest.fixture(scope="module")
def finished(ray_session: Any, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_recipe(whole(tmp_path_factory.mktemp("storage")))


def times(run: Run) -> dict[str, int]:
    return {stage: (run.path(stage, 0) / "finished.json").stat().st_mtime_ns for stage in ALL}


def test_every_system_has_its_row_and_the_report_shows_a_picture(finished: Run) -> None:
    results = json.loads((finished.folder / "results.json").read_text())
    rows = {(row["label"], row["decoding"]): row for row in results["rows"]}
    assert set(rows) == {(s, d) for s in ("mle_best", "mle_continued", "scst") for d in ("greedy", "beam2")}
    for row in rows.values():
        assert row["num_images"] == 4
        assert row["judge"] == "raycap-scenes-judge/tiny"
        assert {"cider_d", "bleu_4", "rouge_l", "clipscore"} <= row["metrics"].keys()
        sampled = {"distinct_1", "distinct_2", "mbleu_4", "self_cider"} & row["metrics"].keys()
        assert len(sampled) == (4 if row["decoding"] == "greedy" else 0)
    # systems that say the same everywhere differ in no picture: only the group of drawn ones is there
    report = (finished.path("evaluate", 0) / "report.html").read_text()
    assert report.count("data:image/") >= 1
    captions = json.loads((finished.path("evaluate", 0) / "captions.scst.greedy.seed-0.json").read_text())
    assert sorted(c["image_id"] for c in captions) == sorted(finished.dataset.ids("test"))


def test_training_images_have_their_views_and_no_others(finished: Run) -> None:
    store = FeatureStore.open(finished.path("features", 0) / "captioner")
    assert store.num_views == 1
    trained = finished.dataset.captioner_ids()
    assert not np.array_equal(store.get(trained), store.get(trained, views=[1] * len(trained)))
    for image_id in [*finished.dataset.select_ids(), *finished.dataset.ids("test")]:
        with pytest.raises(DataError, match="of view 1"):
            store.get([image_id], views=[1])


def test_steps_of_an_earlier_job_are_not_the_rate_of_this_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(step: int) -> None:
        with open(tmp_path / "log.jsonl", "a") as log:
            log.write(json.dumps({"step": step, "total_steps": 100}) + "\n")

    for step in range(31):
        write(step)
    with followed(tmp_path, "mle"):
        time.sleep(1.5)
        write(31)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["30/100"]
    assert "steps/s" not in lines[0]


def test_both_rewards_are_logged_by_component(finished: Run) -> None:
    signatures = json.loads((finished.path("scst", 0) / "rewards.json").read_text())
    assert signatures.keys() == {"cider", "clip"}
    assert signatures == finished.results("scst", 0)["rewards"]
    records = [r for r in read_log(finished.path("scst", 0)) if "pg_loss" in r]
    assert [r["step"] for r in records] == [1, 2]
    for record in records:
        assert {f"reward/{c}/{w}" for c in ("cider", "clip") for w in ("sampled", "greedy", "share")} <= record.keys()
        assert record["reward/cider/images"] == record["reward/clip/images"] == 6


def test_the_steps_of_the_control_are_recorded(finished: Run) -> None:
    recorded = json.loads((finished.path("mle_continued", 0) / "control.json").read_text())
    assert recorded == {"steps": finished.results("mle_continued", 0)["steps"]}
    assert recorded["steps"] > 0


def test_the_same_command_again_does_nothing(finished: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = times(finished)
    run_recipe(finished.recipe)
    assert times(finished) == before
    assert capsys.readouterr().out.count("finished before, reused") == len(ALL)


def test_evaluate_alone_finds_what_an_earlier_job_trained(finished: Run) -> None:
    before = times(finished)
    recipe = whole(finished.folder.parent)
    alone = run_recipe(recipe.model_copy(update={"stages": ["evaluate"]}))
    assert times(alone) == before
    again = recipe.evaluate.model_copy(update={"beam_size": 3})
    run_recipe(recipe.model_copy(update={"stages": ["evaluate"], "rerun": "stale", "evaluate": again}))
    rows = json.loads((finished.folder / "results.json").read_text())["rows"]
    assert {row["decoding"] for row in rows} == {"greedy", "beam3"}, "rows of the old beam stay beside the new ones"
    assert len(rows) == 6
    run_recipe(recipe.model_copy(update={"stages": ["evaluate"], "rerun": "stale"}))


def test_a_change_is_refused_by_name_and_leaves_everything(finished: Run) -> None:
    before = times(finished)
    changed = whole(finished.folder.parent, scst={"steps": 2, "select_every": 1, "lr": 5e-4})
    with pytest.raises(StaleStage, match=r"scst.*lr"):
        run_recipe(changed)
    assert times(finished) == before


def test_adapters_count_where_there_are_some(tmp_path: Path) -> None:
    """Of what `mle` is made from: values of another way to tune the LM make nothing stale."""

    def made_from(**captioner: Any) -> Any:
        return dict(STAGES["mle"].values(recipe_of(tmp_path, ["mle"], captioner=captioner)))

    assert made_from(lora={"rank": 4}) == made_from()
    assert made_from(lm_tuning="lora", lora={"rank": 4}) != made_from(lm_tuning="lora")


def test_where_things_run_makes_nothing_stale(finished: Run) -> None:
    """Nor need there be room for what is finished."""
    before = times(finished)
    cluster = {"rollout_workers": 99, "rollout_cpus": 1, "learner_cpus": 99, "lease_timeout_s": 30}
    run_recipe(whole(finished.folder.parent, cluster=cluster))
    assert times(finished) == before


def test_the_clip_that_rewards_is_trained_where_something_looks_through_it(tmp_path: Path) -> None:
    timm = {"encoder": "test_vit"}
    cider = {"rewards": {"cider": {}}}
    assert used_clips(whole(tmp_path)) == ["reward", "judge"]
    assert used_clips(whole(tmp_path, features=timm)) == ["reward", "judge"], "the reward clip"
    plain = whole(tmp_path, features=timm).model_copy(update={"rewards": recipe_of(tmp_path, ["mle"], **cider).rewards})
    assert used_clips(plain) == ["judge"]
    assert used_clips(plain.model_copy(update={"stages": ["prepare", "clip"]})) == ["reward", "judge"]
    from_clip = plain.features.model_copy(update={"encoder": "clip.reward"})
    assert used_clips(plain.model_copy(update={"features": from_clip})) == ["reward", "judge"]


def test_a_clip_that_another_reward_asks_for_later_is_trained_then(finished: Run) -> None:
    mark = finished.path("clip", 0) / "reward" / "clip.json"
    before = (finished.path("clip", 0) / "judge" / "clip.json").stat().st_mtime_ns
    assert missing_clips(finished) == []
    mark.unlink()  # as after a run that did not need it
    assert missing_clips(finished) == ["reward"]
    run_recipe(finished.recipe.model_copy(update={"stages": ["prepare", "clip"]}))
    assert mark.exists()
    assert (finished.path("clip", 0) / "judge" / "clip.json").stat().st_mtime_ns == before


def test_what_does_not_fit_is_refused_before_anything_runs(
    ray_session: Any, tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = ray_session.cluster_resources()["CPU"]
    cluster = {"rollout_workers": 9, "rollout_cpus": there / 4}
    run = tiny_run("large", cluster=cluster)
    short = "needs 9.1 CPUs, the cluster has 4: learner 1 x 0.1, rollout 9 x 1"
    with pytest.raises(RecipeError) as refused:
        run_recipe(run.recipe)
    assert str(refused.value).startswith(f"stages = 'scst': {short} (lower cluster.rollout_workers")
    assert refused.value.exit_code == 2
    assert not run.path("scst", 0).exists()
    capsys.readouterr()
    check_room(Run(recipe_of(tmp_path, ["scst"], cluster={**cluster, "rollout_workers": 3}), STAGES))
    check_room(Run(recipe_of(tmp_path, ["mle"], cluster=cluster), STAGES))
    assert not capsys.readouterr().out, "nothing of it runs"
    check_room(Run(recipe_of(tmp_path, ["scst"], cluster={**cluster, "autoscaling": True}), STAGES))
    assert capsys.readouterr().out.startswith(f"scst: {short}; cluster.autoscaling is set")
    gpus = {"device": "cuda", "cluster": {"learner_gpus": 0, "rollout_gpus": 0.5}}
    with pytest.raises(RecipeError, match=r"needs 1 GPUs, the cluster has 0: rollout 2 x 0\.5"):
        check_room(Run(recipe_of(tmp_path, ["scst"], **gpus), STAGES))


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets the nodes that a run sees."""

    def set_nodes(*nodes: dict[str, float]) -> None:
        monkeypatch.setattr("raycap.cluster.run.nodes", lambda: list(nodes))
        monkeypatch.setattr("raycap.cluster.stages.nodes", lambda: list(nodes))

    return set_nodes


def test_what_would_be_left_over_as_ray_starts_it_is_refused_or_told(
    on: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both of 0.4 start first and go to one GPU; then one of 0.6 has none."""
    clip = {"clip": {"reward": {"model": "raycap-scenes-reward"}}}

    def check(clip_gpus: float, rollout_gpus: float) -> None:
        rewards = {"clip": {"num_gpus": clip_gpus, "workers": 2}}
        cluster = {"learner_gpus": 0, "rollout_gpus": rollout_gpus}
        check_room(Run(recipe_of(tmp_path, ["scst"], device="cuda", cluster=cluster, rewards=rewards, **clip), STAGES))

    on({"CPU": 8, "GPU": 2})
    why = "Ray places one after another, each where it fits best and not where it leaves room for the next"
    parts = r"learner 1 x \(0.1 CPUs\), clip 2 x \(0.4 GPUs\), rollout 2 x \(0.6 GPUs\)"
    with pytest.raises(RecipeError, match=f"place for all, but {why}: the last of {parts} would wait for ever"):
        check(0.4, 0.6)
    check(0.6, 0.4)
    check(0.5, 0.5)
    assert not capsys.readouterr().out
    on({"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 1})
    check(0.4, 0.6)
    said = capsys.readouterr().out
    assert said.startswith(f"warning: {why}: some of learner 1 x (0.1 CPUs), clip 2 x (0.4 GPUs), rollout 2 x")
    assert said.endswith("may find no place; with equal GPUs all do\n")


def test_workers_that_have_nothing_to_do_are_told_of(
    on: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on({"CPU": 8})
    check_room(Run(recipe_of(tmp_path, ["scst"], device="cpu", cluster={"rollout_workers": 5}), STAGES))
    assert capsys.readouterr().out.startswith("warning: 2 of cluster.rollout_workers = 5 have nothing to do, ever: a ")
    check_room(Run(recipe_of(tmp_path, ["mle"], device="cpu", cluster={"rollout_workers": 5}), STAGES))
    check_room(Run(recipe_of(tmp_path, ["scst"], device="cpu", cluster={"rollout_workers": 3}), STAGES))
    assert not capsys.readouterr().out


def test_signatures_say_what_was_rewarded_against_what() -> None:
    recipe = SCSTRecipe(baseline="leave_one_out", num_samples=5)
    signature = reward_signatures({"cider": "STANDARD_wInit+Cider-D[n4,s6.0]"}, recipe)["cider"]
    assert signature.startswith("STANDARD_wInit+Cider-D[n4,s6.0]+average[nspi5]+raycap-")
    greedy = reward_signatures({"cider": "x"}, SCSTRecipe(baseline="greedy", num_samples=3))["cider"]
    assert greedy.startswith("x+greedy[nspi3]+")


def test_a_wrong_reward_is_refused_before_the_first_stage(tmp_path: Path) -> None:
    for rewards, message in (
        ({"cider": {"options": {"eso": True}}}, r"rewards.cider.options = .*eso"),
        ({"mine": {"source": "nowhere.to:Be"}}, r"rewards.mine.source = 'nowhere.to:Be'"),
        (
            {"mine": {"source": "tests.cluster.faulty:Picky", "options": {"size": 0}}},
            r"rewards.mine.options.*1 or more",
        ),
        ({"bleu": {"options": {"order": 9}}}, r"rewards.bleu.options.order = 9"),
        ({"repetition": {"options": {"n": 0}}}, r"rewards.repetition.options.n = 0"),
        ({"repetition": {"options": {"n": "two"}}}, r"rewards.repetition.options = .*two"),
        ({"length": {"options": {"target": -1}}}, r"rewards.length.options.target = -1"),
        ({"critic": {"options": {"model": "a:B", "checkpoint": "/nowhere"}}}, r"rewards.critic.options.checkpoint"),
    ):
        with pytest.raises(RecipeError, match=message):
            run_recipe(
                whole(tmp_path).model_copy(update={"rewards": recipe_of(tmp_path, ["mle"], rewards=rewards).rewards})
            )
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_reward_that_refuses_when_it_is_built_says_so(ray_session: Any, tiny_run: Any) -> None:
    run = tiny_run("refused", rewards={"mine": {"source": "tests.cluster.faulty:Refuses"}})
    with pytest.raises(RecipeError, match=r"rewards.mine.options = \{\}"):
        run_recipe(run.recipe)


def test_a_stop_in_the_last_step_stops_what_comes_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There was nothing left to stop in that stage; it is finished, and the same command goes on behind it."""
    recipe, ran = recipe_of(tmp_path, ["mle", "scst"]), []

    def last_step(run: Run, seed: int) -> dict[str, Any]:
        ran.append("mle")
        os.kill(os.getpid(), signal.SIGTERM)
        return {}

    def next_stage(run: Run, seed: int) -> dict[str, Any]:
        ran.append("scst")
        return {}

    stages = {"mle": Stage("mle", False, (), lambda recipe: {}, last_step, stops=True),
              "scst": Stage("scst", False, (), lambda recipe: {}, next_stage, stops=True)}  # fmt: skip
    monkeypatch.setattr(run_module, "STAGES", stages)
    run = Run(recipe, stages)
    with pytest.raises(Stopped, match=r"stopped after mle, which is finished: SIGTERM"):
        run_module._run_stage(run, "mle", 0)
    assert run.results("mle", 0)["wall_seconds"] >= 0
    for name in stages:
        run_module._run_stage(run, name, 0)
    assert ran == ["mle", "scst"]


def test_missing_data_and_relative_paths_are_refused_before_ray(tmp_path: Path) -> None:
    data = {"format": "flickr8k", "root": str(tmp_path / "nowhere")}
    with pytest.raises((DataError, RecipeError), match=r"data\.root"):
        run_recipe(recipe_of(tmp_path / "runs", ["prepare"], data=data))
    with pytest.raises((DataError, RecipeError), match=r"data\.root"):
        run_recipe(recipe_of(tmp_path / "runs", ["prepare"], data={"format": "flickr8k", "root": "relative/folder"}))
    with pytest.raises(RecipeError, match="storage"):
        run_recipe(recipe_of(Path("relative"), ["prepare"]))
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("*.parquet"))


def test_a_component_that_only_watches_does_not_choose_the_images(tmp_path: Path, tiny_run: Any) -> None:
    """CIDEr needs references; at weight 0 it trains nothing, and says nothing of images that have none."""
    clip = {"reward": {"model": "raycap-scenes-reward", "pretrained": "openai"}}
    few = {"data": {"num_labeled": 8}, "clip": clip}
    images = []
    for name, weight in (("trains", 1.0), ("watches", 0.0)):
        run = tiny_run(name, rewards={"clip": {}, "cider": {"weight": weight}}, **few)
        images.append(len(scst_schedule(run, 0).image_ids))
    assert images == [8, NUM_TRAIN - 4]


def test_more_ranks_than_images_in_a_batch_are_refused(tiny_run: Any) -> None:
    run = tiny_run("ranks", mle={"batch_size": 4}, cluster={"learner_workers": 5}, scst={"lease_size": 1})
    with pytest.raises(RecipeError, match=r"cluster\.learner_workers = 5: a batch of MLE has 4 images"):
        mle_stage(run, 0)


@pytest.mark.parametrize("tuning", ["lora", "frozen"])
def test_a_pretrained_lm_goes_through_every_stage(
    ray_session: Any, tiny_run: Any, tmp_path: Path, pretrained_lm: Path, tuning: str
) -> None:
    """With adapters, or as it came: nothing of it is stored or published; an export says what the table was made of."""
    scst, mle = {"steps": 2, "select_every": 1}, {"epochs": 1, "batch_size": 8}
    tables = {"metrics": ["bleu", "cider"], "beam_size": 2, "report_images": 0}
    begun = tiny_run("pretrained", captioner={"lm": str(pretrained_lm), "lm_tuning": tuning}, scst=scst, mle=mle,
                     mle_continued={"steps": 2}, evaluate=tables)  # fmt: skip
    shutil.rmtree(begun.path("mle", 0))  # which the fixture did not train
    begun.stage_folder("prepare", 0).finish({"counts": {}})  # for the report
    run = run_recipe(begun.recipe.model_copy(update={"stages": ["mle", "scst", "mle_continued", "evaluate"]}))
    rows = json.loads((run.folder / "results.json").read_text())["rows"]
    assert {row["label"] for row in rows} == {"mle_best", "mle_continued", "scst"}
    trained = load_captioner(run.path("scst", 0) / "best")
    stored = load_file(run.path("scst", 0) / "best" / "model.safetensors")
    assert {name.split(".")[0] for name in stored if not is_adapter(name)} == {"mapping"}
    assert any(map(is_adapter, stored)) == (tuning == "lora")
    published = {record.get("published_bytes") for record in read_log(run.path("scst", 0)) if "pg_loss" in record}
    assert published == {snapshot(trained, WeightsId(0, 0)).nbytes}
    exported = load_captioner(export_captioner(run.path("scst", 0), tmp_path / "export"))
    features, ids = FeatureStore.open(run.path("features", 0) / "captioner"), run.dataset.ids("test")
    for decoding in ("greedy", "beam"):
        written = next(run.path("evaluate", 0).glob(f"captions.scst.{decoding}*")).read_text()
        told = {each["image_id"]: each["caption"] for each in json.loads(written)}
        assert len(set(told.values())) > 1
        assert told == caption_images(exported, features, ids, decoding=decoding, max_length=12, beam_size=2)
