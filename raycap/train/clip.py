"""Train a small CLIP (Radford et al. 2021) on captioned images: one caption of each image a step, InfoNCE, AdamW."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raycap.data.images import open_image
from raycap.errors import DataError, Refused, WorkFailed
from raycap.metrics.retrieval import self_retrieval
from raycap.models.checkpoint import write_folder
from raycap.models.clip import Clip, fill_clip, new_clip
from raycap.recipe import ClipModelRecipe, ClipTrainRecipe
from raycap.train.optimizing import set_lr
from raycap.train.prompts import permutation
from raycap.train.schedules import warmup_cosine
from raycap.train.seeding import INIT, seed_torch


def train_clip(
    folder: Path,
    images: Mapping[str, Path],
    captions: Mapping[str, Sequence[str]],
    held_out: Mapping[str, Sequence[str]],
    model: ClipModelRecipe,
    recipe: ClipTrainRecipe,
    *,
    trained_on: str,
    max_pixels: int,
    log: Callable[[Mapping[str, Any]], None],
    device: str = "cpu",
) -> dict[str, float]:
    """Train one CLIP and write it to `folder`.

    Args:
        images: path of every picture, held-out ones included.
        captions: what this CLIP may read, by image id.
        held_out: captions of images that it does not learn from; retrieval on them is logged.
        trained_on: goes into the CLIP's name.

    Returns:
        seconds, and recall at 1 and 5 (image → its first caption) among the held-out images.

    Raises:
        DataError: there is no captioned image.
    """
    if not captions:
        raise DataError("there is no captioned image that it may read", key="clip", value=model.model,
                        remedy="raise data.web_share, or give captions")  # fmt: skip
    from open_clip.loss import ClipLoss

    seed_torch(model.seed, INIT)
    clip = new_clip(model.model, model.prompt, device)
    clip.model.requires_grad_(True)
    ids = sorted(captions)
    started = time.perf_counter()
    pictures = _load(clip, [images[i] for i in ids], max_pixels)
    watched = sorted(held_out)
    watched_pictures = _load(clip, [images[i] for i in watched], max_pixels)
    texts = [[clip.prompt + text for text in captions[i]] for i in ids]
    optimizer = _optimizer(clip, recipe)
    loss_of = ClipLoss()
    batch = min(recipe.batch_size, len(ids))
    per_epoch = len(ids) // batch
    total, step, figures = per_epoch * recipe.epochs, 0, {}
    for epoch in range(recipe.epochs):
        order = permutation(model.seed, epoch, len(ids))
        clip.model.train()
        losses = []
        for start in range(0, per_epoch * batch, batch):
            rows = order[start : start + batch]
            factor = warmup_cosine(step, warmup=int(recipe.warmup_share * total), total=total, floor=0.0)
            set_lr(optimizer, recipe.lr * factor)
            draw = np.random.Generator(np.random.Philox(np.random.SeedSequence([model.seed, epoch, start])))
            pixels = _shifted(pictures[rows], recipe.shift, draw).to(device)
            chosen = [texts[row][draw.integers(len(texts[row]))] for row in rows]
            image, text, scale = clip.model(pixels, clip.tokenizer(chosen).to(device))[:3]
            loss = loss_of(image, text, scale)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if not bool(torch.isfinite(loss)):
                raise WorkFailed(f"the loss of step {step} is not finite", key="loss", value=float(loss.detach()),
                                 remedy="lower clip.train.lr")  # fmt: skip
            optimizer.step()
            with torch.no_grad():  # as in the paper: the temperature never falls below 1/100
                clip.model.logit_scale.clamp_(0, float(np.log(100)))
            step += 1
            losses.append(float(loss.detach()))
        clip.model.eval()
        figures = _recall(clip, watched_pictures, [held_out[i][0] for i in watched])
        log({"step": step, "total_steps": total, "epoch": epoch + 1, "loss": float(np.mean(losses)), **figures,
             "seconds": time.perf_counter() - started})  # fmt: skip
    figures["seconds"] = time.perf_counter() - started
    write_folder(folder, lambda temporary: fill_clip(temporary, clip, {"trained_on": trained_on, **figures}))
    return figures


def _optimizer(clip: Clip, recipe: ClipTrainRecipe) -> torch.optim.AdamW:
    matrices = [p for n, p in clip.model.named_parameters() if p.dim() >= 2 and "embedding" not in n]
    others = [p for n, p in clip.model.named_parameters() if p.dim() < 2 or "embedding" in n]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)


def _load(clip: Clip, paths: Sequence[Path], max_pixels: int) -> Tensor:
    """All pictures as the model takes them: float16 [N, 3, H, W] in memory."""
    parts = []
    for start in range(0, len(paths), 256):
        pictures = [open_image(path, max_pixels=max_pixels) for path in paths[start : start + 256]]
        parts.append(clip.pixels(pictures).cpu().half())
    return torch.cat(parts) if parts else torch.zeros(0, 3, 1, 1, dtype=torch.float16)


def _shifted(pixels: Tensor, most: int, draw: np.random.Generator) -> Tensor:
    """Every picture moved by up to `most` pixels, its border repeated: float32 [N, 3, H, W]."""
    pixels = pixels.float()
    if not most:
        return pixels
    height, width = pixels.shape[-2:]
    padded = torch.nn.functional.pad(pixels, (most,) * 4, mode="replicate")
    moves: NDArray[np.int64] = draw.integers(0, 2 * most + 1, size=(len(pixels), 2))
    return torch.stack([p[:, y : y + height, x : x + width] for p, (y, x) in zip(padded, moves, strict=True)])


def _recall(clip: Clip, pictures: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """Share of pictures whose own caption is among the 1 and 5 nearest of all captions (`self_retrieval`)."""
    if not captions:
        return {}
    images = np.concatenate([clip.embed_pixels(part.float().to(clip.device)) for part in pictures.split(128)])
    try:
        recall = self_retrieval(images, clip.embed_texts(captions), (1, 5))
    except Refused as error:
        raise WorkFailed(error.what, key=error.key, value=error.value, remedy="lower clip.train.lr") from error
    return {f"recall_at_{rank}": share for rank, share in recall.items()}
