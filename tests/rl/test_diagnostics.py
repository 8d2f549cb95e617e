from __future__ import annotations

import math

import pytest
import torch

from raycap.rl.diagnostics import ratio_diagnostics


def test_the_same_policy_has_ratio_one_no_divergence_and_all_its_samples() -> None:
    logprobs = torch.randn(5, 4)
    found = ratio_diagnostics(logprobs, logprobs.clone(), torch.ones(5, 4))
    assert found == {"ratio_max_error": 0.0, "approx_kl": 0.0, "ess": pytest.approx(1.0)}


def test_two_captions_by_hand() -> None:
    log, nan = math.log, math.nan
    behavior = torch.tensor([[log(0.5), log(0.5)], [log(0.5), nan]])
    now = torch.tensor([[log(0.25), log(0.5)], [log(1.0), nan]])
    found = ratio_diagnostics(now, behavior, torch.tensor([[1.0, 1.0], [1.0, 0.0]]))
    assert found["ratio_max_error"] == pytest.approx(1.0)  # ratios 1/2, 1 and 2
    kl = ((0.5 - 1 - log(0.5)) + 0 + (2 - 1 - log(2))) / 3
    assert found["approx_kl"] == pytest.approx(kl)
    assert found["ess"] == pytest.approx((0.5 + 2) ** 2 / (2 * (0.25 + 4)))


def test_one_caption_that_outweighs_all_others_leaves_one_sample() -> None:
    """Products of ratios may be far beyond what floats hold; the share must not overflow."""
    behavior = torch.zeros(4, 10)
    now = torch.zeros(4, 10)
    now[2] = 100.0
    found = ratio_diagnostics(now, behavior, torch.ones(4, 10))
    assert found["ess"] == pytest.approx(0.25)


def test_diagnostics_hold_no_graph() -> None:
    logprobs = torch.randn(2, 3, requires_grad=True)
    assert all(
        isinstance(value, float) for value in ratio_diagnostics(logprobs, torch.zeros(2, 3), torch.ones(2, 3)).values()
    )
