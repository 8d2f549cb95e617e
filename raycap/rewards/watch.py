"""The reward-hacking watch: a component climbs while held-out captions get worse."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

FALL = 0.03  # of its value: what counts as the fall of a held-out figure that should rise
RISE = 0.02  # of its value: what counts as a component's climb
LENGTH = "select_length"
POINT = 0.01  # a share that should be low counts as worse from this on


class HackingWatch:
    """Says when a component climbs on training images while held-out captions get worse.

    (Our own; the symptom is that of Gao et al. 2023, fig. 1: the rewarded score rises, the one that counts falls.)

    Both are compared with `window` looks ago, so that the noise of one look says nothing; the length of captions is
    compared with the first look, so that a slow drift is seen as well. A climb: now − then > RISE · |then|; worse:
    then − now > FALL · |then|, for what should stay low now − then ≥ POINT.

    Held-out figures are those of the greedy captions of `select`: `select_cider` should rise, `select_bad_endings` and
    `select_repetition` should stay low, `select_length` should stay within a quarter of its first value. A component of
    weight 0 is held out too, from the reward: it should not fall while another one climbs.
    """

    def __init__(self, window: int = 3) -> None:
        self.window = window
        self._idle: set[str] = set()  # components of weight 0
        self._sums: dict[str, float] = {}
        self._counts: dict[str, int] = {}
        self._looks: list[dict[str, float]] = []
        self._said: set[str] = set()
        self._first_length: float | None = None

    def observe(self, values: Mapping[str, Any]) -> None:
        """The log values of one step."""
        for key, value in values.items():
            if key.startswith("reward/") and key.endswith("/sampled"):
                (self._idle.discard if values.get(_weight_of(key), 1.0) else self._idle.add)(key)
                self._sums[key] = self._sums.get(key, 0.0) + float(value)
                self._counts[key] = self._counts.get(key, 0) + 1

    def look(self, held_out: Mapping[str, float]) -> list[str]:
        """Figures of a look at `select`; what is to be said, each finding once until it is over."""
        means = {key: self._sums[key] / self._counts[key] for key in self._sums}
        self._sums, self._counts = {}, {}
        self._looks = [*self._looks, {**means, **held_out}][-(self.window + 1) :]
        if self._first_length is None:
            self._first_length = held_out.get(LENGTH)
        if len(self._looks) <= self.window:
            return []
        then, now = dict(self._looks[0]), self._looks[-1]
        if self._first_length is not None:
            then[LENGTH] = self._first_length
        rewarded = [key for key in means if key not in self._idle and key in then]
        climbing = [key for key in rewarded if now[key] - then[key] > RISE * max(abs(then[key]), 1e-6)]
        watched = [key for key in (*held_out, *sorted(self._idle)) if key in then and key in now]
        worse = [key for key in watched if _worse(key, then[key], now[key])]
        found = {f"{component} {figure}": (component, figure) for component in climbing for figure in worse}
        fresh = [key for key in found if key not in self._said]
        self._said = set(found)
        return [_sentence(*found[key], then, now, self.window) for key in fresh]

    def state_dict(self) -> dict[str, Any]:
        return {"looks": [dict(look) for look in self._looks], "said": sorted(self._said), "idle": sorted(self._idle),
                "first_length": self._first_length, "sums": dict(self._sums), "counts": dict(self._counts)}  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._looks, self._said = [dict(look) for look in state["looks"]], set(state["said"])
        self._idle = set(state["idle"])
        # states of raycap before it stopped between two looks have none
        self._sums, self._counts = dict(state.get("sums", {})), dict(state.get("counts", {}))
        # states of raycap before this figure was kept: the oldest look that they know
        oldest = self._looks[0].get(LENGTH) if self._looks else None
        self._first_length = state.get("first_length", oldest)


def _weight_of(key: str) -> str:
    return key.removesuffix("sampled") + "weight"


def _worse(figure: str, then: float, now: float) -> bool:
    if figure in ("select_bad_endings", "select_repetition"):
        return now - then >= POINT
    if figure == LENGTH:
        return abs(now - then) > 0.25 * then
    return then - now > FALL * abs(then)


def _sentence(component: str, figure: str, then: Mapping[str, float], now: Mapping[str, float], looks: int) -> str:
    name = component.split("/")[1]
    fallen = f"the unrewarded {figure.split('/')[1]}" if figure.startswith("reward/") else figure
    since = " since the first look" if figure == LENGTH else ""
    climb = f"{then[component]:.3f} to {now[component]:.3f}"
    return (f"over {looks} looks the reward {name} climbed from {climb} on training images "
            f"while {fallen} went from {then[figure]:.3f} to {now[figure]:.3f}{since}: it may be exploited, or the "
            f"images learned by heart; lower its weight, add a brake (length, repetition, bad_ending), or stop here "
            "(the best checkpoint is kept)")  # fmt: skip
