"""The stage `evaluate`: captions of every trained system on the reported split, scores, results.json, table, report."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
import transformers

import raycap
from raycap.cluster.stages import Run
from raycap.cluster.tasks import gather, on, task
from raycap.data.dataset import PreparedDataset
from raycap.data.features import FeatureStore
from raycap.errors import RecipeError
from raycap.evaluate.bootstrap import Comparison, paired_bootstrap
from raycap.evaluate.captions import caption_images, sample_images
from raycap.evaluate.judge import Judge, judge_images, judge_references
from raycap.evaluate.report import Example, Report, write_report
from raycap.evaluate.results import RESULTS, ResultRow, replace_split
from raycap.evaluate.scoring import sample_diversity, score_system
from raycap.evaluate.table import print_table
from raycap.metrics.cider import DocumentFrequency
from raycap.metrics.ptb import tokenize
from raycap.metrics.score import BY_CLIP, Scores
from raycap.models.checkpoint import load_captioner, read_about
from raycap.models.clip import clip_of
from raycap.recipe import ClipModelRecipe, EvaluateRecipe
from raycap.train.journal import read_log
from raycap.train.progress import Progress

LABELS = {"mle": "mle_best", "mle_continued": "mle_continued", "scst": "scst"}


@dataclass(frozen=True)
class System:
    """One checkpoint of the run with one decoding."""

    stage: str
    seed: int
    decoding: str

    @property
    def label(self) -> str:
        return LABELS[self.stage]

    @property
    def name(self) -> str:
        return f"{self.label}.{self.decoding}.seed-{self.seed}"


def evaluate_stage(run: Run, seed: int) -> dict[str, Any]:
    """Caption, score, write `results.json` and the report, print the table."""
    recipe, folder = run.recipe.evaluate, run.path("evaluate", seed)
    started = time.perf_counter()
    dataset = run.dataset
    ids = dataset.labelled("train", "select") if recipe.split == "select" else dataset.labelled(recipe.split)
    references = {i: dataset.references(i) for i in ids}
    stages = [stage for stage in LABELS if run.has(stage)]
    for stage in LABELS:
        if stage not in stages and run.is_finished(stage):
            print(f"{stage} is left out: its inputs have been made again since; name it in stages", flush=True)
    if not stages:
        raise RecipeError("nothing was trained in this run that could be evaluated", key="stages",
                          value=run.recipe.stages, remedy="add mle or scst")  # fmt: skip
    systems = [System(s, n, d) for n in run.recipe.run_seeds for s in stages for d in recipe.decodings]
    looking = _looking(run, dataset, references)  # beside the captions' decoding
    captions = _captions(run, systems, ids, folder)
    judge = _judge(run, looking)
    training = [tokenize(text) for i in run.labelled_ids(dataset) for text in dataset.references(i)]  # once for all
    scored = {s: score_system(captions[s], references, recipe.metrics, judge, training) for s in systems}
    diverse = _diversity(run, systems, references)
    rows = [_row(run, system, scored[system], judge, diverse.get(system, {})) for system in systems]
    replace_split(run.folder / RESULTS, recipe.split, rows)
    for system in systems:
        _write_per_image(folder, system, captions[system], scored[system])
    comparisons = _comparisons(run, stages, scored, ids)
    report = _report(run, stages, rows, captions, scored, references, dataset, comparisons)
    page = write_report(folder / "report.html", report)
    print_table(rows)
    for comparison in comparisons:
        print(f"{comparison.system} against {comparison.base} ({comparison.decoding}): "
              f"{100 * (comparison.relative or 0):+.1f}% CIDEr-D, {comparison.sureness}")  # fmt: skip
    print(f"report: {page}\nresults: {run.folder / RESULTS}", flush=True)
    return {"seconds": time.perf_counter() - started, "report": str(page),
            "comparisons": [_comparison_json(c) for c in comparisons]}  # fmt: skip


def _captions(run: Run, systems: list[System], ids: list[str], folder: Path) -> dict[System, dict[str, str]]:
    """Captions of every system, each in a Ray task of its own."""
    recipe = run.recipe
    progress, total = Progress("evaluate", "systems", every_s=2.0), len(systems)
    refs = {}
    for system in systems:
        caption = task(_caption_task, num_cpus=1, num_gpus=0.5 if run.device == "cuda" else 0)
        refs[system.name] = caption(
            str(run.path(system.stage, system.seed) / "best"), str(run.path("features", 0) / "captioner"), ids,
            system.decoding, recipe.captioner.max_length, recipe.evaluate, run.device,
        )  # fmt: skip
    done: set[str] = set()

    def tick() -> None:
        ready, _ = ray.wait(list(refs.values()), num_returns=total, timeout=0)
        if len(ready) > len(done):
            done.update(str(r) for r in ready)
            progress.update(len(done), total)

    made = gather(refs, tick, limit_s=recipe.cluster.stall_timeout_s)
    folder.mkdir(parents=True, exist_ok=True)
    for name, captions in made.items():
        results = [{"image_id": i, "caption": c} for i, c in captions.items()]
        (folder / f"captions.{name}.json").write_text(json.dumps(results, indent=0))
    return {system: made[system.name] for system in systems}


def _caption_task(
    checkpoint: str, features: str, ids: list[str], decoding: str, max_length: int, recipe: EvaluateRecipe, device: str
) -> dict[str, str]:
    torch.set_num_threads(1)
    return caption_images(
        load_captioner(Path(checkpoint)).to(on(device)), FeatureStore.open(Path(features)), ids, decoding=decoding,
        max_length=max_length, beam_size=recipe.beam_size, batch_size=recipe.batch_size,
    )  # fmt: skip


def _looking(run: Run, dataset: PreparedDataset, references: Mapping[str, Sequence[str]]) -> Any:
    """The task in which the judge looks at pictures and references; None where nobody asks it."""
    model = run.recipe.clip.judge
    if model is None or not set(BY_CLIP) & set(run.recipe.evaluate.metrics):
        return None
    paths = {image_id: dataset.path(image_id) for image_id in references}
    look = task(_judge_task, num_cpus=1, num_gpus=0.5 if run.device == "cuda" else 0)
    return look(model, run.trained_clip("judge"), run.device, paths, references, run.recipe.data.max_pixels)


def _judge(run: Run, looking: Any) -> Judge | None:
    model = run.recipe.clip.judge
    if model is None or looking is None:
        return None
    seen = gather({"judge": looking}, limit_s=run.recipe.cluster.stall_timeout_s)["judge"]
    return Judge(clip_of(model, run.trained_clip("judge"), "cpu"), *seen)


def _judge_task(
    model: ClipModelRecipe, folder: Path | None, device: str, paths: Mapping[str, Path],
    references: Mapping[str, Sequence[str]], max_pixels: int,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:  # fmt: skip
    clip = clip_of(model, folder, on(device))
    return judge_images(clip, paths, max_pixels=max_pixels), judge_references(clip, references)


def _diversity(
    run: Run, systems: Sequence[System], references: Mapping[str, Sequence[str]]
) -> dict[System, dict[str, float]]:
    """How diverse samples of each captioner are, for the row of its first decoding; {} where none are asked for."""
    recipe = run.recipe
    if not recipe.evaluate.samples:
        return {}
    sample = task(_sample_task, num_cpus=1, num_gpus=0.5 if run.device == "cuda" else 0)
    asked = {system.name: system for system in systems if system.decoding == recipe.evaluate.decodings[0]}
    refs = {
        name: sample(
            str(run.path(system.stage, system.seed) / "best"), str(run.path("features", 0) / "captioner"),
            list(references), recipe.captioner.max_length, recipe.evaluate, system.seed, run.device,
        )
        for name, system in asked.items()
    }  # fmt: skip
    made = gather(refs, limit_s=recipe.cluster.stall_timeout_s)
    tokens = {image: [tokenize(text) for text in texts] for image, texts in references.items()}
    frequency = DocumentFrequency.from_references(tokens)
    return {asked[name]: sample_diversity(samples, frequency) for name, samples in made.items()}


def _sample_task(
    checkpoint: str, features: str, ids: list[str], max_length: int, recipe: EvaluateRecipe, seed: int, device: str
) -> dict[str, tuple[str, ...]]:
    torch.set_num_threads(1)
    return sample_images(
        load_captioner(Path(checkpoint)).to(on(device)), FeatureStore.open(Path(features)), ids,
        num_samples=recipe.samples, max_length=max_length, batch_size=recipe.batch_size, seed=seed,
    )  # fmt: skip


def _row(
    run: Run, system: System, scores: Scores, judge: Judge | None, diverse: Mapping[str, float]
) -> ResultRow:  # fmt: skip
    training = run.results(system.stage, system.seed)
    return ResultRow(
        stage=system.stage,
        label=system.label,
        split=run.recipe.evaluate.split,
        decoding=system.decoding if system.decoding == "greedy" else f"beam{run.recipe.evaluate.beam_size}",
        seed=system.seed,
        metrics={**scores.metrics, **diverse},
        seconds=training["seconds"],
        steps=training["steps"],
        num_images=scores.num_images,
        signature=scores.signature,
        judge=judge.clip.name if judge else None,
        unavailable=scores.unavailable,
    )


def _comparisons(run: Run, stages: Sequence[str], scored: Mapping[System, Scores], ids: list[str]) -> list[Comparison]:
    """SCST against every other system, greedy, over images (seeds averaged first)."""
    recipe = run.recipe.evaluate
    if "scst" not in stages or "cider" not in recipe.metrics:
        return []

    def per_image(stage: str) -> list[list[float]]:
        seeds = run.recipe.run_seeds
        return [[scored[System(stage, n, "greedy")].per_image[i]["cider_d"] for i in ids] for n in seeds]

    others = [s for s in ("mle", "mle_continued") if s in stages and "greedy" in recipe.decodings]
    return [
        paired_bootstrap(per_image(s), per_image("scst"), labels=(LABELS[s], "scst"), decoding="greedy") for s in others
    ]


def _report(
    run: Run, stages: Sequence[str], rows: list[ResultRow], captions: Mapping[System, dict[str, str]],
    scored: Mapping[System, Scores],
    references: Mapping[str, tuple[str, ...]], dataset: PreparedDataset, comparisons: list[Comparison],
) -> Report:  # fmt: skip
    recipe, seed = run.recipe, run.recipe.run_seeds[0]
    decoding = recipe.evaluate.decodings[0]
    shown = [s for s in captions if s.seed == seed and s.decoding == decoding]
    examples = [
        Example(
            image_id=i,
            picture=dataset.path(i),
            references=references[i],
            captions={s.label: captions[s][i] for s in shown},
            scores={s.label: scored[s].per_image[i]["cider_d"] for s in shown if "cider_d" in scored[s].per_image[i]},
        )
        for i in references
    ]
    finished = {stage: run.stage_folder(stage, seed).finished for stage in run.stages if run.has(stage)}
    seconds = {str(stage): f["wall_seconds"] for stage, f in finished.items() if f and "wall_seconds" in f}
    curves = {str(s): read_log(run.path(s, seed)) for s in ("mle", "scst", "mle_continued") if s in stages}
    rewards = (finished.get("scst") or {}).get("rewards", {})
    # counted now: `prepare` is not made again when another run of it reads more or fewer captions
    counts = {**run.results("prepare", 0)["counts"], "labelled": len(run.labelled_ids(dataset))}
    left_out = len(dataset.ids(recipe.evaluate.split)) - len(references) if recipe.evaluate.split != "select" else 0
    facts = {
        "run": str(run.folder),
        "recipe": recipe.name,
        "seeds": ", ".join(map(str, recipe.run_seeds)),
        "images": ", ".join(f"{name} {count}" for name, count in counts.items()),
        **({"left out": f"{left_out} images of {recipe.evaluate.split} without captions"} if left_out else {}),
        "input": str(run.dataset.manifest.get("report", "")),
        "checkpoints": "; ".join(f"{s.label}: step {_step(run, s)}" for s in shown),
        **({"rewards": "; ".join(rewards.values())} if rewards else {}),
        "pictures shown": f"captions by {decoding} decoding, seed {seed}",
        "versions": f"raycap {raycap.__version__}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"ray {ray.__version__}",
    }
    return Report(
        title=f"{recipe.name}: {recipe.evaluate.split} split", rows=rows, curves=curves, examples=examples,
        stage_seconds=seconds, facts=facts, comparisons=comparisons, seed=seed,
        images_per_group=-(-recipe.evaluate.report_images // 3),
    )  # fmt: skip


def _step(run: Run, system: System) -> Any:
    return read_about(run.path(system.stage, system.seed) / "best").get("step")


def _write_per_image(folder: Path, system: System, captions: Mapping[str, str], scores: Scores) -> None:
    lines = [json.dumps({"image_id": i, "caption": captions[i], **values}) for i, values in scores.per_image.items()]
    (folder / f"per_image.{system.name}.jsonl").write_text("\n".join(lines) + "\n")


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    keys = ("base", "system", "metric", "base_mean", "system_mean", "low", "high", "relative_low", "relative_high",
            "p_value", "num_images", "per_seed", "decoding")  # fmt: skip
    return {key: getattr(comparison, key) for key in keys}
