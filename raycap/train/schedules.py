"""The learning rate of a step, as a factor of its peak."""

from __future__ import annotations

import math

from raycap.recipe import SCSTRecipe


def warmup_cosine(step: int, *, warmup: int, total: int, floor: float) -> float:
    """Factor of the peak learning rate: linear from 0 over `warmup` steps, then a cosine down to `floor` at `total`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def warmup_linear(step: int, *, warmup: int, total: int, floor: float) -> float:
    """Factor of the peak learning rate: linear up over `warmup` steps, then linear down to `floor` at `total`."""
    if step < warmup:
        return (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return 1 - (1 - floor) * progress


FALLS = {"linear": warmup_linear, "cosine": warmup_cosine}


def scst_factor(recipe: SCSTRecipe, step: int) -> float:
    """Of the update that follows `step` steps of SCST."""
    fall = FALLS[recipe.lr_schedule]
    return fall(step, warmup=recipe.warmup_steps, total=recipe.steps, floor=recipe.lr_floor)
