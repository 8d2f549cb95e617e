"""Where a step's time went, in words: who waits for whom, and what would help."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LEARNER_WAITS, _ACTORS_WAIT = 0.15, 0.3
"""Shares of a step below which waiting is not worth a word."""


def bottleneck(record: Mapping[str, Any]) -> str:
    """Of a learner's log record (or means of several): such as "learner waits 41% for rewards: clip; raise
    rewards.clip.workers". Empty when nobody waits much, or the record says nothing of it.

    Args:
        record: idle/learner and idle/actors (shares), seconds/weights, /generate and /reward (sums over leases),
            seconds/reward/NAME (sums over leases, of the component's own work).
    """
    learner, actors = record.get("idle/learner"), record.get("idle/actors")
    if learner is None or actors is None:
        return ""
    if learner >= _LEARNER_WAITS:
        parts = {part: record.get(f"seconds/{part}", 0.0) for part in ("generate", "reward", "weights")}
        slowest = max(parts, key=lambda part: parts[part])
        if slowest == "reward" and (name := _slowest_reward(record)):
            return f"learner waits {learner:.0%} for rewards: {name}; raise rewards.{name}.workers"
        if slowest == "weights":
            return f"learner waits {learner:.0%} for actors that load weights; raise scst.max_policy_lag"
        more = "raise cluster.rollout_workers" + ("" if actors < _ACTORS_WAIT else " or scst.max_policy_lag")
        return f"learner waits {learner:.0%} for captions; {more}"
    if actors >= _ACTORS_WAIT:
        return f"actors wait {actors:.0%} for the learner; raise cluster.learner_workers or scst.max_policy_lag"
    return ""


def _slowest_reward(record: Mapping[str, Any]) -> str:
    seconds = {key.removeprefix("seconds/reward/"): value for key, value in record.items()
               if key.startswith("seconds/reward/")}  # fmt: skip
    return max(seconds, key=lambda name: seconds[name]) if seconds else ""
