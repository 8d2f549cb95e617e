"""Frozen features by Ray Data: shards of images through a pool of encoder actors, each shard a file of its own.

A shard that lies there whole is not made again, so an extraction that was stopped goes on where it was.
"""

from __future__ import annotations

import functools
import itertools
import pickle
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from raycap.cluster.allocator import ALLOCATOR
from raycap.data.features import shard_file, shard_shape, write_meta, write_shard
from raycap.data.images import open_image
from raycap.data.picture_views import random_view
from raycap.errors import RaycapError, WorkFailed
from raycap.models.encoders import Encoder
from raycap.recipe import FeaturesRecipe

SHARD = ("number", "view", "image_ids", "paths")  # columns of a row of the Ray Data set


class ShardExtractor:
    """Encodes shards and writes them; a Ray Data actor, and a plain class in tests.

    Args:
        build: makes the encoder, in the process that uses it.
        view_area: smallest share of a picture that a view shows; seed: of the views.
    """

    def __init__(
        self, build: Callable[[], Encoder], folder: str, *, batch_size: int, dtype: str, max_pixels: int, threads: int,
        view_area: float = 1.0, seed: int = 0,
    ) -> None:  # fmt: skip
        torch.set_num_threads(threads)
        self.build, self.folder = functools.cache(build), Path(folder)
        self.batch_size, self.dtype, self.max_pixels = batch_size, np.dtype(dtype), max_pixels
        self.view_area, self.seed = view_area, seed

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """One Ray Data batch of shards: columns `number`, `view`, `image_ids`, `paths`.

        Returns:
            number, images and `refusal` a shard: the pickled RaycapError that stopped it, or no bytes. Ray Data hands
            on only the text of what an actor raises, so an error that has a key and a remedy travels as a value.
        """
        refusals = []
        for number, view, ids, paths in zip(*(rows[name] for name in SHARD), strict=True):
            try:
                self.extract(int(number), list(ids), list(paths), int(view))
                refusals.append(b"")
            except RaycapError as error:
                refusals.append(pickle.dumps(error))
        images = [len(ids) for ids in rows["image_ids"]]
        return {
            "number": np.asarray(rows["number"]),
            "images": np.asarray(images),
            "refusal": np.array(refusals, object),
        }

    def extract(self, number: int, image_ids: Sequence[str], paths: Sequence[str], view: int = 0) -> None:
        """Write one shard, of whole pictures or of one of their views."""
        encoder, parts = self.build(), []
        for start in range(0, len(paths), self.batch_size):
            part = slice(start, start + self.batch_size)
            shown = zip(image_ids[part], paths[part], strict=True)
            pictures = [self._picture(image_id, path, view) for image_id, path in shown]
            parts.append(encoder(pictures).numpy().astype(self.dtype))
        write_shard(self.folder, number, image_ids, np.concatenate(parts), view)

    def _picture(self, image_id: str, path: str, view: int) -> Image.Image:
        picture = open_image(path, max_pixels=self.max_pixels)
        if not view:
            return picture
        return random_view(picture, area=self.view_area, seed=self.seed, image_id=image_id, view=view)


def extract_features(
    images: Sequence[tuple[str, str]],
    folder: Path,
    build: Callable[[], Encoder],
    recipe: FeaturesRecipe,
    *,
    source: str,
    max_pixels: int,
    workers: int,
    threads: int,
    num_gpus: float = 0.0,
    in_views: Collection[str] = (),
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Features of all images (id, path) into `folder`, by `workers` actors.

    Args:
        in_views: ids of the images that get the recipe's further views; seed: of these.

    Returns:
        images (each view counts), images that were already there, seconds.
    """
    import ray.data

    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    shards = list(_shards(images, in_views, recipe))
    missing = [shard for shard in shards if not shard_file(folder, shard["number"]).exists()]
    total = sum(len(shard["paths"]) for shard in shards)
    done = there = total - sum(len(shard["paths"]) for shard in missing)
    progress(done, total)
    if missing:
        options = {"batch_size": recipe.batch_size, "dtype": recipe.dtype, "max_pixels": max_pixels,
                   "threads": threads, "view_area": recipe.view_area, "seed": seed}  # fmt: skip
        _quiet_ray_data()
        made = ray.data.from_items(missing, override_num_blocks=len(missing)).map_batches(
            ShardExtractor,
            fn_constructor_args=(build, str(folder)),
            fn_constructor_kwargs=options,
            batch_size=1,
            num_cpus=1,
            num_gpus=num_gpus,
            runtime_env={"env_vars": ALLOCATOR},
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(missing))),
        )
        try:
            for row in made.iter_rows():
                if row["refusal"]:
                    raise pickle.loads(row["refusal"])
                done += int(row["images"])
                progress(done, total)
        except ray.exceptions.RayError as error:
            raise WorkFailed(
                f"{type(error).__name__}: {str(error).strip()[-1500:]}", key="features", value=str(folder),
                remedy="run the same command again: finished shards are kept",
            ) from error  # fmt: skip
    write_meta(folder, shape=shard_shape(folder, 0), shards=len(shards), source=source)
    return {"images": total, "there_before": there, "seconds": time.perf_counter() - started}


def _shards(
    images: Sequence[tuple[str, str]], in_views: Collection[str], recipe: FeaturesRecipe
) -> Iterator[dict[str, Any]]:
    """Rows of `SHARD`: those of the whole pictures, then view by view."""
    chosen, number = set(in_views), itertools.count()
    for view in range(recipe.views + 1):
        shown = [image for image in images if not view or image[0] in chosen]
        for start in range(0, len(shown), recipe.shard_size):
            ids, paths = zip(*shown[start : start + recipe.shard_size], strict=True)
            yield dict(zip(SHARD, (next(number), view, list(ids), list(paths)), strict=True))


def _quiet_ray_data() -> None:
    """Progress is printed here, with rate and ETA; Ray Data's own bars would write over it."""
    import logging

    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
