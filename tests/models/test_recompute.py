"""Blocks that compute their activations again: the same gradients, in evaluation mode and with dropout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from raycap.errors import RecipeError
from raycap.models.prefix import PrefixCaptioner
from raycap.models.recompute import recompute_blocks

MakeCaptioner = Callable[..., PrefixCaptioner]


def scored(captioner: PrefixCaptioner, training: bool) -> tuple[Tensor, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    shown, tokens = torch.randn(3, 4, 8, generator=draw), torch.randint(2, 20, (6, 5), generator=draw)
    captioner.train(training)
    torch.manual_seed(5)  # of dropout
    logprobs = captioner.score(captioner.encode(shown), tokens, torch.ones(6, 5))
    captioner.zero_grad()
    logprobs.sum().backward()
    return logprobs.detach(), {name: p.grad.clone() for name, p in captioner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("lm", ["gpt2", "llama"])
def test_gradients_are_those_of_kept_activations(make_captioner: MakeCaptioner, lm: str, training: bool) -> None:
    kept, again = make_captioner(lm), make_captioner(lm)
    assert recompute_blocks(again) == 2
    expected, got = scored(kept, training), scored(again, training)
    torch.testing.assert_close(got[0], expected[0])
    assert got[1].keys() == expected[1].keys()
    for name, value in expected[1].items():
        torch.testing.assert_close(got[1][name], value, msg=name)


def test_blocks_run_again_for_the_gradient_and_only_then(make_captioner: MakeCaptioner) -> None:
    captioner, runs = make_captioner("llama"), []
    recompute_blocks(captioner)
    mlp = captioner.lm.model.layers[0].mlp  # type: ignore[union-attr]
    mlp.register_forward_pre_hook(lambda *_: runs.append(1))  # the second run ends when it has what is missing
    with torch.no_grad():
        captioner.score(captioner.encode(torch.zeros(1, 4, 8)), torch.ones(1, 3).long(), torch.ones(1, 3))
    assert len(runs) == 2  # prefix and caption
    scored(captioner, training=False)
    assert len(runs) == 2 + 4


def test_an_lm_whose_blocks_write_into_a_cache_is_refused(make_captioner: MakeCaptioner) -> None:
    captioner = make_captioner()
    captioner._shares_prefix = False
    with pytest.raises(RecipeError, match=r"cluster\.learner_recompute.*cache of its own"):
        recompute_blocks(captioner)


def test_an_lm_that_does_not_name_its_blocks_is_refused(make_captioner: MakeCaptioner) -> None:
    captioner = make_captioner()
    captioner.lm.transformer.h = torch.nn.ModuleList()  # type: ignore[union-attr]
    with pytest.raises(RecipeError, match=r"cluster\.learner_recompute.*what its blocks are"):
        recompute_blocks(captioner)
