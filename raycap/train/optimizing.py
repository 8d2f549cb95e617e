"""What every loop needs around a gradient: batches in pieces, the optimizer, a limit for the norm, averaged weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from raycap.errors import WorkFailed
from raycap.train.shards import put, whole


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for part in optimizer.param_groups:
        part["lr"] = lr


def micro_batches(images: int, group: int, rows: int) -> Iterator[tuple[slice, slice]]:
    """Cut a batch into pieces whose gradients are summed: the images of each piece, and their rows.

    Args:
        group: captions of an image, which are neighbours; they stay together.
        rows: captions that a piece may have; one image at least.
    """
    size = max(1, rows // group)
    for start in range(0, images, size):
        stop = min(start + size, images)
        yield slice(start, stop), slice(start * group, stop * group)


def adamw(module: nn.Module, *, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with decay on matrices only: biases, norms and embeddings' scale are left alone."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), eps=1e-8, fused=True)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, *, step: int, remedy: str) -> float:
    """Scale gradients down to a norm of `limit`; the norm before. Of sharded ones it is that of all shards together.

    Raises:
        WorkFailed: it is not finite. A step with it would make every weight NaN.
    """
    norm = whole(torch.nn.utils.clip_grad_norm_(parameters, limit))
    if not bool(torch.isfinite(norm)):
        raise WorkFailed(f"the gradient of step {step} is not finite", key="grad_norm", value=float(norm),
                         remedy=f"the last checkpoint is unharmed; {remedy}")  # fmt: skip
    return float(norm)


class Average:
    """Exponential moving average of the trainable parameters (Polyak averaging); decay 0 is no average at all.

    Early on the decay is (1 + t)/(10 + t), so the random start does not linger.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.count = decay, 0
        self._live: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        self._mean = [p.detach().clone() for p in self._live] if decay else []

    @property
    def tensors(self) -> list[Tensor]:
        """The averages, of each trainable parameter in turn; empty without any. They may be moved."""
        return self._mean

    @torch.no_grad()
    def update(self) -> None:
        if not self.decay:
            return
        self.count += 1
        weight = 1 - min(self.decay, (1 + self.count) / (10 + self.count))
        torch._foreach_lerp_(self._mean, self._live, weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module's parameters are the averaged ones."""
        if not self.decay:
            yield
            return
        kept = [p.detach().clone() for p in self._live]
        self._copy(self._mean)
        try:
            yield
        finally:
            self._copy(kept)

    @torch.no_grad()
    def _copy(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self._live, values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, object]:
        return {"count": self.count, "mean": self._mean}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.count = int(state["count"])  # type: ignore[call-overload]
        for mine, other in zip(self._mean, state["mean"], strict=True):  # type: ignore[call-overload]
            put(mine, other)
