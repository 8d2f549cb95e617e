from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from raycap.decoding.sample import draw
from raycap.decoding.uniforms import caption_uniforms

LOGITS = torch.tensor([0.3, -1.0, 2.0, -torch.inf, 0.0, 1.2])


def numbers(count: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(caption_uniforms(seed, 0, np.arange(count), 1, 1)[:, 0]).float()


def test_frequencies_are_the_probabilities() -> None:
    """Chi-square over five tokens (4 degrees of freedom, 18.5 at p = 0.001), at two temperatures."""
    count = 40_000
    for temperature in (1.0, 0.6):
        tokens, _ = draw(LOGITS.expand(count, -1), numbers(count), temperature)
        chances = torch.softmax(LOGITS.double() / temperature, dim=0)
        observed = torch.bincount(tokens, minlength=6).double()
        assert observed[3] == 0
        expected = chances * count
        fit = ((observed - expected) ** 2 / expected)[chances > 0].sum()
        assert float(fit) < 18.5


def test_log_probabilities_are_those_of_the_drawn_distribution() -> None:
    logits = torch.randn(500, 30) * 3
    for temperature in (1.0, 1.7):
        tokens, logprobs = draw(logits, numbers(500), temperature)
        exact = torch.log_softmax(logits.double() / temperature, dim=1).gather(1, tokens[:, None])[:, 0]
        assert logprobs.dtype == torch.float32
        torch.testing.assert_close(logprobs.double(), exact, rtol=0, atol=2e-6)


@given(
    st.lists(st.one_of(st.floats(-30, 30, width=32), st.just(-np.inf)), min_size=1, max_size=9).filter(
        lambda logits: max(logits) > -np.inf
    ),
    st.floats(0, 1, width=32),
)
def test_a_token_is_the_inverse_of_the_cumulative_distribution(logits: list[float], uniform: float) -> None:
    """The slow loop in float64; where the number lies within rounding of a border, either neighbour will do."""
    token = int(draw(torch.tensor([logits], dtype=torch.float32), torch.tensor([uniform]))[0][0])
    weights = np.exp(np.array(logits) - max(logits))
    borders = np.concatenate([[0.0], np.cumsum(weights / weights.sum())])
    assert weights[token] > 0
    if np.float32(weights[token]) > 0 and uniform < 1:
        assert borders[token] - 1e-5 <= uniform <= borders[token + 1] + 1e-5


def test_both_ends_of_the_unit_interval_draw_tokens_that_can_be() -> None:
    """0 must not draw a leading token of probability 0, and a number that was rounded up to 1 no token past the end."""
    logits = torch.tensor([[-torch.inf, 1.0, 2.0, -torch.inf]])
    for uniform, expected in ((0.0, 1), (1 - 2**-24, 2), (1.0, 2)):
        tokens, logprobs = draw(logits, torch.tensor([uniform], dtype=torch.float32))
        assert int(tokens) == expected
        assert bool(torch.isfinite(logprobs))


def test_a_large_vocabulary_keeps_its_tail() -> None:
    """50,000 equal tokens: sums in float32 must not swallow the last ones."""
    uniforms = (torch.arange(200) + 0.5) / 200
    tokens, logprobs = draw(torch.zeros(1, 50_000).expand(200, -1), uniforms)
    exact = (uniforms.double() * 50_000).long()
    assert int((tokens - exact).abs().max()) <= 2
    torch.testing.assert_close(logprobs, torch.full((200,), -float(np.log(50_000))), rtol=0, atol=1e-4)


def test_bfloat16_logits_are_summed_in_float32() -> None:
    logits = (torch.randn(64, 1000) * 2).bfloat16()
    tokens, logprobs = draw(logits, numbers(64))
    again, exact = draw(logits.float(), numbers(64))
    assert torch.equal(tokens, again)
    assert torch.equal(logprobs, exact)
