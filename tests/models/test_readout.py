"""Log-probabilities of single tokens from hidden states, all logits at once and in chunks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from raycap.models import products
from raycap.models.precision import computing_in
from raycap.models.readout import Readout, placed, readout_entropies, readout_logprobs

ROWS, WIDTH, WORDS = 23, 6, 50


def made(bias: bool) -> tuple[list[Tensor], Tensor]:
    draw = torch.Generator().manual_seed(0)
    parts = [torch.randn(ROWS, WIDTH, generator=draw), torch.randn(WORDS, WIDTH, generator=draw)]
    parts += [torch.randn(WORDS, generator=draw)] if bias else []
    return [part.double().requires_grad_() for part in parts], torch.randint(WORDS, (ROWS,), generator=draw)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", [1, 7 * WORDS, 10**6])
def test_chunks_change_neither_values_nor_gradients(bias: bool, temperature: float, chunk: int) -> None:
    parts, tokens = made(bias)
    direction = torch.randn(ROWS, generator=torch.Generator().manual_seed(1)).double()
    logits = parts[0] @ parts[1].T + (parts[2] if bias else 0.0)
    slow = torch.log_softmax(logits / temperature, dim=1)[torch.arange(ROWS), tokens]
    expected = torch.autograd.grad((slow * direction).sum(), parts)
    fast = readout_logprobs(Readout(*parts), tokens, temperature, chunk=chunk)
    assert fast.dtype == torch.float32
    torch.testing.assert_close(fast.double(), slow, rtol=0, atol=1e-5)
    for got, want in zip(torch.autograd.grad((fast * direction).sum(), parts), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", [1, 7 * WORDS, 10**6])
def test_entropies_stand_beside_log_probabilities(bias: bool, temperature: float, chunk: int) -> None:
    parts, tokens = made(bias)
    directions = torch.randn(2, ROWS, generator=torch.Generator().manual_seed(1)).double()
    logits = (parts[0] @ parts[1].T + (parts[2] if bias else 0.0)) / temperature
    slow = [
        torch.log_softmax(logits, dim=1)[torch.arange(ROWS), tokens],
        torch.distributions.Categorical(logits=logits).entropy(),
    ]
    expected = torch.autograd.grad(sum((d * s).sum() for d, s in zip(directions, slow, strict=True)), parts)
    for readout, leaves in ((Readout(*parts), parts), (Readout(logits.detach().requires_grad_() * temperature), None)):
        fast = readout_entropies(readout, tokens, temperature, chunk=chunk)
        for got, want in zip(fast, slow, strict=True):
            torch.testing.assert_close(got.double(), want, rtol=0, atol=1e-5)
        if leaves is not None:
            total = sum((d * f).sum() for d, f in zip(directions, fast, strict=True))
            for got, want in zip(torch.autograd.grad(total, leaves), expected, strict=True):
                torch.testing.assert_close(got, want, rtol=0, atol=1e-5)


def test_a_word_without_any_chance_adds_nothing_to_the_entropy() -> None:
    hidden = torch.tensor([[1.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[200.0, 0.0], [200.0, 0.0], [-200.0, 0.0]], requires_grad=True)
    _, entropy = readout_entropies(Readout(hidden, weight), torch.tensor([0]))
    assert float(entropy) == pytest.approx(0.6931472)
    for gradient in torch.autograd.grad(entropy.sum(), (hidden, weight)):
        assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_chunks_in_bfloat16_add_up(dtype: torch.dtype) -> None:
    """Three thousand gradients of one sign: a sum in bfloat16 stops growing when it is 256 times one of them.

    The parameters are float32 under autocast, or bfloat16 themselves.
    """
    draw = torch.Generator().manual_seed(0)
    hidden, weight = torch.rand(3000, WIDTH, generator=draw), 0.1 * torch.randn(WORDS, WIDTH, generator=draw)
    parts = [part.bfloat16().to(dtype).requires_grad_() for part in (hidden, weight, torch.zeros(WORDS))]
    tokens = torch.arange(3000) % 3
    exact = [part.detach().double().requires_grad_() for part in parts]
    slow = torch.log_softmax(exact[0] @ exact[1].T + exact[2], dim=1)[torch.arange(3000), tokens]
    with computing_in(torch.bfloat16, torch.device("cpu")):
        fast = readout_logprobs(Readout(*parts), tokens, chunk=2 * WORDS)
    expected, got = torch.autograd.grad(slow.sum(), exact), torch.autograd.grad(fast.sum(), parts)
    for one, other in zip(expected, got, strict=True):
        assert other.dtype == dtype
        assert float((other - one).abs().max()) < 0.01 * float(one.abs().max())


def test_numbers_are_put_in_their_places() -> None:
    wanted = torch.tensor([[True, False, True], [False, False, True]])
    picked = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    made = placed(picked, wanted)
    assert made.tolist() == [[1, 0, 2], [0, 0, 3]]
    (made * torch.arange(6.0).view(2, 3)).sum().backward()
    assert picked.grad is not None
    assert picked.grad.tolist() == [0, 2, 5]


def test_what_needs_no_gradient_gets_none() -> None:
    (hidden, weight), tokens = made(bias=False)
    readout_logprobs(Readout(hidden, weight.detach()), tokens, chunk=WORDS).sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_logits_that_are_there_are_taken_as_they_are() -> None:
    logits = torch.randn(4, 9)
    readout = Readout(logits)
    assert readout.logits is logits or torch.equal(readout.logits, logits)
    assert readout.words == 9
    tokens = torch.tensor([0, 8, 3, 3])
    torch.testing.assert_close(readout_logprobs(readout, tokens), torch.log_softmax(logits, 1)[torch.arange(4), tokens])


def test_rows_are_selected_repeated_and_joined() -> None:
    (hidden, weight, bias), _ = made(bias=True)
    readout = Readout(hidden, weight, bias)
    rows = torch.tensor([3, 3, 0])
    whole = readout.logits
    torch.testing.assert_close(readout.select(rows).logits, whole[rows])
    torch.testing.assert_close(readout.repeat(2).logits, whole.repeat_interleave(2, dim=0))
    torch.testing.assert_close(readout.join(readout.select(rows)).logits, torch.cat([whole, whole[rows]]))
    blocks = list(readout.blocks(20))
    assert [start for start, _ in blocks] == list(range(0, WORDS, 20))
    torch.testing.assert_close(torch.cat([logits for _, logits in blocks], dim=1), whole)


def test_a_weight_that_is_laid_out_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "PIECE", 16)
    monkeypatch.setattr("raycap.models.readout.PIECE", 16)
    for with_bias in (False, True):
        plain = Readout(*(values.detach().float() for values in made(bias=with_bias)[0]))
        assert plain.weight is not None
        ready = replace(plain, ready=products.pieces(plain.weight))
        assert ready.ready is not None
        assert [start for start, _ in ready.blocks(999)] == list(range(0, WORDS, 16))
        for one, other in ((plain, ready), (plain.over(0.7), ready.over(0.7)), (plain.repeat(2), ready.repeat(2)),
                           (plain.join(plain), ready.join(ready))):  # fmt: skip
            torch.testing.assert_close(one.logits, other.logits)
