"""Gradients of embeddings and output layers that go straight into the sum: the same numbers, and only when asked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from raycap.models.accumulate import SummingEmbedding, in_place, sum_of, use_summing
from raycap.models.readout import Readout, readout_logprobs

MakeCaptioner = Callable[..., nn.Module]
WORDS, WIDTH = 11, 4


def batches() -> list[tuple[Tensor, Tensor]]:
    """Three small batches: what is read, and what is said of it."""
    draw = torch.Generator().manual_seed(0)
    return [(torch.randint(WORDS, (2, 3), generator=draw), torch.randint(WORDS, (6,), generator=draw)) for _ in "abc"]


def summed(table: nn.Embedding, out: Tensor, bias: Tensor, *, straight: bool) -> list[Tensor]:
    """Gradients of embedding, output layer and bias after the batches."""
    for read, said in batches():
        hidden = torch.tanh(table(read).reshape(6, WIDTH))
        with in_place() if straight else nullcontext():
            readout_logprobs(Readout(hidden, out, bias), said, chunk=2 * WORDS).sum().backward()
    return [p.grad for p in (table.weight, out, bias) if p.grad is not None]


@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_the_sum_is_autograds(padding: int | None, tied: bool) -> None:
    def parts() -> tuple[nn.Embedding, Tensor, Tensor]:
        torch.manual_seed(1)
        table = nn.Embedding(WORDS, WIDTH, padding_idx=padding)
        return (
            table,
            table.weight if tied else nn.Parameter(torch.randn(WORDS, WIDTH)),
            nn.Parameter(torch.randn(WORDS)),
        )

    plain, ours = parts(), parts()
    use_summing(ours[0])
    assert type(ours[0]) is SummingEmbedding
    expected = summed(*plain, straight=False)
    got = summed(*ours, straight=True)
    for one, other in zip(expected, got, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)


def test_the_sum_stays_where_it_is_and_grows_there() -> None:
    table, weight = SummingEmbedding(WORDS, WIDTH), nn.Parameter(torch.randn(WORDS, WIDTH))
    bias = nn.Parameter(torch.zeros(WORDS))
    summed(table, weight, bias, straight=True)
    places = [table.weight.grad.data_ptr(), weight.grad.data_ptr()]  # type: ignore[union-attr]
    before = [table.weight.grad.clone(), weight.grad.clone()]  # type: ignore[union-attr]
    again = summed(table, weight, bias, straight=True)[:2]
    assert [gradient.data_ptr() for gradient in again] == places
    for one, other in zip(before, again, strict=True):
        torch.testing.assert_close(other, 2 * one)


def test_only_when_asked_and_where_nobody_waits_for_it() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    assert sum_of(parameter) is None
    with in_place():
        assert sum_of(parameter) is parameter.grad
        assert sum_of(nn.Parameter(torch.zeros(2))) is None  # no gradient yet
        assert sum_of(parameter * 1) is None  # not a leaf
        handle = parameter.register_post_accumulate_grad_hook(lambda _: None)
        assert sum_of(parameter) is None
        handle.remove()
        handle = parameter.register_hook(lambda gradient: gradient)
        assert sum_of(parameter) is None
        handle.remove()
        assert sum_of(parameter) is parameter.grad
    assert sum_of(parameter) is None


def test_frozen_tables_and_plain_gradients_are_autograds() -> None:
    table = SummingEmbedding(WORDS, WIDTH)
    read = torch.tensor([1, 1, 2])
    (got,) = torch.autograd.grad(table(read).sum(), table.weight)
    assert got.sum(dim=1).tolist() == [0, 2 * WIDTH, WIDTH] + [0] * (WORDS - 3)
    assert table.weight.grad is None
    table.requires_grad_(False)
    assert not table(read).requires_grad


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_captioners_gradients_do_not_depend_on_how_they_are_summed(make_captioner: MakeCaptioner, kind: str) -> None:
    draw = torch.Generator().manual_seed(1)
    shown = torch.randn(4, 4, 8, generator=draw)
    tokens = torch.randint(2, 20, (8, 5), generator=draw)

    def gradients(straight: bool) -> dict[str, Tensor]:
        captioner = make_captioner(kind).eval()
        for image in range(4):
            rows = slice(2 * image, 2 * image + 2)
            with in_place() if straight else nullcontext():
                seen = captioner.encode(shown[image : image + 1])  # type: ignore[operator]
                captioner.score(seen, tokens[rows], torch.ones(2, 5)).sum().backward()  # type: ignore[operator]
        return {name: p.grad for name, p in captioner.named_parameters() if p.grad is not None}

    expected, got = gradients(False), gradients(True)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-5, msg=name)
