from __future__ import annotations

import math

import pytest
import torch

from raycap.rl.diagnostics import ratio_diagnostics, ratio_sums


def diagnostics(*given: torch.Tensor) -> dict[str, float]:
    return ratio_diagnostics([ratio_sums(*given)])


def test_the_same_policy_has_ratio_one_no_divergence_and_all_its_samples() -> None:
    logprobs = torch.randn(5, 4)
    found = diagnostics(logprobs, logprobs.clone(), torch.ones(5, 4))
    assert found == {"ratio_max_error": 0.0, "approx_kl": 0.0, "ess": pytest.approx(1.0)}


def test_two_captions_by_hand() -> None:
    log, nan = math.log, math.nan
    behavior = torch.tensor([[log(0.5), log(0.5)], [log(0.5), nan]])
    now = torch.tensor([[log(0.25), log(0.5)], [log(1.0), nan]])
    found = diagnostics(now, behavior, torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    assert found["ratio_max_error"] == pytest.approx(1.0)  # ratios 1/2, 1 and 2
    kl = ((0.5 - 1 - log(0.5)) + 0 + (2 - 1 - log(2))) / 3
    assert found["approx_kl"] == pytest.approx(kl)
    assert found["ess"] == pytest.approx((0.5 + 2) ** 2 / (2 * (0.25 + 4)))


def test_one_caption_that_outweighs_all_others_leaves_one_sample() -> None:
    """Products of ratios may be far beyond what floats hold; the share must not overflow."""
    behavior = torch.zeros(4, 10)
    now = torch.zeros(4, 10)
    now[2] = 100.0
    found = diagnostics(now, behavior, torch.ones(4, 10))
    assert found["ess"] == pytest.approx(0.25)


def test_diagnostics_hold_no_graph() -> None:
    logprobs = torch.randn(2, 3, requires_grad=True)
    assert all(isinstance(value, float) for value in ratio_sums(logprobs, torch.zeros(2, 3), torch.ones(2, 3)).values())


def test_captions_in_pieces_say_what_they_say_together() -> None:
    """The weights' scales are far apart from piece to piece."""
    draw = torch.Generator().manual_seed(0)
    now, behavior = torch.randn(12, 5, generator=draw), torch.randn(12, 5, generator=draw)
    now[:4] += 40
    mask = (torch.rand(12, 5, generator=draw) < 0.7).float()
    pieces = [ratio_sums(now[a:b], behavior[a:b], mask[a:b]) for a, b in ((0, 4), (4, 5), (5, 12))]
    assert ratio_diagnostics(pieces) == pytest.approx(diagnostics(now, behavior, mask))
    assert ratio_diagnostics([]) == {}
