"""One GPU that learner, rollout workers and reward models have by turns: who rests gives its memory to the others.

A process that shares a GPU keeps what torch once took from it, whether it needs that now or not. At lag 0 learning and
generating never happen at one time, so the larger of the two has to fit beside the weights, and not their sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

HOST = torch.device("cpu")


def release_cache(device: torch.device | str) -> None:
    """Give back the memory of a GPU that torch keeps and nobody uses; nothing on a CPU."""
    if torch.device(device).type == "cuda":
        torch.cuda.empty_cache()


class Turns:
    """A learner's turns on a GPU: what it learns with is in the host's memory while others have theirs.

    Moving changes no bit. Where nothing is shared both verbs do nothing.

    Args:
        optimizer: its state moves, and the gradients of its parameters go; the parameters stay.
        averages: more tensors that move (averaged weights), a list that is changed in place.
        still: parameters that nothing trains and that move (of the policy that the KL is measured to).
        shared: whether there are others.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, averages: list[Tensor], still: Sequence[nn.Parameter], *, shared: bool
    ) -> None:
        self.optimizer, self.averages, self.still, self.shared = optimizer, averages, still, shared
        self._device = optimizer.param_groups[0]["params"][0].device
        self._away: list[tuple[dict[str, Any], str]] = []  # what of the optimizer's state is in the host's memory
        self._resting = False

    def rest(self) -> None:
        """Between an update and the next: gradients go, state moves to the host, memory that is free is given back."""
        if not self.shared:
            return
        if not self._resting:
            self.optimizer.zero_grad(set_to_none=True)
            for state in self.optimizer.state.values():
                self._away += [(state, name) for name, value in state.items() if _is_on(value, self._device)]
            self._move(HOST)
            self._resting = True
        release_cache(self._device)

    def wake(self) -> None:
        """Before an update: all is back."""
        if self._resting:
            self._move(self._device)
            self._away.clear()
            self._resting = False

    def _move(self, device: torch.device) -> None:
        for parameter in self.still:
            parameter.data = parameter.data.to(device)
        self.averages[:] = [tensor.to(device) for tensor in self.averages]
        for state, name in self._away:
            state[name] = state[name].to(device)


def _is_on(value: Any, device: torch.device) -> bool:
    return isinstance(value, Tensor) and value.device == device
