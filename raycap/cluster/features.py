"""Frozen features by Ray Data: shards of images through a pool of encoder actors, each shard a file of its own.

A shard that lies there whole is not made again, so an extraction that was stopped goes on where it was.
"""

from __future__ import annotations

import functools
import math
import pickle
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from raycap.cluster.allocator import ALLOCATOR
from raycap.cluster.aside import in_a_thread
from raycap.cluster.room import Patience
from raycap.cluster.tasks import has_begun, say_begun
from raycap.data.features import shard_file, shard_shape, write_meta, write_shard
from raycap.data.images import open_image
from raycap.data.picture_views import random_view
from raycap.errors import RaycapError, RecipeError, WorkFailed
from raycap.models.encoders import Encoder
from raycap.recipe import FeaturesRecipe

SHARD = ("number", "image_ids", "paths", "in_views")  # columns of a row of the Ray Data set


class ShardExtractor:
    """Encodes shards and writes them; a Ray Data actor, and a plain class in tests.

    Args:
        build: makes the encoder, in the process that uses it.
        views: further views of the images that have them; view_area: smallest share of a picture that one shows;
            seed: of the views.
        started: called once, by its process.
    """

    def __init__(
        self, build: Callable[[], Encoder], folder: str, *, batch_size: int, dtype: str, max_pixels: int, threads: int,
        views: int = 0, view_area: float = 1.0, seed: int = 0, started: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        started()
        torch.set_num_threads(threads)
        self.build, self.folder = functools.cache(build), Path(folder)
        self.batch_size, self.dtype, self.max_pixels = batch_size, np.dtype(dtype), max_pixels
        self.views, self.view_area, self.seed = views, view_area, seed

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """One Ray Data batch of shards: columns as in `SHARD`.

        Returns:
            number, images (each view counts) and `refusal` a shard: the pickled RaycapError that stopped it, or no
            bytes. Ray Data hands on only the text of what an actor raises, so an error that has a key and a remedy
            travels as a value.
        """
        refusals, images = [], []
        for number, ids, paths, in_views in zip(*(rows[name] for name in SHARD), strict=True):
            images.append(len(ids) + self.views * int(sum(in_views)))
            try:
                self.extract(int(number), list(ids), list(paths), [bool(v) for v in in_views])
                refusals.append(b"")
            except RaycapError as error:
                refusals.append(pickle.dumps(error))
        return {
            "number": np.asarray(rows["number"]),
            "images": np.asarray(images),
            "refusal": np.array(refusals, object),
        }

    def extract(self, number: int, image_ids: Sequence[str], paths: Sequence[str], in_views: Sequence[bool]) -> None:
        """Write one shard. A picture is decoded once for all its views; the whole pictures' file comes last."""
        made: list[list[NDArray[Any]]] = [[] for _ in range(self.views + 1)]
        shown = list(zip(image_ids, paths, in_views, strict=True))
        for start in range(0, len(shown), self.batch_size):
            part = [
                (image_id, open_image(path, max_pixels=self.max_pixels), viewed)
                for image_id, path, viewed in shown[start : start + self.batch_size]
            ]
            for view in range(self.views + 1):
                pictures = [
                    self._seen(image_id, picture, view) for image_id, picture, viewed in part if viewed or not view
                ]
                if pictures:
                    made[view].append(self.build()(pictures).numpy().astype(self.dtype))
        viewed_ids = [image_id for image_id, _, viewed in shown if viewed]
        for view in reversed(range(self.views + 1)):
            if made[view]:
                ids = viewed_ids if view else image_ids
                write_shard(self.folder, number, ids, np.concatenate(made[view]), view)

    def _seen(self, image_id: str, picture: Image.Image, view: int) -> Image.Image:
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
    stall_timeout_s: float = math.inf,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Features of all images (id, path) into `folder`, by `workers` actors.

    Args:
        in_views: ids of the images that get the recipe's further views; seed: of these.
        stall_timeout_s: for how long no actor may find room, which is said each minute.

    Returns:
        images (each view counts), images that were already there, seconds.

    Raises:
        RecipeError: views are asked for, of no image. WorkFailed: no room, or what an actor met.
    """
    import ray.data

    if recipe.views and not in_views:
        raise RecipeError("there is no training image to make views of", key="features.views", value=recipe.views)
    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    viewed = set(in_views) if recipe.views else set()
    shards = [
        _shard(number, images[start : start + recipe.shard_size], viewed)
        for number, start in enumerate(range(0, len(images), recipe.shard_size))
    ]
    sizes = {shard["number"]: len(shard["paths"]) + recipe.views * sum(shard["in_views"]) for shard in shards}
    missing = [shard for shard in shards if not shard_file(folder, shard["number"]).exists()]
    total = sum(sizes.values())
    done = there = total - sum(sizes[shard["number"]] for shard in missing)
    progress(done, total)
    if missing:
        mark = f"features-{time.time_ns()}"
        options = {"batch_size": recipe.batch_size, "dtype": recipe.dtype, "max_pixels": max_pixels, "threads": threads,
                   "views": recipe.views, "view_area": recipe.view_area, "seed": seed,
                   "started": functools.partial(say_begun, mark)}  # fmt: skip
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

        def take() -> None:
            nonlocal done
            for row in made.iter_rows():
                if row["refusal"]:
                    raise pickle.loads(row["refusal"])
                done += int(row["images"])
                progress(done, total)

        try:
            in_a_thread(take, _until_begun(mark, f"each of {min(workers, len(missing))} actors", stall_timeout_s))
        except ray.exceptions.RayError as error:
            raise WorkFailed(
                f"{type(error).__name__}: {str(error).strip()[-1500:]}", key="features", value=str(folder),
                remedy="run the same command again: finished shards are kept",
            ) from error  # fmt: skip
    write_meta(folder, shape=shard_shape(folder, 0), shards=len(shards), source=source, views=recipe.views)
    return {"images": total, "there_before": there, "seconds": time.perf_counter() - started}


def _until_begun(mark: str, who: str, limit_s: float) -> Callable[[], None]:
    """Called now and then: says who waits for room, until one has begun."""
    patience, begun = Patience(limit_s), False

    def look() -> None:
        nonlocal begun
        begun = begun or has_begun(mark)
        patience.look("" if begun else f"features: {who}")

    return look


def _shard(number: int, images: Sequence[tuple[str, str]], in_views: Collection[str]) -> dict[str, Any]:
    ids, paths = [image_id for image_id, _ in images], [path for _, path in images]
    return dict(zip(SHARD, (number, ids, paths, [image_id in in_views for image_id in ids]), strict=True))


def _quiet_ray_data() -> None:
    """Progress is printed here, with rate and ETA; Ray Data's own bars would write over it."""
    import logging

    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
