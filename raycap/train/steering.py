"""What a look at `select` decides in SCST: which captioner is kept, when to stop, how weights move, what to warn of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raycap.rewards.mix import Mix
from raycap.rewards.watch import HackingWatch
from raycap.train.validation import BestKeeper


class Steering:
    """The state that looks at `select` leave behind; it goes into the checkpoint as one.

    Args:
        mix: the learner's own.
        collapse_share: see `BestKeeper`.
        watch_looks: see `HackingWatch`.
    """

    def __init__(self, mix: Mix, collapse_share: float = 0.0, watch_looks: int = 3) -> None:
        self.keeper, self.mix, self.watch = BestKeeper(collapse_share), mix, HackingWatch(watch_looks)

    def look(self, step: int, figures: Mapping[str, float]) -> tuple[bool, dict[str, Any]]:
        """Figures of the greedy captions of `select` at a step: whether they are the best, and what goes into the log.

        Raises:
            Collapsed: see `BestKeeper.look`.
        """
        best = self.keeper.look(figures["select_cider"], step)
        record: dict[str, Any] = {**figures, "best": best}
        if switched := self.mix.look(step, figures):
            record["weights_switched"] = switched
        if warnings := self.watch.look(figures):
            record["warning"] = "; ".join(warnings)
        return best, record

    def state_dict(self) -> dict[str, Any]:
        return {"keeper": self.keeper.state_dict(), "mix": self.mix.state_dict(), "watch": self.watch.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.keeper.load_state_dict(state["keeper"])
        self.mix.load_state_dict(state["mix"])
        self.watch.load_state_dict(state["watch"])
