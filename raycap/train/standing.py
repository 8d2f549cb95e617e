"""Where training stands, as it is published, looked at and saved: whole, with plain names, whoever holds what."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from raycap.models.prefix import PrefixCaptioner
from raycap.train.optimizing import Average
from raycap.train.shards import gathered, whole


class Standing:
    """Captioner, averaged weights and optimizer. Where the ranks hold shards these are copies on rank 0, as old as the
    last `collect`, and nothing to other ranks; else they are the real ones.

    Args:
        learning: the captioner that learns, as the ranks hold it.
        shown: what others see of it (`Group.shown`).
    """

    def __init__(
        self, learning: PrefixCaptioner, shown: PrefixCaptioner, optimizer: torch.optim.Optimizer, average: Average
    ) -> None:
        self.captioner = shown
        self._optimizer, self._average = optimizer, average
        named = learning.named_parameters()
        self._shards = {name: p for name, p in named if p.requires_grad and isinstance(p, DTensor)}
        self._mine = shown is not learning
        self._state: dict[str, Any] = {}

    @torch.no_grad()
    def collect(self, *, state: bool = False) -> None:
        """Bring it up to date; all ranks must ask.

        Args:
            state: of averages and optimizer too, and not of the weights alone.
        """
        own = dict(self.captioner.named_parameters()) if self._mine else {}
        for name, shard in self._shards.items():
            full = whole(shard)
            if self._mine:
                own[name].copy_(full)
        if self._shards and state:
            self._state = gathered(self._now(), keep=self._mine)

    def state_dict(self) -> dict[str, Any]:
        return self._state if self._shards else self._now()

    def _now(self) -> dict[str, Any]:
        return {"optimizer": self._optimizer.state_dict(), "average": self._average.state_dict()}

    @contextmanager
    def averaged(self) -> Iterator[PrefixCaptioner]:
        """The captioner with the averaged weights, where captions can be made with it quickly."""
        if not self._shards:
            with self._average.applied():
                yield self.captioner
        elif self._mine:
            self.captioner.to(next(iter(self._shards.values())).device)
            try:
                average = Average(self.captioner, self._average.decay)
                average.load_state_dict(self._state["average"])
                with average.applied():
                    yield self.captioner
            finally:
                self.captioner.cpu()
        else:
            yield self.captioner
