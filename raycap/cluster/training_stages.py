"""Stages that train a captioner: `mle`, `scst`, and the control `mle_continued`, each as a Ray Train job."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import raycap
from raycap.cluster.absence import Absence
from raycap.cluster.allocator import ALLOCATOR
from raycap.cluster.crew import RolloutCrew
from raycap.cluster.data_stages import clip_embeddings
from raycap.cluster.exchange_actor import ExchangeActor
from raycap.cluster.fitting import Want, count_that_fits
from raycap.cluster.following import followed
from raycap.cluster.learner_loop import PROMPTS, scst_loop
from raycap.cluster.precision import stage_precision
from raycap.cluster.reaching import reached
from raycap.cluster.resources import LEARNER, ROLLOUT, as_they_start
from raycap.cluster.reward_pool import RewardPools, RewardWorker
from raycap.cluster.rollout_worker import RolloutActor
from raycap.cluster.room import LearnersRoom, Seat
from raycap.cluster.silence import START_S
from raycap.cluster.stages import Run
from raycap.cluster.storage import write_json
from raycap.cluster.tasks import nodes, on
from raycap.cluster.train_job import rank_journal, run_train_job, training_group
from raycap.data.features import FeatureStore
from raycap.errors import RecipeError
from raycap.models.build import new_captioner
from raycap.models.checkpoint import load_captioner
from raycap.models.grid import side_of
from raycap.models.prefix import PrefixCaptioner
from raycap.models.recompute import recompute_blocks
from raycap.recipe import ClusterRecipe, Recipe, SCSTRecipe
from raycap.recipe.sections import WITH_REFERENCES
from raycap.rewards.cider import write_document_frequency
from raycap.rewards.context import ContextSpec
from raycap.train.group import built_together
from raycap.train.labelled import LabelledSet
from raycap.train.mle import Control, train_mle
from raycap.train.prompts import PromptSchedule
from raycap.train.stopping import stop_before_start
from raycap.train.validation import Validator


def mle_stage(run: Run, seed: int) -> dict[str, Any]:
    """Cross-entropy on the labelled images until `select` no longer improves."""
    _check_windows(run, seed)
    _check_ranks(run)
    config = _mle_config(run, seed, "mle")
    with followed(run.path("mle", seed), "mle"):
        return run_train_job(_mle_loop, config, _alone(run), run.path("mle", seed))


def mle_continued_stage(run: Run, seed: int) -> dict[str, Any]:
    """The control: from MLE's best, cross-entropy for as many seconds as SCST took."""
    folder, recipe = run.path("mle_continued", seed), run.recipe
    continued = recipe.mle.model_copy(update={"lr": recipe.mle_continued.lr})
    config = _mle_config(run, seed, "mle_continued") | {
        "mle": continued,
        "start": str(run.path("mle", seed) / "best"),
        "control": asdict(_control(run, seed, folder)),  # plain: the controller need not import torch for it
    }
    with followed(folder, "mle_continued"):
        return run_train_job(_mle_loop, config, _alone(run), folder)


def _check_windows(run: Run, seed: int) -> None:
    """Before hours of training: can the grid be cropped as the recipe says?"""
    cells = FeatureStore.open(run.path("features", seed) / "captioner").shape[0]
    for name, window in (("mle", run.recipe.mle), ("scst", run.recipe.scst)):
        if (window.crop or window.flip) and window.crop >= side_of(cells):
            raise RecipeError(f"the grid has {side_of(cells)} cells a side", key=f"{name}.crop", value=window.crop,
                              remedy="crop fewer cells than that")  # fmt: skip


def _check_ranks(run: Run) -> None:
    """Every rank needs an image of each batch."""
    ranks, images = run.recipe.cluster.learner_workers, len(run.labelled_ids(run.dataset))
    if ranks > min(images, run.recipe.mle.batch_size):
        raise RecipeError(f"a batch of MLE has {min(images, run.recipe.mle.batch_size)} images, fewer than ranks",
                          key="cluster.learner_workers", value=ranks,
                          remedy="lower it, or raise mle.batch_size where there are more labelled images",
                          )  # fmt: skip


def _alone(run: Run) -> ClusterRecipe:
    """The recipe's section with the GPUs of a learner that has the cluster for itself."""
    return run.recipe.cluster.model_copy(update={"learner_gpus": run.gpus(LEARNER, alone=True)})


CONTROL = "control.json"


def _control(run: Run, seed: int, folder: Path) -> Control:
    """How long the control runs: the recipe's steps, or as many seconds as SCST took.

    The first guess at the steps, which only shapes the learning rate's beginning, is at MLE's measured pace.
    """
    if run.recipe.mle_continued.steps:
        return Control(run.recipe.mle_continued.steps)
    mle, scst = run.results("mle", seed), run.results("scst", seed)
    guess = max(1, round(scst["seconds"] * mle["steps"] / mle["seconds"]))
    return Control(guess, scst["seconds"], folder / CONTROL)


def _mle_config(run: Run, seed: int, stage: str) -> dict[str, Any]:
    return {
        "recipe": run.recipe,
        "mle": run.recipe.mle,
        "seed": seed,
        "device": run.device_of("learner", alone=True),
        "precision": stage_precision(run, stage, seed)["learner"],
        "prepared": str(run.path("prepare", seed)),
        "features": str(run.path("features", seed) / "captioner"),
        "folder": str(run.path(stage, seed)),
        "labelled": run.labelled_ids(run.dataset),
        "select_references": run.select_references(run.dataset),
        "about": run.about(stage, seed),
    }


def _mle_loop(config: dict[str, Any]) -> dict[str, Any]:
    """Runs in every rank of a Ray Train job."""
    import torch

    from raycap.data.dataset import PreparedDataset

    recipe: Recipe = config["recipe"]
    dataset = PreparedDataset.open(config["prepared"])
    captions = {image_id: dataset.references(image_id) for image_id in config["labelled"]}
    group = training_group(recipe.cluster, config["device"])

    def set_up() -> tuple[FeatureStore, PrefixCaptioner]:
        features = FeatureStore.open(Path(config["features"]))
        if "start" in config:
            made = load_captioner(Path(config["start"]))
        else:
            made = new_captioner(recipe.captioner, features.shape, captions, seed=config["seed"])
        if recipe.cluster.learner_recompute:
            recompute_blocks(made)
        return features, made.to(group.starts_on(on(config["device"])))

    features, captioner = built_together(group, set_up)
    features.warm(views=recipe.mle.views)
    journal = rank_journal(
        config["folder"], group, keep=2, about=config["about"], logging=recipe.logging,
        watched=config.get("watched", False), closing=config.get("closing"),
    )  # fmt: skip
    max_length = recipe.captioner.max_length
    return train_mle(
        captioner,
        LabelledSet(captions, captioner.tokenizer, max_length),
        features,
        Validator(config["select_references"], features, max_length=max_length),
        config["mle"],
        seed=config["seed"],
        journal=journal,
        group=group,
        control=Control(**config["control"]) if "control" in config else None,
        precision=getattr(torch, config["precision"]),
    )


def scst_stage(run: Run, seed: int) -> dict[str, Any]:
    """Self-critical sequence training: Exchange, rollout crew, reward pools, learner."""
    import ray

    recipe, folder = run.recipe, run.path("scst", seed)
    spec = reward_context(run, folder)
    schedule = scst_schedule(run, seed)
    precision = stage_precision(run, "scst", seed)
    wants = {want.role: want for want in run.wants("scst")}  # once: shares do not change when a node is lost
    if run.device == "cuda":
        print("scst            GPUs of each: " + ", ".join(f"{w.role} {w.gpus:g}" for w in wants.values()), flush=True)
    limit_s = recipe.cluster.stall_timeout_s + START_S
    with ExitStack() as ends:
        learner = wants[LEARNER]
        stop = partial(stop_before_start, folder)
        seat = ends.enter_context(Seat("the learner", [learner.bundle] * learner.count, limit_s, stop))
        exchange = _exchange(run, seed, schedule)
        ends.callback(ray.kill, exchange)
        in_turn = [want for want in as_they_start(list(wants.values())) if want.role in recipe.rewards]
        made = {want.role: _reward_actors(want, spec, run) for want in in_turn}
        pools = RewardPools({name: made[name] for name in recipe.rewards})
        for actor in (actor for pool in pools.actors.values() for actor in pool):
            ends.callback(ray.kill, actor)
        at_once = count_that_fits(nodes(), list(wants.values()), ROLLOUT)
        start = _rollout_starter(run, seed, pools, wants[ROLLOUT], precision["rollout"])
        rewards = Absence([(name, actor) for name, pool in pools.actors.items() for actor in pool])
        crew = RolloutCrew(start, exchange, recipe.cluster.rollout_workers, at_once=at_once, room=LearnersRoom(),
                           rewards=rewards, quarantine_after=recipe.cluster.quarantine_after)  # fmt: skip
        ends.enter_context(crew)
        ready = pools.wait_until_ready(limit_s, stop)  # while the crew's processes start
        signatures = reward_signatures(ready, recipe.scst)
        write_json(folder / "rewards.json", signatures)
        config = _scst_config(run, seed) | {
            "exchange": exchange, "device": learner.device, "precision": precision["learner"]
        }  # fmt: skip
        cluster = recipe.cluster.model_copy(update={"learner_gpus": learner.gpus})
        seat.free()
        with followed(folder, "scst"):
            results = run_train_job(scst_loop, config, cluster, folder)
        status = _last_words(exchange)
        return {**results, "rewards": signatures, "exchange": status, "workers_lost": crew.losses}


def _exchange(run: Run, seed: int, schedule: PromptSchedule) -> Any:
    """The stage's Exchange, as an actor that Ray starts again."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    recipe = run.recipe
    # On the driver's node, which on a cluster is the head: an actor without CPUs would land anywhere, spot nodes too.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    prompts = run.path("scst", seed) / PROMPTS
    write_json(prompts, list(schedule.image_ids))
    return ray.remote(ExchangeActor).options(
        num_cpus=0, max_concurrency=1000, scheduling_strategy=here, max_restarts=-1, max_task_retries=0
    ).remote(
        str(prompts),
        batch_size=recipe.scst.batch_size,
        lease_size=recipe.scst.lease_size,
        seed=seed,
        total_steps=recipe.scst.steps,
        max_policy_lag=recipe.scst.max_policy_lag,
        lease_timeout_s=recipe.cluster.lease_timeout_s,
        quarantine_after=recipe.cluster.quarantine_after,
    )  # fmt: skip


def _scst_config(run: Run, seed: int) -> dict[str, Any]:
    """What `scst_loop` reads, but for its place on the cluster."""
    return {
        "recipe": run.recipe,
        "seed": seed,
        "start": str(run.path("mle", seed) / "best"),
        "features": str(run.path("features", seed) / "captioner"),
        "folder": str(run.path("scst", seed)),
        "select_references": run.select_references(run.dataset),
        "prepared": str(run.path("prepare", 0)),
        "labelled": run.labelled_ids(run.dataset) if run.recipe.scst.mle_weight else [],
        "about": run.about("scst", seed),
    }


def _last_words(exchange: Any) -> dict[str, Any]:
    """What the Exchange has counted, and the end of its work. The run is finished, with it or without it."""
    import ray

    try:
        status = reached(lambda: exchange.status.remote())
        reached(lambda: exchange.close.remote())
    except ray.exceptions.RayError as error:
        return {"lost": str(error)[:200]}
    return status


_BASELINE_NAMES = {"leave_one_out": "average", "greedy": "greedy", "mean": "mean"}  # as SacreEOS calls them


def reward_signatures(components: Mapping[str, str], recipe: SCSTRecipe) -> dict[str, str]:
    """What exactly was rewarded, by component: its own signature, the baseline, K (SacreEOS's nspi), our version."""
    ending = f"{_BASELINE_NAMES[recipe.baseline]}[nspi{recipe.num_samples}]+raycap-{raycap.__version__}"
    return {name: f"{signature}+{ending}" for name, signature in components.items()}


def reward_context(run: Run, folder: Path) -> ContextSpec:
    """What reward components of the run may know; document frequencies are counted once and lie in `folder`."""
    labelled = run.labelled_ids(run.dataset)
    frequency = folder / "document_frequency.npz"
    if not frequency.exists():
        cider = run.recipe.rewards.get("cider")
        eos = bool(cider.options.get("eos", True)) if cider and not cider.source else True
        write_document_frequency({i: run.dataset.references(i) for i in labelled}, frequency, eos=eos)
    write_json(folder / "labelled.json", labelled)
    trained = run.trained_clip("reward")
    embeddings = clip_embeddings(run)
    return ContextSpec(
        recipe=run.recipe,
        prepared=str(run.path("prepare", 0)),
        labelled=str(folder / "labelled.json"),
        document_frequency=str(frequency),
        clip_embeddings=str(embeddings) if embeddings else "",
        trained_clip=str(trained) if trained else "",
        device=run.device,
    )


def scst_schedule(run: Run, seed: int) -> PromptSchedule:
    """Prompts by step: labelled images where a reward needs references, all images of the captioner elsewhere."""
    recipe = run.recipe
    trained_on = {n: r for n, r in recipe.rewards.items() if r.weight or r.schedule}  # the others only watch
    needs_references = any(n in WITH_REFERENCES and not reward.source for n, reward in trained_on.items())
    ids = run.labelled_ids(run.dataset) if needs_references else run.dataset.captioner_ids()
    schedule = PromptSchedule(ids, batch_size=recipe.scst.batch_size, lease_size=recipe.scst.lease_size, seed=seed)
    leases = len(schedule.leases(0))
    if leases < recipe.cluster.learner_workers:
        raise RecipeError(f"a step has {leases} leases, fewer than ranks", key="cluster.learner_workers",
                          value=recipe.cluster.learner_workers, remedy="lower scst.lease_size")  # fmt: skip
    return schedule


_PLACEMENT = {"PACK": "DEFAULT", "SPREAD": "SPREAD"}  # Ray's names for actors: by default nodes are filled up to half


def _actor(kind: type, want: Want, run: Run, **options: Any) -> Any:
    """A class as an actor of a role."""
    import ray

    return ray.remote(kind).options(
        num_cpus=want.cpus, num_gpus=want.gpus, scheduling_strategy=_PLACEMENT[run.recipe.cluster.placement],
        runtime_env={"env_vars": ALLOCATOR}, **options,
    )  # fmt: skip


def _reward_actors(want: Want, spec: ContextSpec, run: Run) -> list[Any]:
    kind = _actor(RewardWorker, want, run, max_restarts=-1, max_task_retries=0)
    reward, cluster = run.recipe.rewards[want.role], run.recipe.cluster
    spec = replace(spec, device=want.device)
    # the threads of the reference, which scores where it generates: at lag 0 the last bit may hang on them
    built = (want.role, spec, reward.options, reward.source, cluster.rollout_threads, cluster.reward_timeout_s)
    return [kind.remote(*built, shares_gpu=cluster.collocated) for _ in range(want.count)]


def _rollout_starter(run: Run, seed: int, pools: RewardPools, want: Want, precision: str) -> Callable[[str], Any]:
    recipe, kind = run.recipe, _actor(RolloutActor, want, run, max_restarts=0)

    def start(name: str) -> Any:
        return kind.remote(
            name,
            str(run.path("mle", seed) / "best"),
            str(run.path("features", seed) / "captioner"),
            recipe.scst,
            pools,
            max_length=recipe.captioner.max_length,
            seed=seed,
            threads=recipe.cluster.rollout_threads,
            device=want.device,
            precision=precision,
            ahead=recipe.cluster.leases_ahead,
            shares_gpu=recipe.cluster.collocated,
        )

    return start
