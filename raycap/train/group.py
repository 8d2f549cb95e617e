"""The ranks that learn together: what they tell each other, and how they hold what learns."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from raycap.errors import RaycapError
from raycap.models.prefix import PrefixCaptioner

Built = TypeVar("Built")


class Group(Protocol):
    """The ranks that learn together, and how they hold what learns: whole on every rank, or each a share of it.

    `sum_gradients` adds up in a fixed order, so a run repeats itself.
    """

    rank: int
    size: int

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None: ...
    def sum_values(self, values: list[float]) -> list[float]: ...
    def gather_texts(self, text: str) -> list[str]: ...

    def starts_on(self, device: str) -> str:
        """Where a captioner that is to learn on a device is put before it is held."""
        ...

    def shown(self, captioner: PrefixCaptioner) -> PrefixCaptioner:
        """What others will see of a captioner that is not held yet: itself, or on rank 0 a copy of its own."""
        ...

    def hold(self, captioner: PrefixCaptioner) -> None:
        """Change a captioner in place to how the ranks hold it, before anything is made of its parameters."""
        ...

    def still_copy(self, captioner: PrefixCaptioner) -> PrefixCaptioner:
        """A copy of a captioner that is not held yet, which nothing trains; it is to be held too."""
        ...

    def idle_passes(self, mine: int) -> int:
        """How often this rank must go through the captioner besides its own `mine`, so that all do equally often."""
        ...


class Whole:
    """Every rank has all of the captioner, and none needs the others while it computes."""

    def starts_on(self, device: str) -> str:
        return device

    def shown(self, captioner: PrefixCaptioner) -> PrefixCaptioner:
        return captioner

    def hold(self, captioner: PrefixCaptioner) -> None:
        """It is whole."""

    def still_copy(self, captioner: PrefixCaptioner) -> PrefixCaptioner:
        """Shares what is frozen in the captioner too."""
        frozen = {id(p): p for p in captioner.parameters() if not p.requires_grad}
        return copy.deepcopy(captioner, frozen).requires_grad_(False)

    def idle_passes(self, mine: int) -> int:
        return 0


class Alone(Whole):
    """One process, one rank."""

    rank, size = 0, 1

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Nothing to add."""

    def sum_values(self, values: list[float]) -> list[float]:
        return values

    def gather_texts(self, text: str) -> list[str]:
        return [text]


class DistributedGroup(Whole):
    """torch's default process group, which must be initialised (Ray Train does it). Every rank holds all that learns;
    gradients are added up over all of them in one flat buffer."""

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by the sum over ranks; losses are divided by whole-step counts beforehand."""
        trainable = [p for p in parameters if p.requires_grad]
        for p in trainable:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.reshape(-1) for p in trainable if p.grad is not None])
        dist.all_reduce(flat)
        offset = 0
        for p in trainable:
            assert p.grad is not None
            p.grad.copy_(flat[offset : offset + p.numel()].view_as(p))
            offset += p.numel()

    def sum_values(self, values: list[float]) -> list[float]:
        """Sum numbers over ranks, in float64."""
        backend_device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        tensor = torch.tensor(values, dtype=torch.float64, device=backend_device)
        dist.all_reduce(tensor)
        return tensor.tolist()

    def gather_texts(self, text: str) -> list[str]:
        """Every rank's text, in the order of the ranks."""
        texts: list[str] = [""] * self.size
        dist.all_gather_object(texts, text)
        return texts


def of_first(group: Group, values: Sequence[float]) -> list[float]:
    """Rank 0's numbers, on every rank; those of the others do not count."""
    return group.sum_values([float(value) if group.rank == 0 else 0.0 for value in values])


def gathered_json(group: Group, value: Any) -> list[Any]:
    """Every rank's value (of JSON), in the order of the ranks."""
    return [json.loads(text) for text in group.gather_texts(json.dumps(value))]


def together(group: Group, error: RaycapError | None) -> None:
    """All ranks go on, or all of them end here: one that returned alone would leave the others waiting for it.

    Raises:
        RaycapError: this rank's own, else the first of the others', as it was raised there. The driver hears of rank
            0's only, and a command exits with the status of its kind.
    """
    pickled = group.gather_texts(pickle.dumps(error).hex() if error else "")
    if error:
        raise error
    for other in filter(None, pickled):
        raise pickle.loads(bytes.fromhex(other))


def built_together(group: Group, build: Callable[[], Built]) -> Built:
    """What `build` makes, once it has made it on every rank.

    Raises:
        RaycapError: it failed on one of them.
    """
    try:
        made = build()
    except RaycapError as error:
        together(group, error)
        raise
    together(group, None)
    return made


def first_does(group: Group, action: Callable[[], None]) -> None:
    """Rank 0 does something for all; where it fails, all end.

    Raises:
        RaycapError: on all ranks, what it raised on rank 0.
    """
    error: RaycapError | None = None
    if group.rank == 0:
        try:
            action()
        except RaycapError as raised:
            error = raised
    together(group, error)
