from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raycap.decoding import draw as draw_module
from raycap.decoding.draw import likeliest
from raycap.decoding.uniforms import caption_uniforms
from raycap.errors import WorkFailed
from raycap.models.readout import Readout

LOGITS = torch.tensor([0.3, -1.0, 2.0, -torch.inf, 0.0, 1.2])


def draw(
    logits: torch.Tensor, uniforms: torch.Tensor, temperature: float = 1.0, greedy: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    return draw_module.draw(Readout(logits), uniforms, temperature, greedy)


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


def readout(rows: int, words: int, bias: bool = True) -> Readout:
    draws = torch.Generator().manual_seed(rows + words)
    return Readout(torch.randn(rows, 12, generator=draws), torch.randn(words, 12, generator=draws),
                   torch.randn(words, generator=draws) if bias else None)  # fmt: skip


def test_blocks_of_words_draw_what_all_words_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many small blocks, the last one not full, against the inverse CDF over everything in float64.

    The product itself is float32's: logits of this size are off by some 1e-6.
    """
    for words in (5, 128, 129, 1000, 1024):
        of = readout(64, words)
        uniforms, greedy = numbers(64, words), torch.arange(64) % 3 == 0
        whole = draw_module.draw(of, uniforms, 0.8, greedy)
        monkeypatch.setattr(draw_module, "_BYTES", 64 * 4 * 256)
        parts = draw_module.draw(of, uniforms, 0.8, greedy)
        monkeypatch.undo()
        assert of.weight is not None
        assert of.bias is not None
        exact_logits = Readout(of.hidden.double(), of.weight.double(), of.bias.double()).logits
        chances = torch.softmax(exact_logits / 0.8, dim=1)
        slow = torch.searchsorted(chances.cumsum(1), uniforms.double()[:, None], right=True)[:, 0]
        slow = torch.where(greedy, of.logits.argmax(1), slow)
        for tokens, logprobs in (whole, parts):
            assert torch.equal(tokens, slow)
            exact = chances.gather(1, slow[:, None])[:, 0].log()
            torch.testing.assert_close(logprobs.double(), exact, rtol=0, atol=5e-6)
        assert torch.equal(likeliest(of), of.logits.argmax(1))


def test_the_first_of_equal_tokens_is_the_likeliest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_module, "_BYTES", 4 * 128)
    logits = torch.zeros(1, 1000)
    logits[0, [300, 301, 900]] = 1.0
    assert likeliest(Readout(logits)).tolist() == [300]


def test_blocks_of_words_that_cannot_be_are_never_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw_module, "_BYTES", 8 * 4 * 128)
    logits = torch.full((8, 1024), -torch.inf)
    logits[:, 500:503] = torch.tensor([0.0, 1.0, -torch.inf])
    for uniform in (0.0, 0.2, 0.5, 1 - 2**-24, 1.0):
        tokens, logprobs = draw(logits, torch.full((8,), uniform))
        assert set(tokens.tolist()) <= {500, 501}
        assert bool(torch.isfinite(logprobs).all())


@pytest.mark.parametrize("leading", [-torch.inf, -300.0, 0.0])
def test_words_that_are_far_likelier_than_the_first_ones(monkeypatch: pytest.MonkeyPatch, leading: float) -> None:
    """The first words give the shift: where others exceed it by more than float32's range, it is looked for again."""
    monkeypatch.setattr(draw_module, "_BYTES", 40 * 4 * 128)  # the likely words lie in later blocks
    torch.manual_seed(0)
    logits = 3 * torch.randn(40, 3000) + 200
    logits[:, :2600] = leading
    greedy = torch.arange(40) % 4 == 0
    weight = torch.eye(3000)
    for readout in (Readout(logits), Readout(logits.clamp(min=-1e30), weight)):
        tokens, logprobs = draw_module.draw(readout, numbers(40), 1.3, greedy)
        exact = torch.log_softmax(logits.double() / 1.3, dim=1).gather(1, tokens[:, None])[:, 0]
        torch.testing.assert_close(logprobs.double(), exact, rtol=0, atol=1e-5)
        assert torch.equal(tokens[greedy], logits.argmax(dim=1)[greedy])
        assert len(tokens.unique()) > 25


def test_the_output_layer_is_not_written_over() -> None:
    logits = torch.randn(9, 300)
    kept = logits.clone()
    draw(logits, numbers(9), greedy=torch.arange(9) < 3)
    assert torch.equal(logits, kept)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("word", [7, 130, 299])
def test_nothing_is_chosen_from_what_is_no_number(monkeypatch: pytest.MonkeyPatch, value: float, word: int) -> None:
    """In the first, a middle and the last block of words; drawn, greedy beside drawn ones, greedy alone."""
    monkeypatch.setattr(draw_module, "_BYTES", 9 * 4 * 128)
    logits = torch.randn(9, 300)
    logits[4, word] = value
    for greedy in (None, torch.arange(9) == 4):
        with pytest.raises(WorkFailed, match=r"logits = nan"):
            draw(logits, numbers(9), greedy=greedy)
    with pytest.raises(WorkFailed, match=r"logits = nan.*weights or features are not finite"):
        likeliest(Readout(logits))


def test_words_that_cannot_be_are_numbers_enough() -> None:
    logits = torch.full((2, 300), -torch.inf)
    logits[:, 200] = 1.0
    assert likeliest(Readout(logits)).tolist() == [200, 200]
