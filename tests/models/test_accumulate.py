"""Gradients of embeddings and output layers that go straight into the sum: the same numbers, and only when asked."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raycap.models import accumulate, readout
from raycap.models.accumulate import SummingEmbedding, in_place, sum_of, use_summing
from raycap.models.lstm import LSTMCaptioner, LSTMConfig
from raycap.models.precision import computing_in
from raycap.models.prefix import PrefixCaptioner
from raycap.models.readout import Readout, readout_logprobs
from raycap.models.recompute import recompute_blocks
from raycap.recipe import MLERecipe, SCSTRecipe
from raycap.train.group import Alone
from raycap.train.labelled import LabelledSet
from raycap.train.learner import Learner
from raycap.train.mle import _step
from raycap.train.optimizing import adamw
from raycap.types import CaptionBatch
from tests.conftest import NumberTokenizer, TinyData
from tests.train.test_learner import roll_out

MakeCaptioner = Callable[..., PrefixCaptioner]
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


def arriving(parameter: Tensor) -> list[bool]:
    """Grows with every gradient that autograd brings to a parameter: whether there was one."""
    seen: list[bool] = []
    node = parameter.view_as(parameter).grad_fn.next_functions[0][0]  # type: ignore[union-attr]
    node.register_prehook(lambda gradients: seen.append(gradients[0] is not None))
    parameter.kept = node  # type: ignore[attr-defined]  # it lives as long as somebody holds it
    return seen


@pytest.mark.parametrize("padding", [None, 2])
@pytest.mark.parametrize("tied", [False, True])
def test_the_sum_is_autograd_s_and_only_the_first_gradient_comes_by_it(padding: int | None, tied: bool) -> None:
    def parts() -> tuple[nn.Embedding, Tensor, Tensor]:
        torch.manual_seed(1)
        table = nn.Embedding(WORDS, WIDTH, padding_idx=padding)
        out = table.weight if tied else nn.Parameter(torch.randn(WORDS, WIDTH))
        return table, out, nn.Parameter(torch.randn(WORDS))

    plain, ours = parts(), parts()
    use_summing(ours[0])
    assert type(ours[0]) is SummingEmbedding
    seen = {name: arriving(p) for name, p in (("table", ours[0].weight), ("out", ours[1]))}
    expected = summed(*plain, straight=False)
    got = summed(*ours, straight=True)
    for one, other in zip(expected, got, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6)
    for name, gradients in seen.items():
        assert gradients[0], name
        assert not any(gradients[1:]), f"{name}: autograd made one beside the sum"


def test_a_parameter_that_somebody_listens_to_is_left_to_autograd() -> None:
    table, out = SummingEmbedding(WORDS, WIDTH), nn.Parameter(torch.randn(WORDS, WIDTH))
    heard: list[Tensor] = []
    table.weight.register_hook(heard.append)
    out.register_hook(heard.append)
    summed(table, out, nn.Parameter(torch.zeros(WORDS)), straight=True)
    assert len(heard) == 6


def test_only_when_asked_and_where_nobody_waits_for_it() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    assert sum_of(parameter) is None
    with in_place():
        assert sum_of(parameter) is parameter.grad
        assert sum_of(nn.Parameter(torch.zeros(2))) is None  # no gradient yet
        double = nn.Parameter(torch.zeros(2).double())
        double.grad = torch.ones(2).double()
        assert sum_of(double) is None
        shaped = nn.Buffer(torch.zeros(2))
        shaped.grad = torch.ones(2)
        assert sum_of(shaped) is None
        handle = parameter.register_post_accumulate_grad_hook(lambda _: None)
        assert sum_of(parameter) is None
        handle.remove()
        handle = parameter.register_hook(lambda gradient: gradient)
        assert sum_of(parameter) is None
        handle.remove()
        assert sum_of(parameter) is parameter.grad
    assert sum_of(parameter) is None


def test_plain_gradients_of_plain_calls_are_autograd_s() -> None:
    table = SummingEmbedding(WORDS, WIDTH)
    before = table.weight.grad = torch.ones(WORDS, WIDTH)
    read = torch.tensor([1, 1, 2])
    (got,) = torch.autograd.grad(table(read).sum(), table.weight)
    assert got.sum(dim=1).tolist() == [0, 2 * WIDTH, WIDTH] + [0] * (WORDS - 3)
    assert bool((before == 1).all())
    table.requires_grad_(False)
    assert not table(read).requires_grad


CASES = ["gpt2", "llama", "llama, prefixes copied", "llama, recomputed", "llama, bfloat16", "lstm"]


@pytest.mark.parametrize("case", CASES)
def test_a_captioners_gradients_do_not_depend_on_how_they_are_summed(make_captioner: MakeCaptioner, case: str) -> None:
    draw = torch.Generator().manual_seed(1)
    shown = torch.randn(4, 4, 8, generator=draw)
    tokens = torch.randint(2, 20, (8, 5), generator=draw)
    straight_sums: list[int] = []

    def gradients(straight: bool) -> dict[str, Tensor]:
        captioner = built(make_captioner, case)
        for image in range(4):
            rows = slice(2 * image, 2 * image + 2)
            precision = torch.bfloat16 if "bfloat16" in case else torch.float32
            with computing_in(precision, torch.device("cpu")):
                loss = captioner.score(captioner.encode(shown[image : image + 1]), tokens[rows], torch.ones(2, 5)).sum()
            with in_place() if straight else nullcontext():
                loss.backward()
        return {name: p.grad for name, p in captioner.named_parameters() if p.grad is not None}

    expected = gradients(False)
    with pytest.MonkeyPatch.context() as patched:
        for module in (accumulate, readout):
            patched.setattr(module, "sum_of", lambda p: straight_sums.append(1) or sum_of(p))
        got = gradients(True)
    assert straight_sums
    assert expected.keys() == got.keys()
    near = {"rtol": 2e-2, "atol": 2e-2} if "bfloat16" in case else {"rtol": 1e-4, "atol": 1e-5}
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, msg=name, **near)


def built(make_captioner: MakeCaptioner, case: str) -> Any:
    if case == "lstm":
        torch.manual_seed(0)
        config = LSTMConfig(kind="attention", features="grid", feature_dim=8, width=16)
        return LSTMCaptioner(config, NumberTokenizer()).eval()
    captioner = make_captioner(case.partition(",")[0]).eval()
    if "copied" in case:
        captioner._shares_prefix = False
    if "recomputed" in case:
        recompute_blocks(captioner)
    return captioner


class Letters:
    def score(self, batch: CaptionBatch) -> list[float | None]:
        return [float(len(caption)) for caption in batch.captions]


def test_the_learner_and_mle_ask_for_it(make_captioner: MakeCaptioner, tiny: TinyData) -> None:
    """Several small batches: after the first one nothing comes to the embedding by autograd."""
    recipe = SCSTRecipe(batch_size=12, lease_size=4, num_samples=4, micro_batch=4, lr=1e-3)
    captioner = make_captioner(tokenizer=tiny.tokenizer, seed=3)
    learner = Learner(captioner, tiny.grid, recipe, {"length": 1.0})
    rollouts = roll_out(captioner, tiny.grid, recipe, {"length": Letters()})
    seen = arriving(captioner.lm.get_input_embeddings().weight)  # type: ignore[operator]
    learner.update(rollouts)
    assert len(seen) == 12
    assert seen[0]
    assert not any(seen[1:])
    seen.clear()
    labelled = LabelledSet(tiny.captions, tiny.tokenizer, 8)
    mle = MLERecipe(batch_size=6, captions_per_image=2, micro_batch=4)
    optimizer = adamw(captioner, lr=1e-3, weight_decay=0.0)
    _step(captioner, labelled, tiny.grid, mle, optimizer, 0, 0, Alone(), torch.float32)
    assert len(seen) == 3
    assert seen[0]
    assert not any(seen[1:])
