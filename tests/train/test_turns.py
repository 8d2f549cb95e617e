"""A GPU shared by turns: who rests holds nothing there but its weights, and what it learns is the same to the bit.

Tensors on a "cuda" device here are torch's fake ones: they have a device and no numbers.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from raycap.train.turns import Turns, release_cache

GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.fixture
def emptied(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A mark for each time that torch's cache is emptied: on a machine without a GPU."""
    marks: list[int] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: marks.append(1))
    return marks


class Moved:
    """Where a parameter's numbers were sent. (A fake tensor cannot be given others.)"""

    def __init__(self) -> None:
        self.places: list[torch.device] = []

    @property
    def data(self) -> Moved:
        return self

    @data.setter
    def data(self, value: Moved) -> None:
        assert value is self

    def to(self, device: torch.device) -> Moved:
        self.places.append(device)
        return self


def learning(device: str) -> tuple[nn.Parameter, torch.optim.Optimizer, list[Tensor]]:
    parameter = nn.Parameter(torch.ones(3, device=device))
    parameter.grad = torch.ones_like(parameter)
    optimizer = torch.optim.Adam([parameter], lr=0.1)
    # the count of steps stays with the host: where it belongs, it comes back to
    optimizer.state[parameter] = {"step": torch.tensor(2.0), "exp_avg": torch.zeros_like(parameter), "note": 7}
    return parameter, optimizer, [torch.zeros(3, device=device)]


def test_who_rests_leaves_only_the_weights_on_the_gpu(emptied: list[int]) -> None:
    with FakeTensorMode():
        parameter, optimizer, averages = learning("cuda")
        reference: Any = Moved()
        turns = Turns(optimizer, averages, [reference], shared=True)
        turns.rest()
        assert parameter.grad is None
        assert parameter.device == GPU, "the weights are published, looked at and saved while others have their turn"
        state = optimizer.state[parameter]
        assert [state["exp_avg"].device, state["step"].device, averages[0].device] == [CPU] * 3
        assert reference.places == [CPU]
        assert emptied == [1]
        turns.rest()
        assert emptied == [1, 1], "what a look at `select` took in the meantime is given back too"
        turns.wake()
        assert [state["exp_avg"].device, averages[0].device] == [GPU] * 2
        assert state["step"].device == CPU
        assert state["note"] == 7
        assert reference.places == [CPU, GPU]
        turns.wake()
        assert reference.places == [CPU, GPU]


def test_who_shares_with_nobody_keeps_all(emptied: list[int]) -> None:
    with FakeTensorMode():
        parameter, optimizer, averages = learning("cuda")
        turns = Turns(optimizer, averages, [], shared=False)
        turns.rest()
        assert parameter.grad is not None
        assert {optimizer.state[parameter]["exp_avg"].device, averages[0].device} == {GPU}
        turns.wake()
    assert not emptied


def test_on_a_cpu_nothing_is_asked_of_cuda(emptied: list[int]) -> None:
    parameter, optimizer, averages = learning("cpu")
    before = averages[0]
    turns = Turns(optimizer, averages, [], shared=True)
    turns.rest()
    assert parameter.grad is None
    assert optimizer.state[parameter]["exp_avg"].device == averages[0].device == CPU
    turns.wake()
    assert averages[0] is before
    release_cache("cpu")
    assert not emptied
    release_cache("cuda")
    assert emptied == [1]
