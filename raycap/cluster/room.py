"""Room in the cluster: waiting for it with words and an end, and keeping the learner's while others take theirs.

Rollout and reward actors are placed one by one, and the learner's ranks by Ray Train in a placement group of its own
(docs/architecture.md, "Who gets room first").
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raycap.errors import Stopped, WorkFailed

PATIENCE_S = 60.0
"""After so long without room it is said what is waited for, and again each time."""
_POLL_S = 1.0  # a signal is handled between two looks


def free_room() -> str:
    """What the cluster has that nobody uses, in words."""
    import ray

    there, free = ray.cluster_resources(), ray.available_resources()
    return ", ".join(f"{free.get(kind, 0.0):g} of {there.get(kind, 0.0):g} {kind}s" for kind in ("CPU", "GPU"))


class Patience:
    """Says each minute that something waits for room, and ends it.

    Args:
        limit_s: for how long.
        clock: seconds.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.limit_s, self._clock = limit_s, clock
        self._began = self._told = clock()

    def look(self, who: str) -> None:
        """To be called now and then.

        Args:
            who: waits; empty when nobody does, and the time begins anew.

        Raises:
            WorkFailed: it has waited for longer than `limit_s`.
        """
        now = self._clock()
        if not who:
            self._began = self._told = now
        elif now - self._began > self.limit_s:
            raise _no_room(who, self.limit_s)
        elif now - self._told >= PATIENCE_S:
            self._told = now
            print(f"{who} has waited {now - self._began:.0f} s to start; free are {free_room()}", flush=True)


def patiently(
    who: str, there: Callable[[float], bool], limit_s: float, look: Callable[[], None] = lambda: None
) -> None:
    """Wait until something has found room in the cluster and is there.

    Args:
        who: is waited for.
        there: waits for it so many seconds; whether it is there.
        look: called now and then; may raise, to wait no longer.

    Raises:
        WorkFailed: it is not after `limit_s`.
    """
    patience = Patience(limit_s)
    while not there(_POLL_S):
        look()
        patience.look(who)


def _no_room(who: str, limit_s: float) -> WorkFailed:
    return WorkFailed(f"{who} has not started; free are {free_room()}", key="cluster.stall_timeout_s", value=limit_s,
                      remedy="ask for less, or raise it where nodes are slow to come")  # fmt: skip


class Seat:
    """Room that is kept for the learner while reward actors take theirs: a placement group that nobody sits in.

    Without it, actors that are spread over the nodes leave half a GPU free on each, and a learner that wants a whole
    one waits for ever.

    Args:
        look: called now and then while it waits for room; may raise, to wait no longer.
    """

    def __init__(
        self, who: str, bundles: Sequence[Mapping[str, float]], limit_s: float, look: Callable[[], None] = lambda: None
    ) -> None:
        self.who, self.bundles, self.limit_s, self._look = who, [dict(bundle) for bundle in bundles], limit_s, look
        self._group: Any = None

    def __enter__(self) -> Seat:
        """
        Raises:
            WorkFailed: there is no room within `limit_s`.
        """
        from ray.util.placement_group import placement_group

        self._group = placement_group(self.bundles, strategy="PACK")
        try:
            patiently(self.who, self._group.wait, self.limit_s, self._look)
        except BaseException:
            self.free()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.free()

    def free(self) -> None:
        """Give the room up, for whom it was kept."""
        from ray.util.placement_group import remove_placement_group

        if self._group is not None:
            remove_placement_group(self._group)
            self._group = None


def unplaced_groups() -> bool:
    """Whether a placement group of this job finds no room. Once its seat is given up that is Ray Train's, of a learner
    that starts, or starts again."""
    import ray
    from ray.util.placement_group import placement_group_table

    job = ray.get_runtime_context().get_job_id()  # the end of the ids of all that it makes
    groups: dict[str, Any] = placement_group_table()
    return any(name.endswith(job) and group["state"] == "PENDING" for name, group in groups.items())


class LearnersRoom:
    """For how long the learner's worker group has found no room.

    Args:
        unplaced: whether it finds none now.
        clock: seconds.
    """

    def __init__(
        self, unplaced: Callable[[], bool] = unplaced_groups, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._unplaced, self._clock = unplaced, clock
        self._since: float | None = None
        self._placed = 0

    def waited_s(self) -> float:
        """0 when it does not wait, and has not at the look before: Ray Train gives its group up after a minute, and
        asks for another one."""
        now = self._clock()
        self._placed = 0 if self._unplaced() else self._placed + 1
        if self._placed > 1:
            self._since = None
        elif not self._placed and self._since is None:
            self._since = now
        return 0.0 if self._since is None else now - self._since


def watched_wait(
    room: LearnersRoom, limit_s: float, *, silent_s: Callable[[], float], stop: Callable[[], str],
    every_s: float = 5.0, clock: Callable[[], float] = time.monotonic,
) -> Callable[[], None]:  # fmt: skip
    """A look at a learner that may wait for room, to be called now and then: each minute it says that the learner does.

    Args:
        limit_s: longer is too long.
        silent_s: since when the learner has said nothing. One that speaks has its room, and somebody else waits.
        stop: why somebody wants the stage to stop, empty when nobody does; there is no learner that could hear it.

    Returns:
        The look. It raises Stopped while the learner waits, and WorkFailed when it has waited for too long.
    """
    looked, told = clock(), 0.0

    def look() -> None:
        nonlocal looked, told
        if clock() - looked < every_s:
            return
        waited, looked = min(room.waited_s(), silent_s()), clock()
        told = min(told, waited)
        if waited and (why := stop()):
            raise Stopped(f"stopped while the learner waited for room: {why}",
                          remedy="the same command goes on from its last checkpoint")  # fmt: skip
        if waited > limit_s:
            raise _no_room("the learner", limit_s)
        if waited - told >= PATIENCE_S:
            told = waited
            print(f"the learner has waited {waited:.0f} s to start; free are {free_room()}", flush=True)

    return look
