"""Actors that were there and lost their place. Ray starts them again where it finds room, and until then every call to
them fails at once; one that is there and busy answers late.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass
class _Watched:
    """`call` is the one that is out, `since` when its actor was first found away, `told` when that was last said."""

    name: str
    actor: Any
    call: Any = None
    since: float | None = None
    told: float = 0.0


class Absence:
    """Who is away, and for how long. Being constructed counts as away: the constructors of such actors are short.

    Args:
        actors: with their names, several of which may be the same. An actor that has never been there is not away.
        answered: whether a call to one has been answered (True), has failed because it is away (False), or is out
            (None). Ray's word when None.
        clock: seconds.
    """

    def __init__(
        self, actors: Sequence[tuple[str, Any]] = (), answered: Callable[[Any], bool | None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._watched = [_Watched(name, actor) for name, actor in actors]
        self._answered, self._clock = answered or _answered, clock

    def look(self) -> None:
        """Call all of them, and hear what became of the last call; to be called every few seconds, not more often."""
        for each in self._watched:
            heard = None if each.call is None else self._answered(each.call)
            if heard is not False:
                each.since = None
            elif each.since is None:
                each.since = each.told = self._clock()
            if each.call is None or heard is not None:
                each.call = each.actor.__ray_ready__.remote()

    def missing(self) -> dict[str, float]:
        """Names none of whose actors was there at the last look, and for how many seconds none has been."""
        now, waited = self._clock(), dict[str, list[float]]()
        for each in self._watched:
            waited.setdefault(each.name, []).append(0.0 if each.since is None else now - each.since)
        here = {each.name for each in self._watched if each.since is None}
        return {name: min(all_of_it) for name, all_of_it in waited.items() if name not in here}

    def untold(self, every_s: float) -> list[tuple[str, float]]:
        """Who is away, and has been for so long since that was last said; for how long in all. It counts as said."""
        now, found = self._clock(), list[tuple[str, float]]()
        for each in self._watched:
            if each.since is not None and now - each.told >= every_s:
                each.told = now
                found.append((each.name, now - each.since))
        return found


def _answered(call: Any) -> bool | None:
    import ray

    if not ray.wait([call], timeout=0)[0]:
        return None
    try:
        ray.get(call)
    except ray.exceptions.ActorUnavailableError:
        return False
    except ray.exceptions.RayError:  # it will not come back: who needs it meets that, and says so
        return True
    return True
