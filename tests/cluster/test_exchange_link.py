"""The learner's wait for its rollouts, with an Exchange that comes and goes."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from raycap.cluster import exchange_link, training_stages
from raycap.cluster.exchange_link import ExchangeLink, next_incarnation
from raycap.errors import WorkFailed
from raycap.train.group import Alone

GONE = ray.exceptions.ActorUnavailableError("away", None)


class Exchanges:
    """What one `take` after the other brings; how often the learner introduced itself."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *brings: Any) -> None:
        self.brings, self.introduced, self.rested = list(brings), 0, 0
        self.take = SimpleNamespace(remote=lambda *asked: None)
        monkeypatch.setattr(exchange_link, "answer", self.answer)
        monkeypatch.setattr(ExchangeLink, "_introduce", self.introduce)

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
    learner: Any = SimpleNamespace(step=7, incarnation=0)
    link = ExchangeLink(exchanges, learner, Alone(), Path(), stall_timeout_s)
    link._known = True
    return link.take(exchanges.rest)


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


class Known:
    """An Exchange that notes what it is told; what it answers to weights is `knows`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.told: list[Any] = []
        self.knows: Any = True
        for name in ("reset", "publish"):
            setattr(self, name, SimpleNamespace(remote=lambda *said, name=name: (name, *said[:2])))
        monkeypatch.setattr(exchange_link, "answer", self.answer)
        monkeypatch.setattr(exchange_link, "reached", self.answer)
        monkeypatch.setattr(ray, "put", lambda value: value)

    def answer(self, call: Any) -> Any:
        self.told.append(call())
        if isinstance(self.knows, Exception):
            raise self.knows
        return self.knows


def link_of(exchange: Any, folder: Path, group: Any = None, step: int = 4) -> ExchangeLink:
    weights: Any = SimpleNamespace(weights_id="weights")
    learner: Any = SimpleNamespace(step=step, incarnation=0, published=None, publish=lambda into: weights)
    return ExchangeLink(exchange, learner, group or Alone(), folder, 1.0)


def test_each_start_of_a_learner_is_another_incarnation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for start in range(3):
        exchange = Known(monkeypatch)
        link = link_of(exchange, tmp_path)
        link.open()
        assert link.learner.incarnation == start
        assert [told[0] for told in exchange.told] == ["reset", "publish"]
        assert exchange.told[0] == ("reset", start, 4)
        assert link._known
    (tmp_path / "incarnation").write_text("")
    with pytest.raises(WorkFailed, match=r"incarnation = .*holds no number.*write one into it"):
        next_incarnation(tmp_path)


def test_weights_for_an_exchange_that_is_away_are_given_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    exchange = Known(monkeypatch)
    link = link_of(exchange, tmp_path)
    link._known = True
    exchange.knows = GONE
    link.publish()
    assert not link._known, "the next `take` introduces the learner"
    exchange.knows = WorkFailed("planted")
    with pytest.raises(WorkFailed, match="planted"):
        link.publish()


def test_what_rank_0_meets_ends_all_ranks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_ranks: Any) -> None:
    exchange = Known(monkeypatch)
    exchange.knows = WorkFailed("planted")

    def publish(group: Any) -> str:
        with pytest.raises(WorkFailed, match="planted"):
            link_of(exchange, tmp_path, group).publish()
        return "raised"

    assert on_ranks(2, publish) == ["raised"] * 2
    assert len(exchange.told) == 1
