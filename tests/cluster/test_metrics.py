"""The log's keys as names and tags of metrics: one kind of figure, one name, always the same tags."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from raycap.cluster import metrics
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


LOGGED = [
    "step", "seconds", "pg_loss", "grad_norm", "lr", "ess", "policy_lag", "length", "finished_share",
    "select_cider", "seconds/wait", "idle/learner", "queue/ready", "reward/cider/sampled",
    "reward/cider/greedy", "reward/cider/share",
]  # fmt: skip


def test_grafana_draws_what_there_is() -> None:
    """Names and tags in the dashboard's queries, against those of a log's keys (Ray puts `ray_` before a name)."""
    board = json.loads((Path(metrics.__file__).parent / "grafana.json").read_text())
    known = {f"ray_{name}": {"run", *tags} for name, tags in map(metric_of, LOGGED)}
    targets = [target for panel in board["panels"] for target in panel["targets"]]
    assert len(targets) >= len(board["panels"]) == len({panel["id"] for panel in board["panels"]})
    for target in targets:
        (name,) = re.findall(r"ray_raycap_\w+", target["expr"])
        assert name in known, name
        assert set(re.findall(r"{{(\w+)}}", target["legendFormat"])) <= known[name], target
