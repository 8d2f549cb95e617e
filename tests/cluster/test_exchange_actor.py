"""The Exchange as an actor: what it is made from outlives it. (That it waits for its prompts: test_passing.)"""

from __future__ import annotations

import json
import pickle
from pathlib import Path

from raycap.cluster.exchange_actor import ExchangeActor
from raycap.train.prompts import PromptSchedule


def test_the_actor_can_be_started_again_however_many_images_there_are(tmp_path: Path) -> None:
    """Ray frees arguments above 100 KB once an actor is there, and cannot start it again without them."""
    file = tmp_path / "prompts.json"
    ids = [f"some_long_photograph_name_{n:08d}.jpg" for n in range(100_000)]
    file.write_text(json.dumps(ids))
    given = {"batch_size": 4, "lease_size": 2, "seed": 0, "total_steps": 3, "max_policy_lag": 0,
             "lease_timeout_s": 60.0, "quarantine_after": 3}  # fmt: skip
    assert len(pickle.dumps((str(file), given))) < 50_000
    made = ExchangeActor(str(file), **given)
    assert made.schedule.leases(2) == PromptSchedule(ids, batch_size=4, lease_size=2, seed=0).leases(2)
