"""Feature extraction by Ray Data: the same as encoding directly, resumable shard by shard."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from raycap.cluster.features import ShardExtractor, extract_features
from raycap.data.dataset import PreparedDataset
from raycap.data.features import FeatureStore, shard_file
from raycap.data.images import open_image
from raycap.data.picture_views import random_view
from raycap.errors import DataError, RecipeError, WorkFailed
from raycap.recipe import FeaturesRecipe


class MeanColour:
    """An encoder in one line: the mean of a 2 × 2 grid of each picture."""

    source = "mean-colour"

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale

    def __call__(self, pictures: list[Image.Image]) -> torch.Tensor:
        small = [np.asarray(p.resize((2, 2), Image.Resampling.BOX), np.float32).reshape(4, 3) for p in pictures]
        return torch.from_numpy(np.stack(small)) * self.scale


RECIPE = FeaturesRecipe(encoder="test_vit", shard_size=5, batch_size=2, dtype="float32")


def images(prepared: PreparedDataset) -> list[tuple[str, str]]:
    return [(i, str(prepared.path(i))) for i in prepared.ids("train")]


def extract(prepared: PreparedDataset, folder: Path, **options: Any) -> dict[str, float]:
    return extract_features(
        images(prepared), folder, functools.partial(MeanColour, **options), RECIPE, source="mean-colour",
        max_pixels=10**6, workers=2, threads=1,
    )  # fmt: skip


@pytest.mark.ray
def test_features_equal_the_encoder_and_come_back_by_id(
    ray_session: Any, prepared: PreparedDataset, tmp_path: Path
) -> None:
    figures = extract(prepared, tmp_path)
    store = FeatureStore.open(tmp_path)
    ids = [i for i, _ in images(prepared)]
    assert figures["images"] == len(store) == len(ids) == 24
    chosen = [ids[7], ids[0], ids[7]]
    expected = MeanColour()([open_image(prepared.path(i), max_pixels=10**6) for i in chosen]).numpy()
    np.testing.assert_array_equal(store.get(chosen), expected)
    assert (store.shape, store.kind) == ((4, 3), "grid")


@pytest.mark.ray
def test_an_interrupted_extraction_goes_on_with_the_missing_shards(
    ray_session: Any, prepared: PreparedDataset, tmp_path: Path
) -> None:
    extract(prepared, tmp_path)
    kept = shard_file(tmp_path, 1)
    before = kept.read_bytes()
    shard_file(tmp_path, 3).unlink()
    (tmp_path / "features.json").unlink()
    with pytest.raises(DataError, match="no finished features"):
        FeatureStore.open(tmp_path)
    figures = extract(prepared, tmp_path, scale=2.0)  # another encoder: shows which shards were made anew
    assert figures["there_before"] == 24 - 5
    assert kept.read_bytes() == before
    store, ids = FeatureStore.open(tmp_path), [i for i, _ in images(prepared)]
    once = MeanColour()([open_image(prepared.path(i), max_pixels=10**6) for i in ids[15:16]]).numpy()
    np.testing.assert_array_equal(store.get(ids[15:16]), 2 * once)


def test_the_extractor_is_a_plain_class(prepared: PreparedDataset, tmp_path: Path) -> None:
    worker = ShardExtractor(MeanColour, str(tmp_path), batch_size=2, dtype="float16", max_pixels=10**6, threads=1)
    chosen = images(prepared)[:3]
    worker.extract(0, [i for i, _ in chosen], [p for _, p in chosen], [False] * 3)
    assert shard_file(tmp_path, 0).exists()
    assert [f.name for f in tmp_path.iterdir()] == ["part-00000.arrow"], "no temporary file is left"


@pytest.mark.ray
def test_views_are_features_of_windows_of_training_pictures_and_the_plain_ones_stay(
    ray_session: Any, prepared: PreparedDataset, tmp_path: Path
) -> None:
    recipe = RECIPE.model_copy(update={"views": 2, "view_area": 0.2})
    chosen = [i for i, _ in images(prepared)][3:20]
    figures = extract_features(
        images(prepared), tmp_path, MeanColour, recipe, source="mean-colour", max_pixels=10**6, workers=2, threads=1,
        in_views=chosen, seed=5,
    )  # fmt: skip
    store = FeatureStore.open(tmp_path)
    assert (store.num_views, len(store), figures["images"]) == (2, 24, 24 + 2 * 17)
    asked = [chosen[4], chosen[4], chosen[0], chosen[4]]
    views = [2, 0, 1, 1]
    pictures = [open_image(prepared.path(i), max_pixels=10**6) for i in asked]
    shown = [
        random_view(picture, area=0.2, seed=5, image_id=i, view=view) if view else picture
        for i, view, picture in zip(asked, views, pictures, strict=True)
    ]
    np.testing.assert_array_equal(store.get(asked, views=views), MeanColour()(shown).numpy())
    np.testing.assert_array_equal(store.get(asked), MeanColour()(pictures).numpy())
    left_out = images(prepared)[0][0]
    with pytest.raises(DataError, match=f"{left_out}.*of view 1"):
        store.get([left_out], views=[1])
    with pytest.raises(DataError, match="of view 3"):
        store.get([chosen[0]], views=[3])


def test_an_unknown_image_is_named(prepared: PreparedDataset, tmp_path: Path) -> None:
    from raycap.data.features import write_meta, write_shard

    write_shard(tmp_path, 0, ["a"], np.zeros((1, 2, 3), np.float32))
    write_meta(tmp_path, shape=(2, 3), shards=1, source="zeros")
    with pytest.raises(DataError, match="nobody"):
        FeatureStore.open(tmp_path).get(["nobody"])


class Picky(MeanColour):
    """Refuses when it is used (`refusal`), or fails as a fault of the program does."""

    def __init__(self, refusal: bool) -> None:
        self.refusal = refusal

    def __call__(self, pictures: list[Image.Image]) -> torch.Tensor:
        if self.refusal:
            raise RecipeError(
                "the package is not installed", key="features.weights", value="package:x", remedy="get it"
            )
        raise ZeroDivisionError("a fault of the program")


@pytest.mark.ray
@pytest.mark.parametrize(
    ("refusal", "kind", "message"),
    [(True, RecipeError, "the package is not installed"), (False, WorkFailed, "ZeroDivisionError")],
)  # fmt: skip
def test_what_an_actor_raises_comes_through_and_leaves_nothing_finished(
    ray_session: Any, prepared: PreparedDataset, tmp_path: Path, refusal: bool, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        extract_features(
            images(prepared), tmp_path, functools.partial(Picky, refusal), RECIPE, source="picky", max_pixels=10**6,
            workers=1, threads=1,
        )  # fmt: skip
    with pytest.raises(DataError, match="no finished features"):
        FeatureStore.open(tmp_path)
