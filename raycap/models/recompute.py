"""Activation checkpointing (Chen et al. 2016): an LM's blocks keep their inputs alone and compute the rest once more in
the backward pass. Memory falls to about one block's, time rises by about a third.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from raycap.errors import RecipeError
from raycap.models.prefix import PrefixCaptioner


def recompute_blocks(captioner: PrefixCaptioner) -> int:
    """Change a captioner's LM in place; how many blocks were found.

    Unlike transformers' own switch it works in evaluation mode too: RL trains without dropout.

    Raises:
        RecipeError: the LM does not say what its blocks are, or they write into a cache, which would be done twice.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    blocks = [module for module in captioner.lm.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks or not captioner.shares_prefix:
        what = "keeps a cache of its own" if blocks else "does not say what its blocks are"
        raise RecipeError(f"this LM {what}", key="cluster.learner_recompute", value=True,
                          remedy="set it to false, and lower micro_batch where memory is short")  # fmt: skip
    for block in blocks:
        block.forward = partial(_recomputed, block.forward)
    return len(blocks)


def _recomputed(forward: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **options)
    return checkpoint(partial(forward, **options), *arguments, use_reentrant=False)
