"""Stages before any captioner: `prepare` (import, check, cut), `clip` (train small CLIPs), `features` (extract)."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raycap.cluster.features import extract_features
from raycap.cluster.stages import Run, trained_clips
from raycap.cluster.storage import data_root
from raycap.cluster.tasks import cpu_share, gather, task
from raycap.data.detect import import_dataset
from raycap.data.input_report import InputReport
from raycap.data.prepare import prepare
from raycap.data.scenes.dataset import draw_scenes
from raycap.models.encoders import build_encoder
from raycap.recipe import FeaturesRecipe, Recipe
from raycap.train.clip import train_clip
from raycap.train.progress import Progress

CLIP_EMBEDDINGS = "clip_reward"


def prepare_stage(run: Run, seed: int) -> dict[str, Any]:
    """Import (or draw), check every picture, cut, write Parquet."""
    data, folder = run.recipe.data, run.path("prepare", seed)
    started = time.perf_counter()
    report = InputReport(data.skip)
    progress = Progress("prepare", "images")
    if data.format == "scenes":
        root, scenes = folder / "scenes", data.scenes
        draw_scenes(root, **scenes.model_dump(), progress=progress.update)
        splits = {s for s in data.splits if s == "train" or getattr(scenes, f"num_{s}")}
        records = import_dataset(root, format="scenes", splits=splits, report=report)
    else:
        records = import_dataset(
            data_root(run.recipe), format=data.format, splits=set(data.splits), report=report, seed=data.seed
        )
    dataset = prepare(
        records, folder, report=report, select_size=data.select_size, web_share=data.web_share, seed=data.seed,
        max_pixels=data.max_pixels, progress=progress.update,
    )  # fmt: skip
    print(report.summary(), flush=True)
    counts = {split: len(dataset.ids(split)) for split in ("train", "dev", "test")}
    counts |= {"select": len(dataset.select_ids()), "labelled": len(run.labelled_ids(dataset))}
    return {"seconds": time.perf_counter() - started, "counts": counts, "report": report.to_json(),
            "dataset": dataset.fingerprint}  # fmt: skip


def clip_stage(run: Run, seed: int) -> dict[str, Any]:
    """Train the CLIPs that are trained here, side by side, on captions that they may see."""
    recipe, dataset = run.recipe, run.dataset
    roles = [role for role in trained_clips(recipe) if not (run.path("clip", seed) / role / "clip.json").exists()]
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

    gather(refs, tick)
    figures = {
        role: json.loads((run.path("clip", seed) / role / "clip.json").read_text()) for role in trained_clips(recipe)
    }
    return {"seconds": time.perf_counter() - started, "images": len(captions), "clips": figures}


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
        trained_on=recipe.name, max_pixels=recipe.data.max_pixels, log=write, device=device,
    )  # fmt: skip


def features_stage(run: Run, seed: int) -> dict[str, Any]:
    """The captioner's features of every image."""
    return _extract(run, "captioner", run.recipe.features)


def clip_embeddings(run: Run) -> Path | None:
    """Folder of the image embeddings under `clip.reward`, extracted when missing; None when no reward asks for them.

    Not part of the stage `features`: a run whose rewards need no CLIP does not wait for them. A component of one's own
    may ask for them, so they are made for any such.
    """
    recipe = run.recipe
    asked = any(name in ("clip", "self_retrieval") or reward.source or name == "critic"
                for name, reward in recipe.rewards.items())  # fmt: skip
    if recipe.clip.reward is None or not asked:
        return None
    # float32: these are rewards, not inputs of a network that is trained on them
    _extract(run, CLIP_EMBEDDINGS, FeaturesRecipe(encoder="clip.reward", kind="pooled", dtype="float32"))
    return run.path("features", 0) / CLIP_EMBEDDINGS


def _extract(run: Run, name: str, features: FeaturesRecipe) -> dict[str, Any]:
    recipe, dataset = run.recipe, run.dataset
    ids = [i for split in ("train", "dev", "test") for i in dataset.ids(split)]
    build = functools.partial(build_encoder, features, recipe.clip.reward, run.trained_clip("reward"), run.device)
    return extract_features(
        [(i, str(dataset.path(i))) for i in ids], run.path("features", 0) / name, build, features,
        source=features.encoder, max_pixels=recipe.data.max_pixels, workers=cpu_share(1), threads=1,
        num_gpus=_gpu_share(run, 1), progress=Progress(f"features.{name}"[:14], "images").update,
    )  # fmt: skip


def _gpu_share(run: Run, parts: int) -> float:
    return 1.0 / parts if run.device == "cuda" else 0.0


def _last_line(file: Path) -> dict[str, Any] | None:
    lines = file.read_text().splitlines() if file.exists() else []
    try:
        return json.loads(lines[-1]) if lines else None
    except ValueError:  # being written just now
        return None
