"""What SCST remembers beside its weights: what looks at `select` decide (which captioner is kept, when to stop, how
weights move, what to warn of), and which images were set aside."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raycap.rewards.mix import Mix
from raycap.rewards.watch import HackingWatch
from raycap.train.validation import BestKeeper


class Steering:
    """The state that looks at `select` and steps leave behind; it goes into the checkpoint as one.

    `set_aside` are the images that no step learned from, because rollout workers died of them: {"step", "images"} each,
    the step as the log counts it.

    Args:
        mix: the learner's own.
        collapse_share: see `BestKeeper`.
        watch_looks: see `HackingWatch`.
    """

    def __init__(self, mix: Mix, collapse_share: float = 0.0, watch_looks: int = 3) -> None:
        self.keeper, self.mix, self.watch = BestKeeper(collapse_share), mix, HackingWatch(watch_looks)
        self.set_aside: list[dict[str, Any]] = []

    @property
    def has_looked(self) -> bool:
        """Whether `select` was ever looked at: a run that was stopped before its first step has done so."""
        return self.keeper.start is not None

    def observe(self, step: int, values: Mapping[str, Any]) -> None:
        """What a step's update measured."""
        self.watch.observe(values)
        if images := values.get("set_aside"):
            self.set_aside.append({"step": step, "images": list(images)})

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
        parts = {"keeper": self.keeper.state_dict(), "mix": self.mix.state_dict(), "watch": self.watch.state_dict()}
        return {**parts, "set_aside": self.set_aside}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.keeper.load_state_dict(state["keeper"])
        self.mix.load_state_dict(state["mix"])
        self.watch.load_state_dict(state["watch"])
        self.set_aside = list(state.get("set_aside", ()))  # older checkpoints know of none
