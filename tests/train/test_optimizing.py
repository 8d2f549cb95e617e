"""Learning rates at points worked out by hand, averaged weights against the slow loop, decay where it belongs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from raycap.errors import WorkFailed
from raycap.models.prefix import PrefixCaptioner
from raycap.train.group import Alone
from raycap.train.optimizing import Average, adamw, clip_gradients, set_lr
from raycap.train.schedules import warmup_cosine, warmup_linear
from raycap.train.seeding import DROPOUT, INIT, seed_torch


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 1 / 5), (3, 4 / 5), (4, 1.0), (14, 0.55), (24, 0.1), (99, 0.1), (9, 0.1 + 0.45 * (1 + math.sqrt(0.5)))],
)
def test_warmup_cosine_by_hand(step: int, expected: float) -> None:
    """Four steps up, from 1 at step 4 along a cosine to 0.1 at step 24, and no further."""
    assert warmup_cosine(step, warmup=4, total=24, floor=0.1) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 1 / 5), (3, 4 / 5), (4, 1.0), (9, 0.775), (14, 0.55), (24, 0.1), (99, 0.1)]
)
def test_warmup_linear_by_hand(step: int, expected: float) -> None:
    assert warmup_linear(step, warmup=4, total=24, floor=0.1) == pytest.approx(expected)


@pytest.mark.parametrize("factor", [warmup_cosine, warmup_linear])
def test_schedules_at_their_edges(factor: Callable[..., float]) -> None:
    assert factor(0, warmup=0, total=10, floor=0.0) == 1
    assert factor(10, warmup=0, total=10, floor=0.0) == pytest.approx(0)
    assert factor(7, warmup=0, total=10, floor=1.0) == pytest.approx(1)
    for step in range(30):  # a plan that is shorter than its warm-up
        assert 0 < factor(step, warmup=20, total=5, floor=0.2) <= 1


def test_decay_is_on_matrices_only_and_frozen_parameters_are_left_alone() -> None:
    module = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2))
    module[2].requires_grad_(False)
    optimizer = adamw(module, lr=0.1, weight_decay=0.5)
    decayed, plain = optimizer.param_groups
    assert [p is q for p, q in zip(decayed["params"], [module[0].weight], strict=True)] == [True]
    assert decayed["weight_decay"] == 0.5
    assert [id(p) for p in plain["params"]] == [id(p) for p in (module[0].bias, module[1].weight, module[1].bias)]
    assert plain["weight_decay"] == 0.0
    set_lr(optimizer, 0.025)
    assert [group["lr"] for group in optimizer.param_groups] == [0.025, 0.025]


def moved(module: nn.Module, step: int) -> None:
    with torch.no_grad():
        for number, parameter in enumerate(module.parameters()):
            parameter.add_(torch.sin(torch.arange(parameter.numel()) + 3.0 * step + number).view_as(parameter))


def test_the_average_equals_the_slow_loop() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    module[1].bias.requires_grad_(False)
    average = Average(module, 0.6)
    trained = [p for p in module.parameters() if p.requires_grad]
    slow = [p.detach().clone().double() for p in trained]
    for step in range(1, 12):
        moved(module, step)
        average.update()
        decay = min(0.6, (1 + step) / (10 + step))
        slow = [decay * mean + (1 - decay) * p.detach().double() for mean, p in zip(slow, trained, strict=True)]
    frozen = module[1].bias.detach().clone()
    live = [p.detach().clone() for p in module.parameters()]
    with average.applied():
        for p, mean in zip(trained, slow, strict=True):
            torch.testing.assert_close(p.detach().double(), mean, rtol=0, atol=1e-5)
            assert float((p.detach().double() - mean).abs().max()) > 0
        assert not torch.equal(trained[0], live[0])
        assert torch.equal(module[1].bias, frozen)
    assert all(torch.equal(p, kept) for p, kept in zip(module.parameters(), live, strict=True))


def test_the_live_weights_come_back_after_an_error_too() -> None:
    module = nn.Linear(2, 2)
    average = Average(module, 0.9)
    moved(module, 1)
    kept = module.weight.detach().clone()
    seen = []

    def look() -> None:
        with average.applied():
            seen.append(module.weight.detach().clone())
            raise KeyError

    with pytest.raises(KeyError):
        look()
    assert not torch.equal(seen[0], kept)
    assert torch.equal(module.weight, kept)


def test_decay_zero_is_no_average() -> None:
    module = nn.Linear(2, 2)
    average = Average(module, 0.0)
    moved(module, 1)
    average.update()
    with average.applied():
        now = module.weight.detach().clone()
    assert torch.equal(module.weight, now)
    assert average.state_dict() == {"count": 0, "mean": []}


def test_an_average_goes_on_from_its_state() -> None:
    torch.manual_seed(0)
    module = nn.Linear(2, 2)
    average = Average(module, 0.9)
    for step in range(3):
        moved(module, step)
        average.update()
    twin = nn.Linear(2, 2)
    twin.load_state_dict(module.state_dict())
    resumed = Average(twin, 0.9)
    resumed.load_state_dict(average.state_dict())
    for one, its in ((module, average), (twin, resumed)):
        moved(one, 9)
        its.update()
    with average.applied(), resumed.applied():
        assert torch.equal(module.weight, twin.weight)
        assert torch.equal(module.bias, twin.bias)
    assert resumed.count == 4


def test_alone_adds_up_to_itself() -> None:
    assert (Alone.rank, Alone.size) == (0, 1)
    assert Alone().sum_values([1.5, 2.0]) == [1.5, 2.0]
    module = nn.Linear(2, 2)
    module(torch.ones(1, 2)).sum().backward()
    before = module.weight.grad
    Alone().sum_gradients(module.parameters())
    assert module.weight.grad is before


def draw(*key: int) -> list[float]:
    seed_torch(*key)
    return torch.rand(4).tolist()


def test_what_torch_draws_hangs_on_seed_stream_step_and_rank() -> None:
    base = draw(3, DROPOUT, 5, 0)
    torch.rand(17)
    assert draw(3, DROPOUT, 5, 0) == base
    others = [draw(4, DROPOUT, 5, 0), draw(3, INIT, 5, 0), draw(3, DROPOUT, 6, 0), draw(3, DROPOUT, 5, 1)]
    assert all(other != base for other in others)
    assert len({tuple(other) for other in others}) == 4


def test_the_average_of_a_captioner_is_over_what_is_trained(make_captioner: Callable[..., PrefixCaptioner]) -> None:
    captioner = make_captioner(lm_tuning="frozen")
    mean: Any = Average(captioner, 0.9).state_dict()["mean"]
    assert [value.shape for value in mean] == [p.shape for p in captioner.mapping.parameters()]


@pytest.mark.parametrize("planted", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_is_an_error_and_not_a_step(planted: float) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.tensor([0.0, planted, 1.0])
    with pytest.raises(WorkFailed, match=r"grad_norm = .*step 7 is not finite.*lower mle\.lr"):
        clip_gradients([weight], 1.0, step=7, remedy="lower mle.lr")
    weight.grad = torch.tensor([3.0, 0.0, 4.0])
    assert clip_gradients([weight], 1.0, step=7, remedy="") == pytest.approx(5.0)
    torch.testing.assert_close(weight.grad, torch.tensor([0.6, 0.0, 0.8]), rtol=1e-5, atol=0)
