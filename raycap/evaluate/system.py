"""A system: a checkpoint that captions pictures. Frozen encoder, captioner and a decoding, from pixels to strings.

What `raycap evaluate`, `raycap caption` and the endpoint run. Only the checkpoint is needed: it names its encoder, and
the run or export around it holds what was trained for it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from raycap.decoding.beam import beam_captions
from raycap.decoding.filters import NO_FILTERS, Filters
from raycap.decoding.sample import generate
from raycap.errors import RaycapError, Refused
from raycap.models.checkpoint import load_captioner
from raycap.models.clip import Clip, clip_of
from raycap.models.encoders import Encoder, build_encoder
from raycap.models.origin import Origin, read_origin
from raycap.models.prefix import PrefixCaptioner

DECODINGS = ("greedy", "beam", "sample")


@dataclass(frozen=True)
class Decoding:
    """How captions are made.

    Attributes:
        kind: `greedy`, `beam` or `sample`.
        num_captions: captions an image; of `beam` its best ones, `greedy` has one.
        beam_size, length_penalty, beam_groups, diversity: of `beam` (see `beam_captions`).
        temperature, seed: of `sample`.
        filters: limits on the next token; top-k and top-p are for `sample` alone.

    Raises:
        Refused: an unknown kind, a number out of range, a number for another kind.
    """

    kind: str = "greedy"
    num_captions: int = 1
    beam_size: int = 3
    length_penalty: float = 1.0
    beam_groups: int = 1
    diversity: float = 0.0
    temperature: float = 1.0
    seed: int = 0
    filters: Filters = NO_FILTERS

    def __post_init__(self) -> None:
        if self.kind not in DECODINGS:
            raise Refused(f"expected one of {', '.join(DECODINGS)}", key="decoding", value=self.kind)
        for key in ("beam_size", "num_captions", "beam_groups"):
            if getattr(self, key) < 1:
                raise Refused("expected 1 or more", key=key, value=getattr(self, key))
        if not 0 < self.temperature < math.inf:
            raise Refused("expected a finite number above 0", key="temperature", value=self.temperature)
        for key in ("length_penalty", "diversity"):
            if not math.isfinite(getattr(self, key)):
                raise Refused("expected a finite number", key=key, value=getattr(self, key))
        if self.kind == "greedy" and self.num_captions > 1:
            raise Refused("greedy has one caption an image", key="num_captions", value=self.num_captions,
                          remedy="decoding sample or beam gives several")  # fmt: skip
        if self.kind == "beam" and self.num_captions > self.beam_size:
            raise Refused("more captions than beams", key="num_captions", value=self.num_captions,
                          remedy=f"beam_size = {self.beam_size}")  # fmt: skip
        if self.kind == "beam" and self.beam_size % self.beam_groups:
            raise Refused("expected a divisor of beam_size", key="beam_groups", value=self.beam_groups,
                          remedy=f"beam_size = {self.beam_size}")  # fmt: skip
        for key in ("top_k", "top_p"):
            if self.kind != "sample" and getattr(self.filters, key) != getattr(NO_FILTERS, key):
                raise Refused(f"{self.kind} takes the likeliest words anyway", key=key,
                              value=getattr(self.filters, key), remedy="decoding sample")  # fmt: skip

    @property
    def label(self) -> str:
        """As tables show it."""
        return f"beam{self.beam_size}" if self.kind == "beam" else self.kind


class System:
    """Captions of pictures by one checkpoint.

    Args:
        captioner: in evaluation mode, on `device`.
        encoder: from pictures to the features that it was trained on.
        origin: where it comes from.
    """

    def __init__(self, captioner: PrefixCaptioner, encoder: Encoder, origin: Origin, device: str) -> None:
        self.captioner, self.encoder, self.origin, self.device = captioner, encoder, origin, device

    @classmethod
    def open(cls, checkpoint: Path, device: str = "auto") -> System:
        """The system of a stage's folder, a checkpoint in it, or an export.

        Args:
            device: `auto` takes a GPU where there is one.

        Raises:
            CheckpointError: there is no captioner, it cannot be read, or a CLIP that it sees with is gone.
            RecipeError: its encoder's weights are not to be had here.
            Refused: no such device.
        """
        origin = read_origin(checkpoint)
        device = pick_device(device)
        recipe = origin.recipe
        captioner = load_captioner(origin.folder).to(device)
        encoder = build_encoder(recipe.features, recipe.clip.reward, origin.trained_clip("reward"), device)
        return cls(captioner, encoder, origin, device)

    def features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """float32 [B, G, D] or [B, D] of B pictures, rounded as features on disk are: it was trained on those."""
        recipe = self.origin.recipe.features
        starts = range(0, len(pictures), recipe.batch_size)
        made = torch.cat([self.encoder(pictures[start : start + recipe.batch_size]) for start in starts])
        return made.to(getattr(torch, recipe.dtype)).float().to(self.device)

    def caption(
        self, features: Tensor, decoding: Decoding, positions: Sequence[int] | None = None
    ) -> list[tuple[str, ...]]:
        """Captions of B images, one each or as many as the decoding samples.

        Args:
            positions: the images' places in what is captioned as a whole: they address the samples' random numbers, so
                a sampled caption does not hang on the batch it is made in. 0 .. B−1 when not given.
        """
        length = self.origin.recipe.captioner.max_length
        many, filters = decoding.num_captions, None if decoding.filters == NO_FILTERS else decoding.filters
        if decoding.kind == "beam":
            found = beam_captions(
                self.captioner, features, beam_size=decoding.beam_size, max_length=length,
                length_penalty=decoding.length_penalty, groups=decoding.beam_groups, diversity=decoding.diversity,
                filters=filters,
            )  # fmt: skip
            return [tuple(caption for caption, _ in captions[:many]) for captions in found]
        if decoding.kind == "greedy":
            made = generate(self.captioner, features, num_samples=0, greedy=True, max_length=length, filters=filters)
            return [(caption,) for caption in made.greedy_captions]
        made = generate(
            self.captioner, features, positions=positions, num_samples=many, greedy=False, max_length=length,
            seed=decoding.seed, temperature=decoding.temperature, filters=filters,
        )  # fmt: skip
        return [made.captions[row : row + many] for row in range(0, len(made.captions), many)]

    def judge(self) -> Clip | str:
        """The CLIP that judges this run's captions, or why there is none."""
        model = self.origin.recipe.clip.judge
        if model is None:
            return "no judge"
        try:
            return clip_of(model, self.origin.trained_clip("judge"), self.device)
        except RaycapError as error:
            return f"the judge cannot be loaded: {error}"


def pick_device(name: str) -> str:
    """A torch device's name; raises Refused where it is none, or not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise Refused(f"cannot be used: {str(error).splitlines()[0]}", key="device", value=name,
                      remedy="auto, cpu or cuda") from error  # fmt: skip
    return name
