"""Tensors that two real ranks hold a part of each: put together, taken apart, and an optimizer's state with them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from raycap.train.shards import gathered, load_optimizer, put, whole
from tests.two_ranks import TwoRanks

SHAPES = ((5, 2), (1,), (4,))
"""Rows that do not come out even, fewer than ranks, and even ones."""


def sharded(values: list[Tensor]) -> list[nn.Parameter]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (2,))
    return [nn.Parameter(distribute_tensor(value, mesh, [Shard(0)])) for value in values]


def numbered(start: float) -> list[Tensor]:
    return [start + torch.arange(float(torch.tensor(shape).prod())).view(shape) for shape in SHAPES]


def step_of(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """One step of Adam on gradients that are the parameters."""
    optimizer = torch.optim.Adam(parameters, lr=0.1, fused=True)
    for parameter in parameters:
        parameter.grad = parameter.detach().clone()
    optimizer.step()
    return optimizer


def put_and_gather() -> dict[str, Any]:
    held = sharded(numbered(0.0))
    for target, value in zip(held, numbered(7.0), strict=True):
        put(target, value)
    rank = torch.distributed.get_rank()
    state = {"all": held, "plain": torch.ones(2), "kept": (1.5, "x", None)}
    return {"own": [p.to_local().detach() for p in held], "whole": [whole(p.detach()) for p in held],
            "gathered": gathered(state, keep=rank == 0)}  # fmt: skip


def test_what_is_put_into_shards_comes_out_whole(two_ranks: TwoRanks) -> None:
    found = two_ranks(put_and_gather)
    for rank, told in enumerate(found):
        for number, value in enumerate(numbered(7.0)):
            assert torch.equal(told["whole"][number], value)
            parts = value.chunk(2)
            assert torch.equal(told["own"][number], parts[rank] if rank < len(parts) else value[:0])
    first, second = (told["gathered"] for told in found)
    assert all(torch.equal(one, other) for one, other in zip(first["all"], numbered(7.0), strict=True))
    assert torch.equal(first["plain"], torch.ones(2))
    assert second["all"] == [None] * 3, "who does not want them keeps none of it"
    assert first["kept"] == second["kept"] == (1.5, "x", None)


def go_on(state: dict[str, Any]) -> dict[str, Any]:
    """Adam on shards, from a whole state on: its next step, and the state then."""
    held = sharded(numbered(3.0))
    optimizer = step_of(held)
    load_optimizer(optimizer, state)
    for parameter in held:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return {"values": [whole(p.detach()) for p in held], "state": gathered(optimizer.state_dict(), keep=True)}


def test_a_whole_optimizer_state_goes_on_on_shards(two_ranks: TwoRanks) -> None:
    before = step_of([nn.Parameter(value) for value in numbered(1.0)]).state_dict()
    plain = [nn.Parameter(value) for value in numbered(3.0)]
    optimizer = step_of(plain)
    load_optimizer(optimizer, copy.deepcopy(before))
    for parameter in plain:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    expected = optimizer.state_dict()["state"]
    for told in two_ranks(go_on, before):
        for one, other in zip(told["values"], plain, strict=True):
            torch.testing.assert_close(one, other.detach(), rtol=0, atol=1e-6)
        for number, state in expected.items():
            assert state.keys() == told["state"]["state"][number].keys()
            for name, value in state.items():
                torch.testing.assert_close(told["state"]["state"][number][name], value, rtol=0, atol=1e-6)
    assert float(expected[0]["step"]) == 2
