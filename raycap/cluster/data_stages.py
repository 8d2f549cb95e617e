"""Stages before any captioner: `prepare` (import, check, cut), `clip` (train small CLIPs), `features` (extract)."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raycap.cluster.features import extract_features
from raycap.cluster.stages import Run, clip_identity, trained_clips
from raycap.cluster.storage import data_root, fingerprint
from raycap.cluster.tasks import all_cpus, cpu_share, gather, on, task
from raycap.data.detect import import_dataset
from raycap.data.input_report import InputReport
from raycap.data.prepare import prepare
from raycap.data.scenes.dataset import draw_scenes
from raycap.errors import DataError
from raycap.models.encoders import build_encoder
from raycap.recipe import FeaturesRecipe, Recipe
from raycap.recipe.sections import looks_through_clip
from raycap.train.clip import train_clip
from raycap.train.progress import Progress

CLIP_EMBEDDINGS = "clip_embeddings"


def prepare_stage(run: Run, seed: int) -> dict[str, Any]:
    """Import (or draw), check every picture, cut, write Parquet."""
    data, folder = run.recipe.data, run.path("prepare", seed)
    started = time.perf_counter()
    report = InputReport(data.skip)
    progress = Progress("prepare", "images")
    if data.format == "scenes":
        root, scenes = folder / "scenes", data.scenes
        draw_scenes(root, **scenes.model_dump(), progress=progress.update)
        splits: set[str] = {s for s in data.splits if s == "train" or getattr(scenes, f"num_{s}")}
        records = import_dataset(root, format="scenes", splits=splits, report=report)
    else:
        records = import_dataset(
            data_root(run.recipe), format=data.format, splits=set(data.splits), report=report, seed=data.seed
        )
    dataset = prepare(
        records, folder, report=report, select_size=data.select_size, web_share=data.web_share, seed=data.seed,
        max_pixels=data.max_pixels, threads=os.cpu_count() or 2, progress=progress.update,
    )  # fmt: skip
    print(report.summary(), flush=True)
    counts = {split: len(dataset.ids(split)) for split in ("train", "dev", "test")}
    counts["select"] = len(dataset.select_ids())
    return {"seconds": time.perf_counter() - started, "counts": counts, "report": report.to_json(),
            "dataset": dataset.fingerprint}  # fmt: skip


FEW = 20


def check_sizes(run: Run) -> None:
    """Now and not after hours of training: are there captioned images to choose by, and to report on?

    Raises:
        DataError: the reported split has none; `select` has fewer than 2 (CIDEr-D of one image is 0, whatever it says).
    """
    recipe, dataset = run.recipe, run.dataset
    training = {"mle", "scst", "mle_continued"} & set(recipe.stages)
    sizes = {"select": len(run.select_references(dataset))} if training else {}
    if "evaluate" in recipe.stages:
        split = recipe.evaluate.split
        sizes[split] = len(dataset.select_ids()) if split == "select" else len(dataset.labelled(split))
    for name, size in sizes.items():
        if name == "select" and size < 2:
            raise DataError("CIDEr-D needs 2 captioned images or more to choose by", key="data.select_size",
                            value=size, remedy="caption more images, or set data.select_size=2 or more")  # fmt: skip
        if not size:
            raise DataError("has no captioned image to report on", key="evaluate.split", value=name,
                            remedy="caption some, or report on another split")  # fmt: skip
        if size < FEW:
            print(f"warning: only {size} captioned images in {name}: its figures are mostly chance", flush=True)


def clip_stage(run: Run, seed: int) -> dict[str, Any]:
    """Train the CLIPs that are trained here, side by side, on captions that they may see."""
    recipe, dataset, roles = run.recipe, run.dataset, missing_clips(run)
    captions = {i: dataset.references(i) for i in dataset.clip_ids()}
    held_out = {i: dataset.references(i) for i in dataset.select_ids()}
    images = {i: dataset.path(i) for i in [*captions, *held_out]}
    threads = cpu_share(max(1, len(roles)))
    started = time.perf_counter()
    progress = {role: Progress(f"clip.{role}", "steps") for role in roles}
    refs = {
        role: task(_train_clip_task, num_cpus=threads, num_gpus=_gpu_share(run, len(roles)))(
            str(run.path("clip", seed)), role, images, captions, held_out, recipe, threads, run.device
        )
        for role in roles
    }

    def tick() -> None:
        for role in roles:
            last = _last_line(run.path("clip", seed) / f"{role}.jsonl")
            if last:
                note = f"loss {last['loss']:.3f}  retrieval R@1 {last.get('recall_at_1', float('nan')):.3f}"
                progress[role].update(last["step"], last["total_steps"], note)

    gather(refs, tick, limit_s=recipe.cluster.stall_timeout_s)
    figures = {
        role: json.loads((run.path("clip", seed) / role / "clip.json").read_text()) for role in used_clips(recipe)
    }
    return {"seconds": time.perf_counter() - started, "images": len(captions), "clips": figures}


def used_clips(recipe: Recipe) -> list[str]:
    """Roles of the CLIPs that this run trains: that which rewards only where features or a reward look through it.

    A run that has neither of these stages is there for the CLIPs: it trains both.
    """
    looks = recipe.features.encoder == "clip.reward" or asks_for_clip(recipe)
    unused = not looks and {"features", "scst"} & set(recipe.stages)
    return [role for role in trained_clips(recipe) if not (role == "reward" and unused)]


def missing_clips(run: Run) -> list[str]:
    """Roles of the CLIPs that this run needs and that are not there: another reward may ask for one later."""
    return [role for role in used_clips(run.recipe) if not (run.path("clip", 0) / role / "clip.json").exists()]


def _train_clip_task(
    folder: str, role: str, images: Mapping[str, Path], captions: Mapping[str, Any], held_out: Mapping[str, Any],
    recipe: Recipe, threads: int, device: str,
) -> dict[str, float]:  # fmt: skip
    import torch

    torch.set_num_threads(threads)
    log = Path(folder) / f"{role}.jsonl"
    log.unlink(missing_ok=True)

    def write(record: Mapping[str, Any]) -> None:
        with open(log, "a") as file:
            file.write(json.dumps(record) + "\n")

    return train_clip(
        Path(folder) / role, images, captions, held_out, getattr(recipe.clip, role), recipe.clip.train,
        trained_on=recipe.name, max_pixels=recipe.data.max_pixels, log=write, device=on(device),
    )  # fmt: skip


def features_stage(run: Run, seed: int) -> dict[str, Any]:
    """The captioner's features of every image."""
    return _extract(run, "captioner", run.path("features", seed) / "captioner", run.recipe.features)


def clip_embeddings(run: Run) -> Path | None:
    """Folder of the image embeddings under `clip.reward`, extracted when missing; None when no reward asks for them.

    Not part of the stage `features`: a run whose rewards need no CLIP does not wait for them. A component of one's own
    may ask for them, so they are made for any such.
    """
    if not asks_for_clip(run.recipe):
        return None
    made_from = [clip_identity(run.recipe, "reward"), run.stage_folder("prepare", 0).fingerprint]
    folder = run.folder / CLIP_EMBEDDINGS / fingerprint(made_from)
    # float32: these are rewards, not inputs of a network that is trained on them
    _extract(run, "clip", folder, FeaturesRecipe(encoder="clip.reward", kind="pooled", dtype="float32"))
    return folder


def asks_for_clip(recipe: Recipe) -> bool:
    """Whether there is a `clip.reward`, and a reward component that looks through it or may."""
    asked = any(looks_through_clip(name, reward) for name, reward in recipe.rewards.items())
    return recipe.clip.reward is not None and asked


def _extract(run: Run, name: str, folder: Path, features: FeaturesRecipe) -> dict[str, Any]:
    recipe, dataset = run.recipe, run.dataset
    ids = [i for split in ("train", "dev", "test") for i in dataset.ids(split)]
    build = functools.partial(build_encoder, features, recipe.clip.reward, run.trained_clip("reward"), run.device)
    return extract_features(
        [(i, str(dataset.path(i))) for i in ids], folder, build, features,
        source=features.encoder, max_pixels=recipe.data.max_pixels, workers=_feature_workers(run), threads=1,
        num_gpus=_gpu_share(run, 1), in_views=dataset.captioner_ids(), seed=dataset.seed,
        stall_timeout_s=recipe.cluster.stall_timeout_s,
        progress=Progress(f"features.{name}", "images").update,
    )  # fmt: skip


def _feature_workers(run: Run) -> int:
    """Actors that extract features: one a CPU, or one a GPU where these run on GPUs."""
    import ray

    return max(1, int(ray.cluster_resources().get("GPU", 1))) if run.device == "cuda" else all_cpus()


def _gpu_share(run: Run, parts: int) -> float:
    return 1.0 / parts if run.device == "cuda" else 0.0


def _last_line(file: Path) -> dict[str, Any] | None:
    lines = file.read_text().splitlines() if file.exists() else []
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:  # being written just now
        return None
