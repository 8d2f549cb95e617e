"""Frozen features by Ray Data: shards of images through a pool of encoder actors, each shard a file of its own.

A shard that lies there whole is not made again, so an extraction that was stopped goes on where it was.
"""

from __future__ import annotations

import functools
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raycap.cluster.allocator import ALLOCATOR
from raycap.data.features import shard_file, shard_shape, write_meta, write_shard
from raycap.data.images import open_image
from raycap.errors import RaycapError, WorkFailed
from raycap.models.encoders import Encoder
from raycap.recipe import FeaturesRecipe


class ShardExtractor:
    """Encodes shards and writes them; a Ray Data actor, and a plain class in tests.

    Args:
        build: makes the encoder, in the process that uses it.
    """

    def __init__(
        self, build: Callable[[], Encoder], folder: str, *, batch_size: int, dtype: str, max_pixels: int, threads: int
    ) -> None:
        torch.set_num_threads(threads)
        self.build, self.folder = functools.cache(build), Path(folder)
        self.batch_size, self.dtype, self.max_pixels = batch_size, np.dtype(dtype), max_pixels

    def __call__(self, rows: dict[str, Any]) -> dict[str, Any]:
        """One Ray Data batch of shards: columns `number`, `image_ids`, `paths`.

        Returns:
            number, images and `refusal` a shard: the pickled RaycapError that stopped it, or no bytes. Ray Data hands
            on only the text of what an actor raises, so an error that has a key and a remedy travels as a value.
        """
        refusals = []
        for number, ids, paths in zip(rows["number"], rows["image_ids"], rows["paths"], strict=True):
            try:
                self.extract(int(number), list(ids), list(paths))
                refusals.append(b"")
            except RaycapError as error:
                refusals.append(pickle.dumps(error))
        images = [len(ids) for ids in rows["image_ids"]]
        return {
            "number": np.asarray(rows["number"]),
            "images": np.asarray(images),
            "refusal": np.array(refusals, object),
        }

    def extract(self, number: int, image_ids: Sequence[str], paths: Sequence[str]) -> None:
        """Write one shard."""
        encoder, parts = self.build(), []
        for start in range(0, len(paths), self.batch_size):
            pictures = [open_image(p, max_pixels=self.max_pixels) for p in paths[start : start + self.batch_size]]
            parts.append(encoder(pictures).numpy().astype(self.dtype))
        write_shard(self.folder, number, image_ids, np.concatenate(parts))


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
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, float]:
    """Features of all images (id, path) into `folder`, by `workers` actors.

    Returns:
        images, images that were already there, seconds.
    """
    import ray.data

    started = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    size = recipe.shard_size
    shards = [(n, images[a : a + size]) for n, a in enumerate(range(0, len(images), size))]
    missing = [(n, part) for n, part in shards if not shard_file(folder, n).exists()]
    done = there = len(images) - sum(len(part) for _, part in missing)
    progress(done, len(images))
    if missing:
        rows = [{"number": n, "image_ids": [i for i, _ in p], "paths": [q for _, q in p]} for n, p in missing]
        options = {"batch_size": recipe.batch_size, "dtype": recipe.dtype, "max_pixels": max_pixels, "threads": threads}
        _quiet_ray_data()
        made = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
            ShardExtractor,
            fn_constructor_args=(build, str(folder)),
            fn_constructor_kwargs=options,
            batch_size=1,
            num_cpus=1,
            num_gpus=num_gpus,
            runtime_env={"env_vars": ALLOCATOR},
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(rows))),
        )
        try:
            for row in made.iter_rows():
                if row["refusal"]:
                    raise pickle.loads(row["refusal"])
                done += int(row["images"])
                progress(done, len(images))
        except ray.exceptions.RayError as error:
            raise WorkFailed(
                f"{type(error).__name__}: {str(error).strip()[-1500:]}", key="features", value=str(folder),
                remedy="run the same command again: finished shards are kept",
            ) from error  # fmt: skip
    write_meta(folder, shape=shard_shape(folder, 0), shards=len(shards), source=source)
    return {"images": len(images), "there_before": there, "seconds": time.perf_counter() - started}


def _quiet_ray_data() -> None:
    """Progress is printed here, with rate and ETA; Ray Data's own bars would write over it."""
    import logging

    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
