"""A learner's side of the Exchange: its rollouts come, its weights go, and an Exchange that was lost is told where the
learner stands. All ranks of the learner go through every call together."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from raycap.cluster.reaching import answer, away, reached, said
from raycap.errors import RaycapError, WorkFailed
from raycap.train.group import Group, first_does, of_first, together
from raycap.train.journal import writing
from raycap.train.learner import Learner
from raycap.types import StepPart
from raycap.whole_file import write_whole

TAKE_S = 2.0
"""How long a rank waits for its rollouts before it looks at what the others do."""


class ExchangeLink:
    """One rank's link.

    Args:
        exchange: handle of the actor.
        learner: of this rank; its incarnation is counted here.
        folder: of the stage.
        stall_timeout_s: how long a step may get no further.
    """

    def __init__(self, exchange: Any, learner: Learner, group: Group, folder: Path, stall_timeout_s: float) -> None:
        self.exchange, self.learner, self.group, self.folder = exchange, learner, group, folder
        self.stall_timeout_s = stall_timeout_s
        self._known = False  # by the Exchange: it has this learner's weights (rank 0 knows)

    def open(self) -> None:
        """Another start of the learner: the Exchange drops what was out, and gets the weights.

        Raises:
            RaycapError: on all ranks.
        """
        first_does(self.group, self._begin)
        self.learner.incarnation = int(of_first(self.group, [self.learner.incarnation])[0])

    def _begin(self) -> None:
        self.learner.incarnation = next_incarnation(self.folder)
        reached(lambda: self.exchange.reset.remote(self.learner.incarnation, self.learner.step))
        self._put()

    def publish(self) -> None:
        """Rank 0's weights, which let the next leases open.

        Raises:
            RaycapError: on all ranks, what the Exchange found wrong with itself.
        """
        first_does(self.group, self._put)

    def _put(self) -> None:
        """Put the weights once; the Exchange passes the reference on, where it is there and knows this learner.

        The reference's owner is this process: when it dies the object dies, and the restarted learner publishes anew.
        """
        import ray

        learner = self.learner
        learner.published = published = learner.publish(learner.published)  # the one before was copied by `put`
        weights = [ray.put(published)]
        try:
            self._known = bool(answer(lambda: self.exchange.publish.remote(published.weights_id, weights)))
        except ray.exceptions.RayError as error:
            self._known = False
            if not away(error):
                raise said(error) from None

    def take(self, rest: Callable[[], None]) -> StepPart:
        """This rank's part of the learner's step, once every rank has its own.

        Every few seconds all ranks look at each other: an error of any rank ends all, together; an Exchange that was
        lost is told where the learner stands, and the step is asked for again; nobody sits in a collective for as long
        as another waits.

        Args:
            rest: called at each of these looks, on all ranks.

        Raises:
            RaycapError: on all ranks: what the Exchange, or one of the ranks, found wrong.
        """
        error: RaycapError | None
        mine: StepPart | None = None
        since, losses = time.monotonic(), 0
        known = bool(of_first(self.group, [self._known])[0])
        while True:
            error, lost = None, not known
            if known and mine is None:
                try:
                    taken = self._ask()
                except RaycapError as raised:
                    error = raised
                else:
                    lost = taken == "unknown"
                    mine = None if isinstance(taken, str) else taken
            together(self.group, error)
            anywhere_lost, waiting = self.group.sum_values([float(lost), float(mine is None)])
            if anywhere_lost:
                mine = None  # of the Exchange before
                losses += 1
                together(self.group, self._lost_too_often(losses, time.monotonic() - since))
                known = self._introduce()
            elif not waiting:
                assert mine is not None
                return mine
            rest()

    def _ask(self) -> StepPart | str:
        """What the Exchange has for this rank; `unknown` also where it is away.

        Raises:
            RaycapError: what it found wrong.
        """
        import ray

        ask = (self.learner.step, self.group.rank, self.group.size, self.stall_timeout_s, self.learner.incarnation)
        try:
            taken: StepPart | str = answer(partial(self.exchange.take.remote, *ask, TAKE_S))
        except (ray.exceptions.RayError, RaycapError) as raised:
            if isinstance(cause := said(raised), RaycapError):
                raise cause from None
            if away(raised):
                return "unknown"
            raise
        return taken

    def _lost_too_often(self, times: int, for_s: float) -> RaycapError | None:
        """An Exchange that is lost again and again sees no stall, because each one is new."""
        if times == 1 or for_s <= self.stall_timeout_s:
            return None
        return WorkFailed(
            f"step {self.learner.step} got no further for {for_s:.0f} s, in which the Exchange was lost {times} times",
            key="cluster.stall_timeout_s", value=self.stall_timeout_s,
            remedy="look at the Exchange's log: the head may have too little memory",
        )  # fmt: skip

    def _introduce(self) -> bool:
        """To an Exchange that is new: what was out at the old one is dropped, and its step generated again.

        Returns:
            Whether it has the weights now.

        Raises:
            RaycapError: on all ranks, what it found wrong, or that it did not come back. Anything else, such as a
                storage that fails, is raised as it is where rank 0 met it.
        """
        import ray

        def again() -> None:
            print(f"the Exchange was lost; step {self.learner.step} is generated again", flush=True)
            try:
                self._begin()
            except ray.exceptions.RayError as error:
                if isinstance(cause := said(error), RaycapError):
                    raise cause from None
                raise WorkFailed(f"the Exchange did not come back: {error}"[:500], key="exchange",
                                 remedy="run the same command again") from error  # fmt: skip

        first_does(self.group, again)
        incarnation, known = of_first(self.group, [self.learner.incarnation, self._known])
        self.learner.incarnation = int(incarnation)
        return bool(known)

    def queue(self) -> dict[str, int]:
        """For the log of rank 0: leases by state, `workers` that were heard. Nothing where the Exchange is away."""
        import ray

        if self.group.rank:
            return {}
        try:
            status = answer(lambda: self.exchange.status.remote())
        except ray.exceptions.RayError as error:
            if not away(error):
                raise
            return {}
        found = {f"queue/{state}": status["states"].get(state, 0) for state in ("pending", "leased", "ready")}
        return found | {"workers": status["workers"]}


def next_incarnation(folder: Path) -> int:
    """Count the learner's starts in its stage's folder; the number of this one.

    Raises:
        WorkFailed: the disk is full, or the file holds no number.
    """
    file = folder / "incarnation"
    try:
        number = int(file.read_text()) + 1 if file.exists() else 0
    except ValueError as error:
        raise WorkFailed("holds no number, as a crash of the machine may leave it", key="incarnation", value=str(file),
                         remedy="write one into it that is larger than the learner's starts so far, such as 1000",
                         ) from error  # fmt: skip
    with writing(folder, "the learner's incarnation"):
        write_whole(file, str(number))
    return number
