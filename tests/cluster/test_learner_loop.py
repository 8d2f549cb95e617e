"""The learner's wait for its rollouts, with an Exchange that comes and goes."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from raycap.cluster import learner_loop, training_stages
from raycap.cluster.learner_loop import _take
from raycap.errors import WorkFailed
from raycap.train.group import Alone

GONE = ray.exceptions.ActorUnavailableError("away", None)


class Exchanges:
    """What one `take` after the other brings; how often the learner introduced itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *brings: Any) -> None:
        self.brings, self.introduced, self.rested = list(brings), 0, 0
        self.take = SimpleNamespace(remote=lambda *asked: None)
        monkeypatch.setattr(learner_loop, "answer", self.answer)
        monkeypatch.setattr(learner_loop, "_introduce", self.introduce)

    def answer(self, call: Any) -> Any:
        time.sleep(0.05)
        brought = self.brings.pop(0) if len(self.brings) > 1 else self.brings[0]
        if isinstance(brought, Exception):
            raise brought
        return brought

    def introduce(self, *given: Any) -> bool:
        self.introduced += 1
        return True

    def rest(self) -> None:
        self.rested += 1


def taken(exchanges: Exchanges, stall_timeout_s: float) -> list[Any]:
    config: Any = {"recipe": SimpleNamespace(cluster=SimpleNamespace(stall_timeout_s=stall_timeout_s)), "folder": ""}
    learner: Any = SimpleNamespace(step=7, incarnation=0)
    return _take(exchanges, learner, Alone(), config, None, True, exchanges.rest)


def test_an_exchange_that_is_lost_or_new_is_told_where_the_learner_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    exchanges = Exchanges(monkeypatch, "waiting", GONE, "unknown", ray.exceptions.GetTimeoutError("frozen"), ["a"])
    assert taken(exchanges, 60) == ["a"]
    assert (exchanges.introduced, exchanges.rested) == (3, 4)


def test_one_that_is_lost_again_and_again_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them is new, and none sees a stall."""
    exchanges = Exchanges(monkeypatch, GONE)
    told = r"stall_timeout_s = 0\.3: step 7 got no further for 0 s, in which the Exchange was lost \d+ times"
    with pytest.raises(WorkFailed, match=told):
        taken(exchanges, 0.3)
    assert exchanges.introduced > 1


def test_one_loss_may_take_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    exchanges = Exchanges(monkeypatch, "waiting", "waiting", GONE, ["a"])
    assert taken(exchanges, 0.01) == ["a"]


def test_an_exchange_that_is_lost_after_the_last_step_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(call: Any) -> Any:
        raise GONE

    monkeypatch.setattr(training_stages, "reached", lost)
    assert training_stages._last_words(None).keys() == {"lost"}
