"""What holds a run up, in words, and what would help: the part of a step whose doubling would shorten it most.

Sums of seconds do not say that (eight leases that four actors score in 3 s each are done sooner than eight that two
workers generate in 2 s), so it is asked of the step's `Pipeline`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from raycap.train.pipeline import AHEAD, LEARNER, ROLLOUT, SOMETIMES, WEIGHTS, Pipeline

_WAITS = 0.15
"""Share of a step below which waiting is not worth a word."""
_HELPS = 0.05
"""Share of a step's seconds that a remedy must save."""


def bottleneck(record: Mapping[str, Any]) -> str:
    """Of a learner's log record, or of `typical` over several: such as "learner waits 41% for rewards: clip; raise
    rewards.clip.workers". Empty when nobody waits much, or the record says nothing of it; without cause and remedy
    where it does not say how many workers there were, as older logs do not.

    Args:
        record: idle/learner and idle/actors (shares), and what `Pipeline.of` reads; `collocated` where it is true.
    """
    pipeline = Pipeline.of(record)
    if pipeline is None:
        learner, actors = record.get("idle/learner", 0.0), record.get("idle/actors", 0.0)
        if learner >= _WAITS:
            return f"learner waits {learner:.0%}"
        return f"actors wait {actors:.0%} for the learner" if actors >= _WAITS else ""
    learner, actors = pipeline.idle(record["seconds/wait"])
    part = _limit(pipeline, actors)
    if part == LEARNER:
        said = f"actors wait {actors:.0%} for the learner" if actors >= _WAITS else ""
    else:
        said = f"learner waits {learner:.0%} for {_whom(part, pipeline)}" if part and learner >= _WAITS else ""
    return f"{said}; {_remedies(part, pipeline, bool(record.get('collocated')))}" if said else ""


def typical(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Means of a log's steps, each figure's over the records that have it; of what is no number the last one's.

    What the learner does at some steps only is spread over all of them.
    """
    values: dict[str, list[Any]] = {}
    for record in records:
        for key, value in record.items():
            values.setdefault(key, []).append(value)
    means = {key: _mean(found) for key, found in values.items()}
    steps = len(values.get("seconds/learn", ()))
    for key in (f"seconds/{part}" for part in SOMETIMES):
        if key in means and steps:
            means[key] *= min(1.0, len(values[key]) / steps)
    return means


def _mean(values: list[Any]) -> Any:
    drawn = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return sum(values) / len(values) if drawn else values[-1]


def _limit(pipeline: Pipeline, idle: float) -> str:
    """The part whose doubling saves most; none where no doubling saves much. Not rewards where actors are never idle:
    they have enough to do without them."""
    rewards = [f"reward/{name}" for name in pipeline.pools if idle >= _HELPS]
    gains = {part: pipeline.gain(pipeline.doubled(part)) for part in (ROLLOUT, LEARNER, WEIGHTS, *rewards)}
    part = max(gains, key=lambda part: gains[part])
    return part if gains[part] >= _HELPS else ""


def _whom(part: str, pipeline: Pipeline) -> str:
    if part == WEIGHTS:
        return "actors that load weights"
    if part != ROLLOUT:
        return f"rewards: {part.removeprefix('reward/')}"
    if _held_back(pipeline):
        return f"rewards: {max(pipeline.pools, key=lambda name: pipeline.pools[name].score_s)}"
    return "captions"


def _held_back(pipeline: Pipeline) -> bool:
    """Whether workers have as many leases out for rewards as they may: more of them help as much as more workers."""
    more, workers = (pipeline.gain(pipeline.doubled(part)) for part in (AHEAD, ROLLOUT))
    return more >= max(_HELPS, 0.9 * workers)


def _remedies(part: str, pipeline: Pipeline, collocated: bool) -> str:
    remedy, reason = _remedy(part, pipeline, collocated)
    later = replace(pipeline, lag=pipeline.lag + 1)
    if not collocated and pipeline.gain(later) >= _HELPS:
        short = remedy.startswith("raise ") and not reason
        return f"{remedy}{reason} or {'' if short else 'raise '}scst.max_policy_lag"
    return remedy + reason


def _remedy(part: str, pipeline: Pipeline, collocated: bool) -> tuple[str, str]:
    """What to do, and in brackets why that."""
    if part == WEIGHTS:
        return "captioner.lm_tuning=lora", " (it publishes adapters alone)"
    if part == LEARNER and pipeline.sometimes_s > pipeline.learn_s / 2:
        return "raise scst.select_every", " (looks at `select` and checkpoints take longer than learning)"
    if part in (LEARNER, ROLLOUT) and collocated:
        return "cluster.collocated=false", " (where there is another GPU)"
    if part == LEARNER:
        return "raise cluster.learner_workers", ""
    if part == ROLLOUT and _held_back(pipeline):
        return "raise cluster.leases_ahead", ""
    name = part.removeprefix("reward/")
    count, key = (
        (pipeline.workers, "cluster.rollout_workers")
        if part == ROLLOUT
        else (pipeline.pools[name].actors, f"rewards.{name}.workers")
    )
    if count < pipeline.open_leases:
        return f"raise {key}", ""
    more = f" and raise {key}" if count == pipeline.open_leases else ""
    return f"lower scst.lease_size{more}", f" ({count} workers share {pipeline.open_leases} leases)"
