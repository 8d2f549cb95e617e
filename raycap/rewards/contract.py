"""What a reward component is, and the check that every answer of one goes through.

A component is a class `Component(context, **options)` with `score(batch) -> list[float | None]`: one number a caption,
or None for "does not apply here". A failure is never a reward: an exception, NaN, infinity or a wrong length stops the
job with the component's name and the caption.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from raycap.errors import RaycapError, RecipeError, RewardError
from raycap.types import CaptionBatch, ComponentScores, Generation


class RewardContext(Protocol):
    """What a component may know: references and image embeddings by image id, the recipe, the device."""

    @property
    def recipe(self) -> Any: ...
    @property
    def device(self) -> str: ...

    def references(self, image_id: str) -> Sequence[str]:
        """The captions that this trial may read for the image; empty when it is unlabelled."""
        ...

    def image_embedding(self, image_id: str) -> NDArray[np.float32]:
        """The image's unit embedding under `clip.reward`, float32 [D]."""
        ...


class Component(Protocol):
    """Scores captions. Built once a process as `Component(context, **options)`."""

    def score(self, batch: CaptionBatch) -> Sequence[float | None]: ...


BUILT_IN: Mapping[str, str] = {
    "cider": "raycap.rewards.cider:CiderReward",
    "clip": "raycap.rewards.clip:ClipReward",
}


def build_component(name: str, context: RewardContext, options: Mapping[str, Any], source: str = "") -> Component:
    """Make a component by built-in name or by `package.module:ClassName`.

    Raises:
        RecipeError: no such component, or its class refuses the options.
    """
    path = source or BUILT_IN.get(name, "")
    module, _, attribute = path.partition(":")
    if not attribute:
        raise RecipeError(f"expected one of {', '.join(BUILT_IN)}, or package.module:ClassName",
                          key=f"rewards.{name}.source", value=source or name)  # fmt: skip
    try:
        kind = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise RecipeError(f"cannot be imported: {error}", key=f"rewards.{name}.source", value=path) from error
    try:
        return kind(context, **options)
    except TypeError as error:
        raise RecipeError(str(error), key=f"rewards.{name}.options", value=dict(options)) from error


def checked_scores(name: str, component: Component, batch: CaptionBatch) -> NDArray[np.float32]:
    """Ask a component and hold its answer to the contract; identical captions of one image are scored once.

    Returns:
        float32 [N], NaN where the component said None.

    Raises:
        RewardError: the component raised, or returned NaN, infinity or a wrong number of values.
    """
    keys = list(zip(batch.image_ids, batch.captions, batch.finished, strict=True))
    places: dict[tuple[str, str, bool], int] = {}
    for key in keys:
        places.setdefault(key, len(places))
    ids, captions, finished = zip(*places, strict=True) if places else ((), (), ())
    unique = CaptionBatch(tuple(ids), tuple(captions), tuple(finished))
    try:
        answer = list(component.score(unique))
    except RaycapError:
        raise
    except Exception as error:
        raise RewardError(f"raised {type(error).__name__}: {error}", key=f"rewards.{name}",
                          value=unique.captions[:1], remedy="mend the component; nothing was trained on this step",
                          ) from error  # fmt: skip
    if len(answer) != len(unique):
        raise RewardError(f"returned {len(answer)} values for {len(unique)} captions", key=f"rewards.{name}",
                          value=unique.captions[:1])  # fmt: skip
    values = np.empty(len(unique), np.float32)
    for index, value in enumerate(answer):
        if value is not None and not math.isfinite(value):
            raise RewardError(f"returned {value} for image {unique.image_ids[index]!r}", key=f"rewards.{name}",
                              value=unique.captions[index], remedy="return None where the reward does not apply",
                              )  # fmt: skip
        values[index] = np.nan if value is None else value
    return values[[places[key] for key in keys]]


def score_generation(
    name: str, component: Component, image_ids: Sequence[str], generation: Generation
) -> ComponentScores:
    """Rewards of a lease's samples and greedy captions by one component, timed."""
    started = time.perf_counter()
    samples = generation.num_samples
    batch = CaptionBatch(
        image_ids=tuple(i for i in image_ids for _ in range(samples)) + tuple(image_ids),
        captions=generation.captions + generation.greedy_captions,
        finished=tuple(map(bool, generation.finished)) + tuple(map(bool, generation.greedy_finished)),
    )
    values = checked_scores(name, component, batch)
    sampled = len(image_ids) * samples
    return ComponentScores(
        rewards=values[:sampled].reshape(len(image_ids), samples),
        greedy_rewards=values[sampled:],
        seconds=time.perf_counter() - started,
    )
