"""A prepared data set of captions alone, and contexts on it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raycap.data.features import write_meta, write_shard
from raycap.data.schema import ImageRecord, build_tables, write_tables
from raycap.recipe.load import validate
from raycap.rewards.cider import write_document_frequency
from raycap.rewards.context import Context, ContextSpec

CAPTIONS = {
    "a": ("a red dog runs on the grass .", "the dog is running on green grass", "a red dog on a lawn"),
    "b": ("two cats sleep on a sofa", "a pair of cats on the sofa"),
    "c": ("a man rides a horse", "a rider on a brown horse on the beach"),
    "d": ("a dog and a cat look at a horse",),  # read by nobody unless it is labelled
}
LABELLED = frozenset("abc")
MakeContext = Callable[..., Context]


@pytest.fixture
def make_context(tmp_path: Path) -> MakeContext:
    """make_context(eos=True, labelled=..., clip=None, embeddings="", trained_clip="")."""

    def make(
        *, eos: bool = True, labelled: frozenset[str] = LABELLED, clip: dict[str, Any] | None = None,
        embeddings: str = "", trained_clip: str = "",
    ) -> Context:  # fmt: skip
        records = [ImageRecord(i, None, "train", captions) for i, captions in CAPTIONS.items()]
        write_tables(tmp_path / "prepared", build_tables(records, {}, {"seed": 0}))
        frequency = tmp_path / "frequency.npz"
        write_document_frequency({i: CAPTIONS[i] for i in sorted(labelled)}, frequency, eos=eos)
        ids = tmp_path / "labelled.json"
        ids.write_text(json.dumps(sorted(labelled)))
        recipe = validate({"name": "test", "stages": ["scst"], "clip": {"reward": clip} if clip else {}})
        return ContextSpec(
            recipe, str(tmp_path / "prepared"), str(ids), str(frequency), embeddings, trained_clip
        ).open()  # fmt: skip

    return make


@pytest.fixture
def seeing_context(make_context: MakeContext, clip_folder: Path, tmp_path: Path) -> Callable[[np.ndarray], Context]:
    """seeing_context(embeddings [3, D]): images a, b and c with these embeddings under `clip.reward`."""

    def make(embeddings: np.ndarray) -> Context:
        folder = tmp_path / "embeddings"
        folder.mkdir()
        write_shard(folder, 0, ["a", "b", "c"], embeddings)
        write_meta(folder, shape=embeddings.shape[1:], shards=1, source="test")
        return make_context(
            clip={"model": "raycap-scenes-reward"}, embeddings=str(folder), trained_clip=str(clip_folder)
        )

    return make
