"""The log's keys as names and tags of metrics: one kind of figure, one name, always the same tags."""

from __future__ import annotations

import pytest

from raycap.cluster.metrics import metric_of


@pytest.mark.parametrize(
    ("key", "name", "tags"),
    [
        ("pg_loss", "raycap_pg_loss", {}),
        ("seconds", "raycap_elapsed_seconds", {}),
        ("seconds/wait", "raycap_seconds", {"part": "wait"}),
        ("seconds/reward/clip", "raycap_seconds", {"part": "reward/clip"}),
        ("idle/learner", "raycap_idle", {"who": "learner"}),
        ("queue/ready", "raycap_queue", {"state": "ready"}),
        ("reward/clip/sampled", "raycap_reward_sampled", {"component": "clip"}),
    ],
)
def test_names_and_tags(key: str, name: str, tags: dict[str, str]) -> None:
    assert metric_of(key) == (name, tags)
