"""Which stored view a step sees: drawn evenly, whole pictures among them, the same alone and in a batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from raycap.data.features import FeatureStore, write_meta, write_shard
from raycap.models.prefix import PrefixCaptioner
from raycap.recipe import MLERecipe
from raycap.train.views import training_views
from tests.conftest import TinyData

MakeCaptioner = Callable[..., PrefixCaptioner]

IDS = tuple("abcdef")


@pytest.fixture(scope="module")
def captioner(make_captioner: MakeCaptioner) -> PrefixCaptioner:
    return make_captioner()


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    """Feature of view v of every image: v everywhere."""
    for view in range(3):
        write_shard(tmp_path, 0, IDS, np.full((len(IDS), 4, 8), view, np.float32), view)
    write_meta(tmp_path, shape=(4, 8), shards=1, source="numbers", views=2)
    return FeatureStore.open(tmp_path)


def seen(captioner: PrefixCaptioner, store: FeatureStore, positions: list[int], **at: int) -> torch.Tensor:
    ids = [IDS[p % len(IDS)] for p in positions]
    return training_views(captioner, store, ids, MLERecipe(), **{"seed": 3, "step": 1, **at}, positions=positions)


def test_every_view_comes_as_often_as_another(captioner: PrefixCaptioner, store: FeatureStore) -> None:
    drawn = torch.cat([seen(captioner, store, list(range(6)), step=step)[:, 0, 0] for step in range(300)])
    counts = torch.bincount(drawn.long(), minlength=3)
    assert len(counts) == 3
    assert bool((counts.float() / counts.sum() - 1 / 3).abs().max() < 0.04)


def test_a_view_is_a_function_of_seed_step_and_position(captioner: PrefixCaptioner, store: FeatureStore) -> None:
    together = seen(captioner, store, list(range(12)))
    for position in range(12):
        assert torch.equal(seen(captioner, store, [position])[0], together[position])
    assert not torch.equal(together, seen(captioner, store, list(range(12)), step=2))
    assert not torch.equal(together, seen(captioner, store, list(range(12)), seed=4))


def test_a_stage_may_keep_to_the_whole_pictures(captioner: PrefixCaptioner, store: FeatureStore) -> None:
    whole = training_views(captioner, store, IDS, MLERecipe(views=False), seed=3, step=1, positions=range(len(IDS)))
    assert not whole.any(), "0 is the whole picture"


def test_a_store_without_views_gives_the_features_themselves(captioner: PrefixCaptioner, tiny: TinyData) -> None:
    ids = list(tiny.captions)[:3]
    given = training_views(captioner, tiny.grid, ids, MLERecipe(), seed=0, step=0, positions=[0, 1, 2])
    np.testing.assert_array_equal(given.numpy(), tiny.grid.get(ids))
