"""Notices that a node will be taken away: each is told once, on all ranks at the same time, with a checkpoint."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytest

from raycap.cluster import preemption, training_stages
from raycap.cluster.preemption import ASK_EVERY_S, Notices
from raycap.cluster.training_stages import mle_stage
from raycap.train.group import Alone
from raycap.train.journal import FolderJournal
from tests.train.conftest import on_ranks

__all__ = ["on_ranks"]


@dataclass
class Notice:
    """As Ray Train gives them (`ray.train.PreemptionInfo`)."""

    preempted_node_ids: list[str]
    preempted_ranks: list[int]
    deadline_ms: int | None = None


class Clock:
    """Goes on by itself at every look."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def test_a_notice_is_told_once_and_another_node_s_again() -> None:
    answers = [
        None,
        Notice(["a"], [0], int(1000 * (time.time() + 119.5))),
        Notice(["a"], [0], int(1000 * (time.time() + 100))),
        Notice(["a", "b"], [0, 1]),
        Notice(["a", "b"], [0, 1]),
        None,
    ]
    notices = Notices(Alone(), iter(answers).__next__, Clock(ASK_EVERY_S + 1))
    said = [notices.fresh() for _ in answers]
    assert said[1].startswith("the node of rank 0 will be taken away in 11")
    assert said[3] == "the node of rank 0, 1 will be taken away"
    assert [bool(each) for each in said] == [False, True, False, True, False, False]


def test_ray_is_not_asked_more_often_than_it_looks() -> None:
    asked = []
    notices = Notices(Alone(), lambda: asked.append(1), Clock(ASK_EVERY_S / 10))
    for _ in range(100):
        notices.fresh()
    assert 8 <= len(asked) <= 11


def test_the_first_rank_s_clock_says_when_all_ask(on_ranks: Any) -> None:
    """Asking waits for all ranks: one that asked by its own clock would wait alone."""

    def work(group: Any) -> list[int]:
        asked: list[int] = []
        clock = Clock(ASK_EVERY_S / 4 if group.rank == 0 else ASK_EVERY_S / (2 + group.rank))
        notices = Notices(group, lambda: asked.append(step), clock)
        for step in range(20):  # noqa: B007 - read by the lambda
            notices.fresh()
        return asked

    first, *others = on_ranks(3, work)
    assert len(first) > 2
    assert all(other == first for other in others)


def test_mle_writes_a_checkpoint_and_goes_on(
    tiny_run: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At a step at which none was due; the notice stands until the end."""
    monkeypatch.setattr(
        training_stages, "run_train_job", lambda loop, config, cluster, folder: loop({**config, "watched": True})
    )
    monkeypatch.setattr(training_stages, "training_group", lambda *_: Alone())
    monkeypatch.setattr(preemption, "ASK_EVERY_S", 0.0)
    monkeypatch.setattr(preemption, "_ask_ray_train", lambda: Notice(["a"], [0]))
    saved: list[int] = []
    plain = FolderJournal.save

    def save(self: FolderJournal, step: int, *rest: Any) -> None:
        saved.append(step)
        plain(self, step, *rest)

    monkeypatch.setattr(FolderJournal, "save", save)
    run = tiny_run("leaving", mle={"epochs": 2, "batch_size": 8, "micro_batch": 10})
    mle_stage(run, 0)
    assert saved == [1, 2, 4]
    said = capsys.readouterr().out
    assert said.count("the node of rank 0 will be taken away; checkpoint of step 1 written, training goes on") == 1


def test_it_is_what_ray_train_gives() -> None:
    """The words of ray 2.60; renamed, nobody would hear of a notice."""
    from ray.train import PreemptionInfo, get_preemption_info

    assert callable(get_preemption_info)
    info = PreemptionInfo(deadline_ms=None, preempted_node_to_ranks={"b": [1], "a": [0]})
    assert preemption._said(info) == "the node of rank 0, 1 will be taken away"
    assert info.preempted_node_ids == ["a", "b"]
