"""Features on disk: what was written is what is read, view by view, and nothing is copied before it is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raycap.data.features import FeatureStore, shard_shape, write_meta, write_shard
from raycap.errors import DataError

IDS = [f"image-{n}" for n in range(7)]


def grids(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 4, 3)).astype(np.float16)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards; the second one's images have a further view."""
    write_shard(tmp_path, 0, IDS[:4], grids(0, 4))
    write_shard(tmp_path, 1, IDS[4:], grids(1, 3))
    write_shard(tmp_path, 1, IDS[4:], grids(2, 3), view=1)
    write_meta(tmp_path, shape=(4, 3), shards=2, source="numbers", views=1)
    return tmp_path


def test_what_was_written_is_read_in_any_order(folder: Path) -> None:
    store = FeatureStore.open(folder)
    assert (len(store), store.num_views, store.kind, store.shape, store.source) == (7, 1, "grid", (4, 3), "numbers")
    assert shard_shape(folder, 1) == (4, 3)
    everything = np.concatenate([grids(0, 4), grids(1, 3)]).astype(np.float32)
    asked = [5, 0, 6, 0]
    np.testing.assert_array_equal(store.get([IDS[n] for n in asked]), everything[asked])
    seen = store.get([IDS[4], IDS[4], IDS[0]], views=[1, 0, 0])
    np.testing.assert_array_equal(seen, np.stack([grids(2, 3)[0], grids(1, 3)[0], grids(0, 4)[0]]).astype(np.float32))


def test_a_copy_belongs_to_the_caller(folder: Path) -> None:
    store = FeatureStore.open(folder)
    mine = store.get([IDS[0]])
    mine += 1
    assert not np.array_equal(mine, store.get([IDS[0]]))
    out = np.empty((1, 4, 3), np.float32)
    assert store.get([IDS[2]], out=out) is out


def test_what_is_not_there_is_refused_by_name(folder: Path) -> None:
    store = FeatureStore.open(folder)
    with pytest.raises(DataError, match="nobody"):
        store.get(["nobody"])
    for view in (1, 2):
        with pytest.raises(DataError, match=f"of view {view}"):
            store.get([IDS[0]], views=[view])
    (folder / "features.json").unlink()
    with pytest.raises(DataError, match="no finished features"):
        FeatureStore.open(folder)


def test_opening_copies_nothing(tmp_path: Path) -> None:
    """Every process of a machine opens the store: a copy each would take the memory that all of them share."""
    write_shard(tmp_path, 0, IDS, np.ones((7, 64, 4096), np.float16))
    write_meta(tmp_path, shape=(64, 4096), shards=1, source="numbers")
    before = pa.total_allocated_bytes()
    store = FeatureStore.open(tmp_path)
    assert store.warm()
    assert pa.total_allocated_bytes() - before < 100_000, "of 3,670,016 bytes on disk"
    assert store.get([IDS[3]]).sum() == 64 * 4096
