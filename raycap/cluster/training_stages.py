"""Stages that train a captioner: `mle`, `scst`, and the control `mle_continued`, each as a Ray Train job."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import raycap
from raycap.cluster.allocator import ALLOCATOR
from raycap.cluster.crew import RolloutCrew
from raycap.cluster.data_stages import clip_embeddings
from raycap.cluster.exchange import Exchange
from raycap.cluster.learner_loop import scst_loop
from raycap.cluster.reward_pool import RewardPools, RewardWorker
from raycap.cluster.rollout_worker import RolloutActor
from raycap.cluster.stages import Run
from raycap.cluster.storage import write_json
from raycap.cluster.tasks import on
from raycap.cluster.train_job import rank_journal, run_train_job, training_group
from raycap.data.features import FeatureStore
from raycap.errors import RecipeError
from raycap.models.build import new_captioner
from raycap.models.checkpoint import load_captioner
from raycap.models.grid import side_of
from raycap.recipe import ClusterRecipe, Recipe, SCSTRecipe
from raycap.recipe.sections import WITH_REFERENCES
from raycap.rewards.cider import write_document_frequency
from raycap.rewards.context import ContextSpec
from raycap.train.labelled import LabelledSet
from raycap.train.mle import Control, train_mle
from raycap.train.progress import Progress
from raycap.train.prompts import PromptSchedule
from raycap.train.validation import Validator


def mle_stage(run: Run, seed: int) -> dict[str, Any]:
    """Cross-entropy on the labelled images until `select` no longer improves."""
    _check_windows(run, seed)
    config = _mle_config(run, seed, "mle")
    with _shown(run.path("mle", seed), "mle"):
        return run_train_job(_mle_loop, config, _cluster(run, alone=True), run.path("mle", seed))


def mle_continued_stage(run: Run, seed: int) -> dict[str, Any]:
    """The control: from MLE's best, cross-entropy for as many seconds as SCST took."""
    folder, recipe = run.path("mle_continued", seed), run.recipe
    continued = recipe.mle.model_copy(update={"lr": recipe.mle_continued.lr})
    config = _mle_config(run, seed, "mle_continued") | {
        "mle": continued,
        "start": str(run.path("mle", seed) / "best"),
        "control": asdict(_control(run, seed, folder)),  # plain: the controller need not import torch for it
    }
    with _shown(folder, "mle_continued"):
        results = run_train_job(_mle_loop, config, _cluster(run, alone=True), folder)
    write_json(folder / CONTROL, asdict(Control(results["steps"])))
    return results


def _check_windows(run: Run, seed: int) -> None:
    """Before hours of training: can the grid be cropped as the recipe says?"""
    cells = FeatureStore.open(run.path("features", seed) / "captioner").shape[0]
    for name, window in (("mle", run.recipe.mle), ("scst", run.recipe.scst)):
        if (window.crop or window.flip) and window.crop >= side_of(cells):
            raise RecipeError(f"the grid has {side_of(cells)} cells a side", key=f"{name}.crop", value=window.crop,
                              remedy="crop fewer cells than that")  # fmt: skip


def _cluster(run: Run, *, alone: bool) -> ClusterRecipe:
    """The recipe's section with the learner's share of the GPUs filled in."""
    return run.recipe.cluster.model_copy(update={"learner_gpus": run.gpus("learner", alone=alone)})


CONTROL = "control.json"


def _control(run: Run, seed: int, folder: Path) -> Control:
    """How long the control runs: the recipe's steps, or as many seconds as SCST took.

    What it came to in steps is recorded at its end; a repeat uses the record. The first guess, which only shapes the
    learning rate's beginning, is at MLE's measured pace.
    """
    record = folder / CONTROL
    if record.exists():
        return Control(**json.loads(record.read_text()))
    if run.recipe.mle_continued.steps:
        return Control(run.recipe.mle_continued.steps)
    mle, scst = run.results("mle", seed), run.results("scst", seed)
    control = Control(max(1, round(scst["seconds"] * mle["steps"] / mle["seconds"])), scst["seconds"])
    write_json(record, asdict(control))
    return control


def _mle_config(run: Run, seed: int, stage: str) -> dict[str, Any]:
    return {
        "recipe": run.recipe,
        "mle": run.recipe.mle,
        "seed": seed,
        "device": run.device_of("learner", alone=True),
        "prepared": str(run.path("prepare", seed)),
        "features": str(run.path("features", seed) / "captioner"),
        "folder": str(run.path(stage, seed)),
        "labelled": run.labelled_ids(run.dataset),
        "select_references": run.select_references(run.dataset),
        "about": run.about(stage, seed),
    }


def _mle_loop(config: dict[str, Any]) -> dict[str, Any]:
    """Runs in every rank of a Ray Train job."""
    from raycap.data.dataset import PreparedDataset

    recipe: Recipe = config["recipe"]
    dataset = PreparedDataset.open(config["prepared"])
    captions = {image_id: dataset.references(image_id) for image_id in config["labelled"]}
    features = FeatureStore.open(Path(config["features"]))
    features.warm(views=recipe.mle.views)
    if "start" in config:
        captioner = load_captioner(Path(config["start"]))
    else:
        captioner = new_captioner(recipe.captioner, features.shape, captions, seed=config["seed"])
    group = training_group()
    journal = rank_journal(config["folder"], group, keep=2, about=config["about"])
    max_length = recipe.captioner.max_length
    return train_mle(
        captioner.to(on(config["device"])),
        LabelledSet(captions, captioner.tokenizer, max_length),
        features,
        Validator(config["select_references"], features, max_length=max_length),
        config["mle"],
        seed=config["seed"],
        journal=journal,
        group=group,
        control=Control(**config["control"]) if "control" in config else None,
    )


def scst_stage(run: Run, seed: int) -> dict[str, Any]:
    """Self-critical sequence training: Exchange, rollout crew, reward pools, learner."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    recipe, folder = run.recipe, run.path("scst", seed)
    spec = reward_context(run, folder)
    schedule = scst_schedule(run, seed)
    # On the driver's node, which on a cluster is the head: an actor without CPUs would land anywhere, spot nodes too.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    exchange = ray.remote(Exchange).options(num_cpus=0, max_concurrency=1000, scheduling_strategy=here).remote(
        schedule,
        total_steps=recipe.scst.steps,
        max_policy_lag=recipe.scst.max_policy_lag,
        lease_timeout_s=recipe.cluster.lease_timeout_s,
        quarantine_after=recipe.cluster.quarantine_after,
    )  # fmt: skip
    config = {
        "recipe": recipe,
        "seed": seed,
        "device": run.device_of("learner"),
        "exchange": exchange,
        "start": str(run.path("mle", seed) / "best"),
        "features": str(run.path("features", seed) / "captioner"),
        "folder": str(folder),
        "select_references": run.select_references(run.dataset),
        "about": run.about("scst", seed),
    }
    if run.device == "cuda":
        roles = ["learner", "rollout", *recipe.rewards]
        print("scst            GPUs of each: " + ", ".join(f"{r} {run.gpus(r):g}" for r in roles), flush=True)
    pools = RewardPools({name: _reward_actors(name, spec, run) for name in recipe.rewards})
    try:
        with RolloutCrew(_rollout_starter(run, seed, pools), exchange, recipe.cluster.rollout_workers) as crew:
            signatures = reward_signatures(pools.wait_until_ready(), recipe.scst)  # while the crew's processes start
            write_json(folder / "rewards.json", signatures)
            with _shown(folder, "scst"):
                results = run_train_job(scst_loop, config, _cluster(run, alone=False), folder)
            status = ray.get(exchange.status.remote())
            ray.get(exchange.close.remote())
            return {**results, "rewards": signatures, "exchange": status, "workers_lost": crew.losses}
    finally:
        for actor in [exchange, *(a for pool in pools.actors.values() for a in pool)]:
            ray.kill(actor)


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
    needs_references = any(n in WITH_REFERENCES and not reward.source for n, reward in recipe.rewards.items())
    ids = run.labelled_ids(run.dataset) if needs_references else run.dataset.captioner_ids()
    schedule = PromptSchedule(ids, batch_size=recipe.scst.batch_size, lease_size=recipe.scst.lease_size, seed=seed)
    leases = len(schedule.leases(0))
    if leases < recipe.cluster.learner_workers:
        raise RecipeError(f"a step has {leases} leases, fewer than ranks", key="cluster.learner_workers",
                          value=recipe.cluster.learner_workers, remedy="lower scst.lease_size")  # fmt: skip
    return schedule


def _reward_actors(name: str, spec: ContextSpec, run: Run) -> list[Any]:
    import ray

    reward = run.recipe.rewards[name]
    kind = ray.remote(RewardWorker).options(
        num_cpus=reward.num_cpus, num_gpus=run.gpus(name), max_restarts=-1, max_task_retries=0,
        runtime_env={"env_vars": ALLOCATOR},
    )  # fmt: skip
    spec = replace(spec, device=run.device_of(name))
    # the threads of the reference, which scores where it generates: at lag 0 the last bit may hang on them
    threads = run.recipe.cluster.rollout_threads
    return [kind.remote(name, spec, reward.options, reward.source, threads) for _ in range(reward.workers)]


def _rollout_starter(run: Run, seed: int, pools: RewardPools) -> Callable[[str], Any]:
    import ray

    recipe = run.recipe
    kind = ray.remote(RolloutActor).options(
        num_cpus=recipe.cluster.rollout_cpus, num_gpus=run.gpus("rollout"), max_restarts=0,
        runtime_env={"env_vars": ALLOCATOR},
    )  # fmt: skip

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
            device=run.device_of("rollout"),
        )

    return start


@contextmanager
def _shown(folder: Path, label: str) -> Iterator[None]:
    """Follow a stage's log.jsonl while it is written, and print progress from it."""
    stop = threading.Event()
    progress = Progress(label, "steps")

    file = folder / "log.jsonl"

    def follow() -> None:
        place = 0
        last: dict[str, Any] = {}
        ended = False
        while not ended:
            ended = stop.wait(1.0)  # one more read after the end: the last lines belong to it
            if not file.exists():
                continue
            if file.stat().st_size < place:  # a resume cut the log
                place = 0
            with open(file, "rb") as handle:
                handle.seek(place)
                lines = handle.read().split(b"\n")
            place += sum(len(line) + 1 for line in lines[:-1])
            newest: dict[str, Any] = {}
            for line in lines[:-1]:
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # a resume is cutting the log
                last |= record
                if "warning" in record:
                    print(f"{label:<14}  warning: {record['warning']}", flush=True)
                if "step" in record and "total_steps" in record:
                    newest = record
            # Once a look and not once a line: the steps of an earlier job, read at a stroke, are not this one's rate.
            if newest:
                progress.update(newest["step"], newest["total_steps"], describe(last))

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=5)


def describe(record: Mapping[str, Any]) -> str:
    """A log record's figures in words: losses, rewards, the last look at `select`."""
    parts = []
    if "train_loss" in record:
        parts.append(f"loss {record['train_loss']:.3f}")
    for key in record:
        if key.startswith("reward/") and key.endswith("/sampled"):
            name = key.split("/")[1]
            parts.append(f"{name} {record[key]:.3f} (greedy {record[f'reward/{name}/greedy']:.3f})")
    if "select_cider" in record:
        parts.append(f"select CIDEr-D {record['select_cider']:.3f}")
    return "  ".join(parts)
