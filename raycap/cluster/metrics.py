"""The learner's log as Ray metrics: what Prometheus scrapes and Grafana draws (raycap/cluster/grafana.json)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from raycap.train.sinks import Sink
from raycap.train.trackers import numbers_of

# log keys whose second half is a name: one metric with a tag instead of one a name
_TAGGED = {"seconds": "part", "idle": "who", "queue": "state", "workers": "role", "reward": "component"}


def metric_of(key: str) -> tuple[str, dict[str, str]]:
    """Name and tags of a log key: "reward/clip/sampled" is raycap_reward_sampled of component clip."""
    if key == "seconds":  # of training so far, and no part of a step
        key = "elapsed_seconds"
    head, _, rest = key.partition("/")
    if head not in _TAGGED or not rest:
        return "raycap_" + re.sub(r"[^A-Za-z0-9_]", "_", key), {}
    if head == "reward":
        name, _, figure = rest.rpartition("/")
        return f"raycap_reward_{figure}", {"component": name}
    return f"raycap_{head}", {_TAGGED[head]: rest}


def ray_metrics(run: str) -> Sink:
    """A gauge for every figure of the log, tagged with the run; to be called inside Ray."""
    from ray.util.metrics import Gauge

    gauges: dict[str, Any] = {}

    def log(record: Mapping[str, Any]) -> None:
        for key, value in {**numbers_of(record), "step": float(record["step"])}.items():
            name, tags = metric_of(key)
            if name not in gauges:
                gauges[name] = Gauge(name, description=f"{key} of raycap's log", tag_keys=("run", *tags))
            gauges[name].set(value, tags={"run": run, **tags})

    return Sink("Ray's metrics", "look at the agent of the learner's node", log)
