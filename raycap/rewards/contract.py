"""What a reward component is, and the check that every answer of one goes through.

A component is a class `Component(context, **options)` with `score(batch) -> list[float | None]`: one number a caption,
or None for "does not apply here". A failure is never a reward: an exception, NaN, infinity or a wrong length stops the
job with the component's name and the caption.
"""

from __future__ import annotations

import importlib
import inspect
import time
from collections.abc import Mapping, Sequence, Set
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
    "bleu": "raycap.rewards.overlap:BleuReward",
    "rouge": "raycap.rewards.overlap:RougeReward",
    "self_retrieval": "raycap.rewards.self_retrieval:SelfRetrievalReward",
    "critic": "raycap.rewards.critic:CriticReward",
    "length": "raycap.rewards.surface:LengthReward",
    "repetition": "raycap.rewards.surface:RepetitionReward",
    "bad_ending": "raycap.rewards.surface:BadEndingReward",
    "bias": "raycap.rewards.surface:BiasReward",
}


def build_component(name: str, context: RewardContext, options: Mapping[str, Any], source: str = "") -> Component:
    """Make a component by built-in name or by `package.module:ClassName`.

    Raises:
        RecipeError: no such component, or its class takes no such options.
        RewardError: its constructor failed; a TypeError inside it is no fault of the options.
    """
    check_component(name, options, source)
    kind, path = _class_of(name, source)
    try:
        return kind(context, **options)
    except RaycapError:
        raise
    except Exception as error:  # anybody's code may raise anything: it ends the run, named, with its cause
        what = f"raised {type(error).__name__} when it was built: {error}"
        raise RewardError(what, key=f"rewards.{name}", value=path, remedy="mend the component") from error


def check_component(name: str, options: Mapping[str, Any], source: str = "") -> None:
    """Whether there is such a component and it takes such options, without building it.

    A class may say more about them in a static method `check_options(**options)`: what that refuses (a RecipeError, a
    ValueError or a TypeError) is refused before anything is trained.

    Raises:
        RecipeError: see `build_component`.
    """
    kind, path = _class_of(name, source)
    try:
        signature = inspect.signature(kind)
    except ValueError:
        signature = None  # a class without one, in C: building it will tell
    try:
        if signature is not None:
            signature.bind(None, **options)
        if (check := getattr(kind, "check_options", None)) is not None:
            check(**options)
    except (TypeError, ValueError) as error:
        raise RecipeError(str(error), key=f"rewards.{name}.options", value=dict(options),
                          remedy=f"they are the keyword arguments of {path}") from error  # fmt: skip


def _class_of(name: str, source: str) -> tuple[Any, str]:
    """A component's class and its dotted name."""
    path = source or BUILT_IN.get(name, "")
    if not all(path.partition(":")):
        raise RecipeError(f"expected one of {', '.join(BUILT_IN)}, or package.module:ClassName",
                          key=f"rewards.{name}.source", value=source or name)  # fmt: skip
    return load_dotted(path, key=f"rewards.{name}.source"), path


def load_dotted(path: str, *, key: str) -> Any:
    """What `package.module:Name` names.

    Raises:
        RecipeError: not of that form, it cannot be imported, or the module has no such name.
    """
    module, _, attribute = path.partition(":")
    if not (module and attribute):
        raise RecipeError("expected package.module:ClassName", key=key, value=path)
    try:
        found = importlib.import_module(module)
    except Exception as error:  # a module runs anybody's code: whatever it raises ends the run, named, with its cause
        raise RecipeError(f"cannot be imported: {type(error).__name__}: {error}", key=key, value=path,
                          remedy="the module must be importable in every process") from error  # fmt: skip
    if not hasattr(found, attribute):
        raise RecipeError(f"cannot be imported: the module {module} has no {attribute}", key=key, value=path,
                          remedy=f"name what is in {getattr(found, '__file__', module)}")  # fmt: skip
    return getattr(found, attribute)


# What `list` would take apart without complaint: a dict's keys, a set in any order, the codes of bytes.
_NO_SEQUENCE = (Mapping, Set, str, bytes, bytearray, memoryview)


def checked_scores(name: str, component: Component, batch: CaptionBatch) -> NDArray[np.float32]:
    """Ask a component and hold its answer to the contract; identical captions of one image are scored once.

    Returns:
        float32 [N], NaN where the component said None.

    Raises:
        RewardError: the component raised, or returned NaN, infinity, no number, a wrong number of values, or what is no
            sequence (a dict, a set).
    """
    keys = list(zip(batch.image_ids, batch.captions, batch.finished, strict=True))
    places: dict[tuple[str, str, bool], int] = {}
    for key in keys:
        places.setdefault(key, len(places))
    ids, captions, finished = zip(*places, strict=True) if places else ((), (), ())
    unique = CaptionBatch(tuple(ids), tuple(captions), tuple(finished))
    try:
        said = component.score(unique)
        answer = [] if isinstance(said, _NO_SEQUENCE) else list(said)
    except RaycapError:
        raise
    except (Exception, SystemExit) as error:
        what = f"raised {type(error).__name__}: {error}; {len(unique)} captions were asked"
        raise _fault(name, what, unique, 0, "mend the component; nothing was trained on this step") from error
    if isinstance(said, _NO_SEQUENCE):
        what = f"returned a {type(said).__name__}, whose members are not one reward after the other"
        raise _fault(name, what, unique, 0, "return a list: one value a caption, in their order")
    if len(answer) != len(unique):
        what = f"returned {len(answer)} values for {len(unique)} captions"
        raise _fault(name, what, unique, min(len(answer), len(unique) - 1), "return one value a caption")
    values = np.empty(len(unique), np.float32)
    for index, value in enumerate(answer):
        values[index] = np.nan if value is None else _float32(value)
        if value is not None and not np.isfinite(values[index]):
            what = f"returned {value!r}, which is not a finite float32"
            raise _fault(name, what, unique, index, "return None where the reward does not apply")
    return values[[places[key] for key in keys]]


def _float32(value: Any) -> np.float32:
    """A number as float32; NaN where it is none, infinity where it does not fit."""
    try:
        with np.errstate(over="ignore"):
            return np.float32(np.nan if isinstance(value, str | bytes) else float(value))
    except (TypeError, ValueError, OverflowError):
        return np.float32(np.nan)


def _fault(name: str, what: str, batch: CaptionBatch, index: int, remedy: str) -> RewardError:
    """The error that names the component, the image and the caption where it was noticed."""
    if not len(batch):
        return RewardError(what, key=f"rewards.{name}", remedy=remedy)
    where = f"{what} (image {batch.image_ids[index]!r})"
    return RewardError(where, key=f"rewards.{name}", value=batch.captions[index], remedy=remedy)


def score_generation(
    name: str, component: Component, image_ids: Sequence[str], generation: Generation
) -> ComponentScores:
    """Rewards of a lease's samples and greedy captions by one component, timed.

    Returns:
        float32 [B, K] and [B], NaN where the component said None, and the seconds that it took.

    Raises:
        RewardError: see `checked_scores`.
    """
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
