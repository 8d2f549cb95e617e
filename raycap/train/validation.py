"""A look at `select`: greedy CIDEr-D and cross-entropy of held-out training images. It only chooses checkpoints."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from raycap.data.features import FeatureStore
from raycap.decoding.sample import generate
from raycap.errors import Collapsed
from raycap.metrics.cider import cider_d_corpus
from raycap.metrics.ptb import tokenize
from raycap.metrics.surface import bad_ending_rate, mean_length, mean_repetition
from raycap.models.prefix import PrefixCaptioner
from raycap.rl.losses import cross_entropy
from raycap.train.labelled import LabelledSet


def greedy_captions(
    captioner: PrefixCaptioner,
    features: FeatureStore,
    image_ids: Sequence[str],
    *,
    max_length: int,
    batch_size: int = 100,
) -> dict[str, str]:
    """Greedy captions by image id; the captioner is left in the mode it was in."""
    was_training = captioner.training
    captioner.eval()
    captions: dict[str, str] = {}
    for start in range(0, len(image_ids), batch_size):
        ids = image_ids[start : start + batch_size]
        made = generate(
            captioner, to_device(features, ids, captioner), num_samples=0, greedy=True, max_length=max_length
        )
        captions.update(zip(ids, made.greedy_captions, strict=True))
    captioner.train(was_training)
    return captions


def to_device(
    features: FeatureStore, image_ids: Sequence[str], captioner: PrefixCaptioner, views: Sequence[int] | None = None
) -> Tensor:
    """Features of some images where the captioner's parameters are: float32 [B, D] or [B, G, D].

    They are copied into memory that torch allocated: its alignment decides which path the matrix product takes, and
    with it the last bit, which must be the same in every process.
    """
    tensor = torch.empty(len(image_ids), *features.shape)
    features.get(image_ids, out=tensor.numpy(), views=views)
    return tensor.to(next(captioner.parameters()).device)


_XE_CAPTIONS = 500


class Validator:
    """Knows the `select` images; `cider` and `xe_loss` of any captioner on them."""

    def __init__(
        self, references: Mapping[str, Sequence[str]], features: FeatureStore, *, max_length: int, batch_size: int = 100
    ) -> None:
        self.image_ids = tuple(references)
        self.features, self.max_length, self.batch_size = features, max_length, batch_size
        self._references = dict(references)
        self._tokenized = [[tokenize(text) for text in texts] for texts in references.values()]

    def cider(self, captioner: PrefixCaptioner) -> float:
        """Greedy CIDEr-D (as coco-caption prints it), document frequencies from `select`'s own references."""
        return self.figures(captioner)["select_cider"]

    def figures(self, captioner: PrefixCaptioner) -> dict[str, float]:
        """What the greedy captions are like: CIDEr-D, length in words, shares of bad endings and repeated bigrams."""
        made = greedy_captions(
            captioner, self.features, self.image_ids, max_length=self.max_length, batch_size=self.batch_size
        )
        captions = [tokenize(made[image_id]) for image_id in self.image_ids]
        corpus, _ = cider_d_corpus(captions, self._tokenized)
        return {
            "select_cider": float(corpus),
            "select_length": mean_length(captions),
            "select_bad_endings": bad_ending_rate(captions),
            "select_repetition": mean_repetition(captions),
        }

    @torch.no_grad()
    def xe_loss(self, captioner: PrefixCaptioner) -> float:
        """Mean cross-entropy a token of some captions of every image, five at most, about 500 in all.

        It is looked at and decides nothing. Where an image has fewer captions, some count again.
        """
        was_training = captioner.training
        captioner.eval()
        labelled = LabelledSet(self._references, captioner.tokenizer, self.max_length)
        several = min(5, -(-_XE_CAPTIONS // len(labelled)))
        total, tokens = 0.0, 0.0
        for start in range(0, len(labelled), self.batch_size):
            batch = labelled.take(range(start, min(start + self.batch_size, len(labelled))), several)
            mask = torch.from_numpy(batch.loss_mask)
            conditioning = captioner.encode(to_device(self.features, batch.image_ids, captioner))
            logprobs = captioner.score(conditioning, torch.from_numpy(batch.tokens).to(conditioning.device),
                                       mask.to(conditioning.device))  # fmt: skip
            total += float(cross_entropy(logprobs, mask.to(logprobs.device), denominator=1.0))
            tokens += float(mask.sum())
        captioner.train(was_training)
        return total / max(1.0, tokens)


class BestKeeper:
    """Remembers the best look at `select` and stops a run that collapses.

    Args:
        collapse_share: the run stops when a look falls below this share of the first one.
    """

    def __init__(self, collapse_share: float = 0.0) -> None:
        self.collapse_share = collapse_share
        self.start: float | None = None
        self.best, self.best_step, self.looks_since = -math.inf, -1, 0

    def look(self, value: float, step: int) -> bool:
        """Record a look; whether it is the best so far.

        Raises:
            Collapsed: the value fell below `collapse_share` of the first look's.
        """
        if self.start is None:
            self.start = value
        better = value > self.best
        if better:
            self.best, self.best_step, self.looks_since = value, step, 0
        else:
            self.looks_since += 1
        if value < self.collapse_share * self.start:
            raise Collapsed(
                f"CIDEr-D on `select` fell from {self.start:.4f} to {value:.4f} at step {step}; "
                f"the best, {self.best:.4f} at step {self.best_step}, is kept",
                key="scst.collapse_share", value=self.collapse_share,
                remedy="start again (rerun=stale) with scst.baseline=leave_one_out, a smaller scst.lr, or an MLE model "
                "whose samples are nearer to its greedy captions",
            )  # fmt: skip
        return better

    def state_dict(self) -> dict[str, float | int | None]:
        return {"start": self.start, "best": self.best, "best_step": self.best_step, "looks_since": self.looks_since}

    def load_state_dict(self, state: Mapping[str, float | int | None]) -> None:
        self.__dict__.update(state)
