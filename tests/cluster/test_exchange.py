"""The Exchange as plain coroutines: states of a lease, identity of weights, losses, time limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raycap.cluster.exchange import Exchange
from raycap.errors import RewardError, WorkFailed
from raycap.train.prompts import PromptSchedule
from raycap.types import ComponentScores, Generation, Lease, Rollouts, StepPart, WeightsId

IDS = [f"i{n}" for n in range(8)]


class Clock:
    """Time that passes when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def exchange(
    lag: int = 0, timeout_s: float = 60.0, quarantine_after: int = 3, steps: int = 10, clock: Clock | None = None
) -> Exchange:
    schedule = PromptSchedule(IDS, batch_size=4, lease_size=2, seed=0)
    return Exchange(schedule, total_steps=steps, max_policy_lag=lag, lease_timeout_s=timeout_s,
                    quarantine_after=quarantine_after, **({"clock": clock} if clock else {}))  # fmt: skip


def rollouts(lease: Lease, weights: WeightsId) -> Rollouts:
    count = len(lease.prompts)
    empty = np.zeros((count, 1))
    generation = Generation(
        tokens=empty.astype(np.int64), lengths=np.ones(count, np.int64), behavior_logprobs=empty.astype(np.float32),
        finished=np.ones(count, bool), captions=("a",) * count, greedy_captions=("a",) * count,
        greedy_finished=np.ones(count, bool), num_samples=1,
    )  # fmt: skip
    scores = {"cider": ComponentScores(empty.astype(np.float32), np.zeros(count, np.float32))}
    return Rollouts(lease, weights, generation, scores)


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(coroutine, 20))


async def deliver_both(hub: Exchange, weights: WeightsId) -> None:
    """Both leases of an open step, by a worker each."""
    for n in range(2):
        lease = (await hub.lease(f"w{n}", None))["lease"]
        assert await hub.deliver(f"w{n}", rollouts(lease, weights))


async def started(hub: Exchange, version: int = 0, incarnation: int = 0, step: int = 0) -> WeightsId:
    await hub.reset(incarnation, step)
    weights = WeightsId(incarnation, version)
    await hub.publish(weights, ["ref"])
    return weights


async def another(hub: Exchange, worker: str) -> Lease:
    """One more lease for a worker that keeps what it has."""
    held = [slot.lease.id(hub._incarnation) for slot in hub._slots.values() if slot.holder == worker]
    return (await hub.lease(worker, None, held))["lease"]


async def stalled(hub: Exchange, step: int = 0, timeout_s: float = 60.0) -> str:
    """What the learner hears of a step that it has waited for, and still does; empty where it has to wait on."""
    try:
        assert await hub.take(step, 0, 1, timeout_s, wait_s=0.0) == "waiting"
    except WorkFailed as error:
        return str(error)
    return ""


def test_prompts_come_back_in_their_order_whatever_the_order_of_arrival() -> None:
    async def scenario() -> StepPart:
        hub = exchange()
        weights = await started(hub)
        leases = [(await hub.lease(f"w{n}", None))["lease"] for n in range(2)]
        for n in (1, 0):
            assert await hub.deliver(f"w{n}", rollouts(leases[n], weights))
        return await hub.take(0, 0, 1, 5)

    taken = run(scenario())
    assert [r.lease.number for r in taken.rollouts] == [0, 1]
    asked = [p.image_id for p in PromptSchedule(IDS, batch_size=4, lease_size=2, seed=0).prompts(0)]
    assert [i for r in taken.rollouts for i in r.lease.image_ids] == asked
    assert taken.set_aside == ()


def test_at_lag_0_the_next_step_waits_for_the_next_version() -> None:
    async def scenario() -> None:
        hub = exchange()
        weights = await started(hub)
        await deliver_both(hub, weights)
        await hub.take(0, 0, 1, 5)
        assert (await hub.lease("w2", None, wait_s=0.05))["lease"] is None
        await hub.publish(WeightsId(0, 1), ["ref1"])
        answer = await hub.lease("w2", WeightsId(0, 0))
        assert answer["lease"].step == 1
        assert answer["weights"] == ["ref1"]

    run(scenario())


def test_at_lag_1_one_step_more_is_open() -> None:
    async def scenario() -> list[int]:
        hub = exchange(lag=1)
        await started(hub)
        return [(await hub.lease(f"w{n}", None))["lease"].step for n in range(4)]

    assert run(scenario()) == [0, 0, 1, 1]


def test_weights_travel_only_when_they_moved() -> None:
    async def scenario() -> None:
        hub = exchange()
        weights = await started(hub)
        assert (await hub.lease("w", weights))["weights"] is None
        assert (await hub.lease("w", None))["weights"] == ["ref"]

    run(scenario())


def test_a_lost_workers_lease_is_pending_again_as_another_attempt() -> None:
    async def scenario() -> None:
        hub = exchange()
        weights = await started(hub)
        first = (await hub.lease("dead", None))["lease"]
        await hub.worker_lost("dead")
        again = (await hub.lease("alive", None))["lease"]
        assert (again.number, again.attempt) == (first.number, first.attempt + 1)
        assert again.prompts == first.prompts
        assert not await hub.deliver("dead", rollouts(first, weights))
        assert hub.counts["dropped_late"] == 1
        assert await hub.deliver("alive", rollouts(again, weights))

    run(scenario())


def test_a_lease_whose_worker_generates_for_too_long_is_redone_and_the_straggler_is_recognised() -> None:
    async def scenario() -> None:
        clock = Clock()
        hub = exchange(timeout_s=60, clock=clock)
        weights = await started(hub)
        first = (await hub.lease("slow", None))["lease"]
        clock.now += 60
        assert (await hub.lease("other", None))["lease"].number != first.number, "not yet"
        clock.now += 1
        again = (await hub.lease("another", None))["lease"]
        assert (again.number, again.attempt) == (first.number, 1)
        assert not await hub.doing("slow", first.id(0), "waits for rewards: clip"), "it need not have it scored"
        assert not await hub.deliver("slow", rollouts(first, weights))
        assert hub.counts["leases_expired"] == 1

    run(scenario())


def test_a_lease_that_waits_for_rewards_expires_with_its_worker_and_not_before() -> None:
    """A queue at the rewards may be long; a worker that is cut off says nothing any more."""

    async def scenario() -> None:
        clock = Clock()
        hub = exchange(timeout_s=60, clock=clock)
        weights = await started(hub)
        lease = (await hub.lease("w0", None))["lease"]
        await hub.deliver("w1", rollouts((await hub.lease("w1", None))["lease"], weights))
        for _ in range(200):
            clock.now += 5
            assert await hub.doing("w0", lease.id(0), "waits for rewards: clip")
            assert (await hub.lease("w1", None, wait_s=0))["lease"] is None
        clock.now += 60
        assert (await hub.lease("w1", None, wait_s=0))["lease"] is None
        clock.now += 1
        assert (await hub.lease("w1", None))["lease"].attempt == 1
        assert hub.counts["leases_expired"] == 1

    run(scenario())


def test_a_lease_that_kills_its_workers_is_quarantined_and_named() -> None:
    async def scenario() -> None:
        hub = exchange(quarantine_after=2)
        weights = await started(hub)
        poison = (await hub.lease("w0", None))["lease"]
        await hub.worker_lost("w0")
        assert (await hub.lease("w1", None))["lease"].number == poison.number
        await hub.worker_lost("w1")
        good = (await hub.lease("w2", None))["lease"]
        assert good.number != poison.number
        await hub.deliver("w2", rollouts(good, weights))
        taken = await hub.take(0, 0, 1, 5)
        assert [r.lease.number for r in taken.rollouts] == [good.number]
        assert taken.set_aside == (poison.number,)
        status = await hub.status()
        assert status["counts"]["quarantined"] == 1
        assert status["quarantined"][0]["images"] == poison.image_ids

    run(scenario())


def test_leases_that_always_take_too_long_end_the_run_and_are_not_set_aside() -> None:
    """Nobody died of them: a step without its images would be a wrong number, and a hang no answer."""

    async def scenario() -> None:
        clock = Clock()
        hub = exchange(timeout_s=60.0, quarantine_after=2, clock=clock)
        await started(hub)
        for worker in ("w0", "w1"):
            assert (await hub.lease(worker, None))["lease"].number == 0
            clock.now += 61
        told = (
            r"lease_timeout_s = 60\.0: a lease of step 0 took longer than that, 2 times over; the last time w1, "
            r"which holds lease 0/0 since 61 s ago, generates \(for 61 s\) \(raise it"
        )
        with pytest.raises(WorkFailed, match=told):
            await hub.take(0, 0, 1, 5)
        assert hub.counts["quarantined"] == 0

    run(scenario())


def test_an_expired_lease_does_not_count_as_a_death() -> None:
    async def scenario() -> None:
        clock = Clock()
        hub = exchange(timeout_s=60, quarantine_after=2, clock=clock)
        weights = await started(hub)
        await hub.lease("w0", None)
        clock.now += 61
        again = (await hub.lease("w1", None))["lease"]
        assert again.number == 0
        await hub.worker_lost("w1")
        third = (await hub.lease("w2", None))["lease"]
        assert (third.number, third.attempt) == (0, 2)
        assert await hub.deliver("w2", rollouts(third, weights))
        assert hub.counts["quarantined"] == 0

    run(scenario())


def test_a_step_that_lost_all_its_leases_is_no_step() -> None:
    async def scenario() -> None:
        hub = exchange(quarantine_after=1)
        await started(hub)
        for worker in ("w0", "w1"):
            await hub.lease(worker, None)
            await hub.worker_lost(worker)
        with pytest.raises(WorkFailed, match=r"step = 0: every lease of it was set aside"):
            await hub.take(0, 0, 1, 5)

    run(scenario())


def test_what_a_worker_could_not_do_is_told_to_a_learner_that_starts_later() -> None:
    async def scenario() -> None:
        hub = exchange()
        await hub.fail(RewardError("cannot be read", key="checkpoint"))
        await started(hub)
        with pytest.raises(RewardError, match="cannot be read"):
            await hub.take(0, 0, 1, 5)

    run(scenario())


def test_another_incarnation_is_dropped() -> None:
    async def scenario() -> None:
        hub = exchange()
        old = await started(hub)
        lease = (await hub.lease("w", None))["lease"]
        await started(hub, version=0, incarnation=1)
        assert not await hub.deliver("w", rollouts(lease, old))
        assert hub.counts["dropped_incarnation"] == 1
        await hub.publish(WeightsId(0, 5), ["old"])
        assert hub.counts["dropped_weights"] == 1

    run(scenario())


def test_nothing_is_leased_before_the_restarted_learner_has_published() -> None:
    async def scenario() -> None:
        hub = exchange()
        await started(hub)
        await hub.reset(1, 3)
        assert (await hub.lease("w", None, wait_s=0.05))["lease"] is None
        await hub.publish(WeightsId(1, 3), ["ref"])
        assert (await hub.lease("w", None))["lease"].step == 3

    run(scenario())


def test_ranks_share_a_step_and_together_hold_every_prompt_once() -> None:
    async def scenario() -> None:
        hub = exchange()
        weights = await started(hub)
        await deliver_both(hub, weights)
        parts = [await hub.take(0, rank, 2, 5) for rank in range(2)]
        ids = [i for part in parts for r in part.rollouts for i in r.lease.image_ids]
        assert sorted(ids) == sorted(p.image_id for p in hub.schedule.prompts(0))

    run(scenario())


def test_a_lease_set_aside_costs_its_rank_nothing_else() -> None:
    """Rank 0 takes first: rank 1, all of whose leases were set aside, must still find its own part of the step."""

    async def scenario() -> None:
        hub = exchange(quarantine_after=1)
        weights = await started(hub)
        good = (await hub.lease("w0", None))["lease"]
        bad = (await hub.lease("w1", None))["lease"]
        assert (good.number, bad.number) == (0, 1)
        await hub.worker_lost("w1")
        await hub.deliver("w0", rollouts(good, weights))
        first = await hub.take(0, 0, 2, 5)
        assert ([r.lease.number for r in first.rollouts], first.set_aside) == ([0], ())
        assert await hub.take(0, 1, 2, 0.2) == StepPart((), (1,))
        await hub.publish(WeightsId(0, 1), ["next"])
        assert (await hub.lease("w0", None))["lease"].step == 1

    run(scenario())


def test_a_restarted_rank_is_not_given_the_old_incarnations_rollouts() -> None:
    async def scenario() -> None:
        hub = exchange()
        weights = await started(hub)
        await deliver_both(hub, weights)
        with pytest.raises(WorkFailed, match="step 0 got no further"):
            await hub.take(0, 1, 2, 0.1, 1)
        assert len((await hub.take(0, 1, 2, 5, 0)).rollouts) == 1

    run(scenario())


def test_a_reported_failure_ends_the_learners_wait_and_sends_workers_home() -> None:
    async def scenario() -> None:
        hub = exchange()
        await started(hub)
        waiting = asyncio.create_task(hub.take(0, 0, 1, 30))
        await asyncio.sleep(0.05)
        await hub.fail(RewardError("returned nan", key="rewards.cider"))
        with pytest.raises(RewardError, match=r"rewards\.cider"):
            await waiting
        assert (await hub.lease("w", None))["closed"]

    run(scenario())


def test_a_stall_says_who_waits_for_what() -> None:
    async def scenario() -> None:
        hub = exchange()
        await started(hub)
        with pytest.raises(WorkFailed, match="pending"):
            await hub.take(0, 0, 1, 0.1)

    run(scenario())


def test_a_stall_names_the_worker_and_what_it_is_at_for_how_long() -> None:
    """The seconds are those since it began, however often it says so."""

    async def scenario() -> None:
        clock = Clock()
        hub = exchange(timeout_s=600, clock=clock)
        await started(hub)
        held = (await hub.lease("w0", None))["lease"].id(0)
        assert await stalled(hub, timeout_s=1800) == ""
        clock.now += 10
        assert await hub.doing("w0", held, "waits for rewards: cider, clip")
        clock.now += 5
        assert not await hub.doing("impostor", held, "does nothing")
        for _ in range(358):
            assert await hub.doing("w0", held, "waits for rewards: clip")
            clock.now += 5
        assert await hub.lease("w1", None, wait_s=0)
        assert await stalled(hub, timeout_s=1800) == (
            "cluster.stall_timeout_s = 1800: step 0 got no further for so long: w0, which holds lease 0/0 since 1805 s "
            "ago, waits for rewards: clip (for 1790 s); w1, which holds lease 0/1 since 0 s ago, generates (for 0 s) "
            "(raise it where that is slow and not stuck)"
        )
        clock.now += 40
        assert "waits for rewards: clip (for 1830 s, last heard 45 s ago)" in await stalled(hub, timeout_s=1800)

    run(scenario())


def test_what_a_worker_says_of_a_lease_of_another_incarnation_is_not_heard() -> None:
    """After a restart of the learner it holds the lease of the same number and attempt again."""

    async def scenario() -> None:
        hub = exchange(quarantine_after=1)
        old = await started(hub)
        before = (await hub.lease("w", None))["lease"]
        now = await started(hub, incarnation=1)
        again = (await hub.lease("w", None, [before.id(0)]))["lease"]
        assert again == before
        assert not await hub.doing("w", before.id(0), "waits for rewards: clip")
        await hub.give_back("w", before.id(0), "of the start before")
        await hub.weights_lost("w", before.id(0), old)
        assert hub.counts["leases_redone"] == 0
        await hub.worker_lost("w")
        assert [each["images"] for each in hub.quarantined] == [before.image_ids], "it generated the new one"
        assert (await hub.lease("v", now))["lease"].number == 1

    run(scenario())


def test_a_lease_given_out_again_is_not_taken_for_the_one_of_the_incarnation_before() -> None:
    """The answer of the second time was lost, and the worker holds the first one still."""

    async def scenario() -> None:
        hub = exchange()
        await started(hub)
        before = (await hub.lease("w", None))["lease"]
        await started(hub, incarnation=1)
        lost = (await hub.lease("w", None, [before.id(0)]))["lease"]
        again = (await hub.lease("w", None, [before.id(0)]))["lease"]
        assert (again.number, again.attempt) == (lost.number, 1)

    run(scenario())


def test_leases_that_go_round_are_no_progress() -> None:
    """Given out, given back, given out again: without the limit on it a run would never say that it is stuck."""

    async def scenario() -> None:
        hub = exchange(quarantine_after=1000)
        await started(hub)

        async def shuffle() -> None:
            while True:
                lease = (await hub.lease("w", None))["lease"]
                await hub.give_back("w", lease.id(0), "no weights")
                await asyncio.sleep(0.01)

        shuffling = asyncio.create_task(shuffle())
        try:
            with pytest.raises(WorkFailed, match="got no further"):
                await hub.take(0, 0, 1, 0.3)
        finally:
            shuffling.cancel()

    run(scenario())


def test_what_is_given_back_again_and_again_ends_the_run() -> None:
    async def scenario() -> None:
        hub = exchange(quarantine_after=2)
        await started(hub)
        for _ in range(2):
            lease = (await hub.lease("w", None))["lease"]
            await hub.give_back("w", lease.id(0), "its weights could not be had")
            await hub.give_back("w", lease.id(0), "said twice")
        with pytest.raises(WorkFailed, match="given back 2 times: its weights could not be had"):
            await hub.take(0, 0, 1, 5)

    run(scenario())


def test_time_in_which_the_learner_learned_is_no_stall() -> None:
    async def scenario() -> None:
        clock = Clock()
        hub = exchange(lag=1, clock=clock)
        weights = await started(hub)
        await deliver_both(hub, weights)
        await hub.take(0, 0, 1, 60)
        clock.now += 100  # it learns
        assert await stalled(hub, step=1) == ""
        clock.now += 50
        await deliver_both(hub, weights)
        clock.now += 50
        assert len((await hub.take(1, 0, 1, 60)).rollouts) == 2

    run(scenario())


def test_a_worker_that_was_lost_is_given_nothing_any_more() -> None:
    """Its call may have been waiting here while it died."""

    async def scenario() -> None:
        hub = exchange()
        await started(hub)
        leases = [(await hub.lease(f"w{n}", None))["lease"] for n in range(2)]
        waiting = asyncio.create_task(hub.lease("dead", None, wait_s=5))
        await asyncio.sleep(0.05)
        await hub.worker_lost("dead")
        await hub.worker_lost("w0")
        assert await waiting == {"closed": True}
        again = (await hub.lease("w2", None))["lease"]
        assert again.prompts == leases[0].prompts
        assert await hub.lease("w0", None) == {"closed": True}

    run(scenario())


def test_a_lease_whose_answer_was_lost_is_given_again() -> None:
    async def scenario() -> None:
        hub = exchange()
        weights = await started(hub)
        lost = (await hub.lease("w", None))["lease"]
        again = (await hub.lease("w", None, []))["lease"]
        assert (again.number, again.attempt) == (lost.number, 1)
        other = (await hub.lease("w", None, [again.id(0)]))["lease"]
        assert other.number != again.number
        assert await hub.deliver("w", rollouts(again, weights))

    run(scenario())


def test_only_what_a_dead_worker_generated_is_suspected() -> None:
    """It held two: one waited for its rewards, and is not set aside however often the other one kills."""

    async def scenario() -> None:
        hub = exchange(quarantine_after=2)
        weights = await started(hub)
        for worker in ("w0", "w1"):
            innocent = await another(hub, worker)
            assert innocent.number == 0
            await hub.doing(worker, innocent.id(0), "waits for rewards: cider")
            assert (await another(hub, worker)).number == 1
            await hub.worker_lost(worker)
        good = await another(hub, "w2")
        assert good.number == 0
        assert (await hub.lease("w3", None, wait_s=0.05))["lease"] is None
        assert await hub.deliver("w2", rollouts(good, weights))
        assert [r.lease.number for r in (await hub.take(0, 0, 1, 5)).rollouts] == [0]
        assert [q["images"] for q in hub.quarantined] == [hub.schedule.leases(0)[1].image_ids]

    run(scenario())


def test_a_step_may_be_asked_for_again_until_it_was_learned() -> None:
    """An answer may be lost on its way to the learner."""

    async def scenario() -> None:
        hub = exchange()
        weights = await started(hub)
        await deliver_both(hub, weights)
        first, again = [await hub.take(0, 0, 1, 5, 0) for _ in range(2)]
        assert [r.lease for r in first.rollouts] == [r.lease for r in again.rollouts]
        assert len(first.rollouts) == 2
        await hub.publish(WeightsId(0, 1), ["next"])
        assert {key[0] for key in hub._slots} == {1}

    run(scenario())


def test_it_answers_in_between_and_a_new_one_says_that_it_is_new() -> None:
    async def scenario() -> None:
        hub = exchange()
        assert await hub.take(3, 0, 1, 5, incarnation=2) == "unknown"
        assert not await hub.publish(WeightsId(2, 3), ["ref"])
        assert (await hub.lease("w", None, wait_s=0.05))["lease"] is None
        await started(hub, version=3, incarnation=3, step=3)
        assert await hub.take(3, 0, 1, 5, incarnation=3, wait_s=0.05) == "waiting"
        assert (await hub.lease("w", WeightsId(2, 3)))["weights"] == ["ref"]

    run(scenario())


FAULT = r"exchange: .*{}.* \(this is a fault of raycap's; please report it\)"


CHANGES: dict[str, Callable[[Exchange, Lease, WeightsId], Coroutine[Any, Any, Any]]] = {
    "lease": lambda hub, lease, weights: hub.lease("v", None),
    "deliver": lambda hub, lease, weights: hub.deliver("w", rollouts(lease, weights)),
    "give back": lambda hub, lease, weights: hub.give_back("w", lease.id(0), "it could not"),
    "lose": lambda hub, lease, weights: hub.worker_lost("w"),
    "take": lambda hub, lease, weights: hub.take(0, 0, 1, 5),
    "weights lost": lambda hub, lease, weights: hub.weights_lost("w", lease.id(0), weights),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_invariant_checker_sees_a_lost_prompt_at_every_change_and_ends_the_run(change: Any) -> None:
    async def scenario() -> None:
        hub = exchange(lag=1)
        weights = await started(hub)
        await deliver_both(hub, weights)
        lease = (await hub.lease("w", None))["lease"]
        hub._slots.popitem()
        with pytest.raises(WorkFailed, match=FAULT.format("step 1 has 1 leases of 2")):
            await change(hub, lease, weights)
        with pytest.raises(WorkFailed, match="leases of"):
            await hub.take(0, 0, 1, 5)

    run(scenario())


def test_an_expired_lease_is_a_change_like_any_other() -> None:
    async def scenario() -> None:
        clock = Clock()
        hub = exchange(timeout_s=60, clock=clock)
        await started(hub)
        await hub.lease("w", None)
        hub._slots.popitem()
        clock.now += 61
        with pytest.raises(WorkFailed, match=FAULT.format("step 0 has 1 leases of 2")):
            await hub.take(0, 0, 1, 600, wait_s=0.0)

    run(scenario())


def test_what_is_scored_and_leased_at_once_is_seen() -> None:
    async def scenario() -> None:
        hub = exchange()
        await deliver_both(hub, await started(hub))
        hub._slots[0, 1].state = "leased"
        with pytest.raises(WorkFailed, match=FAULT.format("lease 0/1 is leased, its holder '' and scored")):
            await hub.lease("w", None)

    run(scenario())


def test_no_lease_is_forgotten_that_the_learner_has_not_taken() -> None:
    """Whatever it learned from, it was not that."""

    async def scenario() -> None:
        hub = exchange()
        weights = await started(hub)
        await deliver_both(hub, weights)
        await hub.take(0, 0, 2, 5)  # the other rank never asked
        with pytest.raises(WorkFailed, match=FAULT.format("lease 0/1 is ready, and the learner has left its step")):
            await hub.publish(WeightsId(0, 1), ["next"])
        with pytest.raises(WorkFailed, match="lease 0/1 is ready"):
            await hub.take(1, 0, 1, 5)

    run(scenario())


@pytest.mark.parametrize("version", [-1, 2])
def test_a_lease_made_with_weights_that_it_was_not_given_with_is_a_fault(version: int) -> None:
    """A lease is given out with its weights: those of another version are too old, or newer than its step."""

    async def scenario() -> None:
        hub = exchange(lag=1)
        weights = await started(hub)
        leases = [await another(hub, "w") for _ in range(4)]
        assert await hub.deliver("w", rollouts(leases[2], weights)), "one version behind, which is within the lag"
        other = replace(rollouts(leases[3], weights), weights_id=WeightsId(0, version))
        told = FAULT.format(f"lease 1/1 was generated with version {version}, at a lag of 1")
        with pytest.raises(WorkFailed, match=told):
            await hub.deliver("w", other)
        with pytest.raises(WorkFailed, match=told):
            await hub.take(0, 0, 1, 5)

    run(scenario())


def test_a_reset_that_was_sent_before_the_last_one_is_not_obeyed() -> None:
    """The learner that sent it was gone by the time that it arrived."""

    async def scenario() -> None:
        hub = exchange()
        weights = await started(hub, incarnation=2, version=4, step=4)
        await hub.reset(1, 3)
        assert hub.counts["dropped_resets"] == 1
        answer = await hub.lease("w", None)
        assert (answer["lease"].step, answer["weights_id"]) == (4, weights)
        await hub.reset(2, 4)  # said twice: its answer had been lost
        assert (await hub.lease("w", None, wait_s=0))["lease"] is None

    run(scenario())


def test_counts_say_from_which_start_of_the_learner_on_they_count() -> None:
    """In a new Exchange they begin at nothing."""

    async def scenario() -> list[Any]:
        hub = exchange()
        found = [(await hub.status())["counted_from"]]
        for incarnation in (3, 4):
            await started(hub, incarnation=incarnation)
            found.append((await hub.status())["counted_from"])
        return found

    assert run(scenario()) == [None, 3, 3]


def test_weights_that_died_with_their_learner_are_given_to_nobody_else() -> None:
    """However often a worker asks, its lease is not blamed; a learner that still lives is told to publish again."""

    async def scenario() -> tuple[Any, Any, Any, dict[str, Any]]:
        hub = exchange(quarantine_after=1)
        weights = await started(hub)
        lease = (await hub.lease("w0", None))["lease"]
        await hub.weights_lost("w0", lease.id(0), weights)
        again = await hub.lease("w0", None, wait_s=0.1)
        taken = await hub.take(0, 0, 1, 5, 0, 0.1)
        renewed = await started(hub, incarnation=1)
        await hub.weights_lost("w1", lease.id(0), weights)  # late: of the learner before
        answer = await hub.lease("w0", None, wait_s=0.1)
        assert answer["weights_id"] == renewed
        assert answer["lease"].prompts == lease.prompts
        return again, taken, answer["weights"], await hub.status()

    again, taken, given, status = run(scenario())
    assert again == {"lease": None}
    assert taken == "unknown"
    assert given == ["ref"]
    assert status["counts"].get("quarantined", 0) == 0
    assert status["counts"]["leases_redone"] == 1


def test_a_worker_that_was_sent_home_is_not_its_lease_s_fault() -> None:
    async def scenario() -> dict[str, Any]:
        hub = exchange(quarantine_after=1)
        await started(hub)
        lease = (await hub.lease("w0", None))["lease"]
        await hub.worker_lost("w0", suspicious=False)
        assert (await hub.lease("w0", None)) == {"closed": True}, "a call of its that was on its way"
        again = (await hub.lease("w1", None))["lease"]
        assert (again.prompts, again.attempt) == (lease.prompts, lease.attempt + 1)
        return dict((await hub.status())["counts"])

    assert run(scenario()) == {"dropped_at_reset": 0, "leases_redone": 1, "workers_sent_home": 1}


def test_how_long_the_learner_has_been_silent() -> None:
    async def scenario() -> list[float | None]:
        clock = Clock()
        hub = exchange(clock=clock)
        found = [(await hub.status())["learner_silent_s"]]
        await started(hub)
        clock.now += 30
        found.append((await hub.status())["learner_silent_s"])
        await hub.take(0, 0, 1, 5, 0, 0.0)
        clock.now += 2
        found.append((await hub.status())["learner_silent_s"])
        return found

    assert run(scenario()) == [None, 30, 2]
