"""Who waits for whom, in words."""

from __future__ import annotations

import pytest

from raycap.train.bottleneck import bottleneck

SECONDS = {"seconds/generate": 1.0, "seconds/reward": 4.0, "seconds/weights": 0.1}


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({}, ""),
        ({"idle/learner": 0.1, "idle/actors": 0.2, **SECONDS}, ""),
        ({"idle/learner": 0.41, "idle/actors": 0.0, **SECONDS, "seconds/reward/cider": 0.1, "seconds/reward/clip": 3},
         "learner waits 41% for rewards: clip; raise rewards.clip.workers"),
        ({"idle/learner": 0.5, "idle/actors": 0.1, **SECONDS, "seconds/reward": 0.2},
         "learner waits 50% for captions; raise cluster.rollout_workers"),
        ({"idle/learner": 0.5, "idle/actors": 0.6, **SECONDS, "seconds/reward": 0.2},
         "learner waits 50% for captions; raise cluster.rollout_workers or scst.max_policy_lag"),
        ({"idle/learner": 0.5, "idle/actors": 0.1, "seconds/weights": 9.0},
         "learner waits 50% for actors that load weights; raise scst.max_policy_lag"),
        ({"idle/learner": 0.0, "idle/actors": 0.7, **SECONDS},
         "actors wait 70% for the learner; raise cluster.learner_workers or scst.max_policy_lag"),
    ],
)  # fmt: skip
def test_it_is_said_in_words(record: dict[str, float], said: str) -> None:
    assert bottleneck(record) == said
