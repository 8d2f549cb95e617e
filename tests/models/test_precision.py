"""bfloat16 is taken where it is measured to be faster, and then in every part that multiplies."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from raycap.cluster import rollout_worker
from raycap.cluster.reward_pool import RewardPools
from raycap.decoding.sample import generate
from raycap.models import precision
from raycap.models.precision import cast_in, computing_in, copy_in, measure_precision, recorded_precision, refresh
from raycap.models.prefix import PrefixCaptioner
from raycap.recipe import SCSTRecipe
from tests.conftest import TinyData

MakeCaptioner = Callable[..., PrefixCaptioner]


@pytest.mark.parametrize(
    ("small", "large", "chosen"),
    [(2.0, 2.0, "bfloat16"), (1.0, 1.4, "bfloat16"), (1.0, 1.2, "float32"), (1 / 500, None, "float32")],
)
def test_the_faster_type_is_chosen(
    monkeypatch: pytest.MonkeyPatch, small: float, large: float | None, chosen: str
) -> None:
    """Speeds of bfloat16 as multiples of float32's; the last machine has no instructions for it."""
    asked = []

    def gflops(device: str, dtype: torch.dtype, rows: int, width: int) -> float:
        asked.append((dtype, rows))
        if dtype == torch.float32:
            return 100.0
        factor = small if rows == 32 else large
        assert factor is not None, "half an hour for a product that is known to lose"
        return 100.0 * factor

    monkeypatch.setattr(precision, "_gflops", gflops)
    assert measure_precision("cpu")["dtype"] == chosen


def test_a_real_measurement_gives_speeds() -> None:
    found = measure_precision("cpu")
    assert found["dtype"] in ("float32", "bfloat16")
    assert found["float32_gflops"] > 0
    assert math.isfinite(found["float32_gflops"])


def test_the_first_measurement_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "precision.json"
    assert recorded_precision(file, lambda: {"dtype": "bfloat16"}) == {"dtype": "bfloat16"}
    assert recorded_precision(file, lambda: {"dtype": "float32"}) == {"dtype": "bfloat16"}
    assert json.loads(file.read_text()) == {"dtype": "bfloat16"}


@pytest.mark.parametrize("lm", ["gpt2", "llama"])
def test_a_captioner_learns_and_generates_in_bfloat16(make_captioner: MakeCaptioner, lm: str) -> None:
    captioner = make_captioner(lm, spread=0.2)
    draw = torch.Generator().manual_seed(1)
    shown, tokens, mask = torch.randn(3, 4, 8, generator=draw), torch.full((6, 5), 3), torch.ones(6, 5)
    exact = captioner.score(captioner.encode(shown), tokens, mask)
    with computing_in(torch.bfloat16, torch.device("cpu")):
        rough = captioner.score(captioner.encode(shown), tokens, mask)
    assert rough.dtype == torch.float32
    assert 0 < float((rough - exact).detach().abs().max()) < 0.1
    rough.sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in captioner.parameters() if p.grad is not None)
    assert captioner.lm.get_input_embeddings().weight.grad is not None  # type: ignore[operator]

    actor = copy_in(torch.bfloat16, captioner)
    assert actor is not captioner
    assert copy_in(torch.float32, captioner) is captioner
    made = generate(actor, shown, num_samples=2, greedy=True, max_length=6)
    assert made.behavior_logprobs.dtype.name == "float32"
    scored = captioner.score(captioner.encode(shown), torch.from_numpy(made.tokens), torch.from_numpy(
        (made.behavior_logprobs != 0).astype("float32")))  # fmt: skip
    assert float((scored.detach() - torch.from_numpy(made.behavior_logprobs)).abs().max()) < 0.2
    with torch.no_grad():
        for parameter in captioner.parameters():
            parameter.add_(0.5)
    refresh(actor, captioner)
    pairs = zip(actor.parameters(), captioner.parameters(), strict=True)
    assert all(torch.equal(a, b.bfloat16()) for a, b in pairs)


def planted(*arguments: Any) -> Any:
    raise AssertionError("a parameter was copied in its own type")


@pytest.mark.parametrize("make", [copy_in, cast_in])
def test_parameters_are_cast_and_buffers_are_not(
    make_captioner: MakeCaptioner, monkeypatch: pytest.MonkeyPatch, make: Callable[..., PrefixCaptioner]
) -> None:
    captioner = make_captioner("llama", lm_config={"tie_word_embeddings": True})
    expected = {name: p.detach().bfloat16() for name, p in captioner.named_parameters()}
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", planted)  # beside the module and its cast there is no third
    actor = make(torch.bfloat16, captioner)
    assert (actor is captioner) == (make is cast_in)
    got = dict(actor.named_parameters())
    assert got.keys() == expected.keys()
    assert all(got[name].dtype == torch.bfloat16 and torch.equal(got[name], value) for name, value in expected.items())
    assert actor.lm.get_output_embeddings().weight is actor.lm.get_input_embeddings().weight  # type: ignore[operator]
    assert actor.lm.model.rotary_emb.inv_freq.dtype == torch.float32  # type: ignore[union-attr]
    if make is copy_in:
        assert {p.dtype for p in captioner.parameters()} == {torch.float32}
        own = {p.data_ptr() for p in captioner.parameters()}
        assert not own & {p.data_ptr() for p in actor.parameters()}


@torch.no_grad()
def test_a_copy_in_bfloat16_knows_far_positions_as_well_as_near_ones(make_captioner: MakeCaptioner) -> None:
    """Against the float32 model under autocast; an attention that looks sharply, so that angles count."""
    wide = {"hidden_size": 128, "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1}
    captioner = make_captioner("llama", spread=0.05, lm_config={**wide, "max_position_embeddings": 512})
    attention = captioner.lm.model.layers[0].self_attn  # type: ignore[union-attr]
    attention.q_proj.weight.mul_(8)
    attention.o_proj.weight.mul_(4)
    tokens = torch.randint(2, 20, (8, 480), generator=torch.Generator().manual_seed(1))

    def logits(of: PrefixCaptioner) -> Tensor:
        return of.lm(input_ids=tokens, use_cache=False).logits.float()

    with computing_in(torch.bfloat16, torch.device("cpu")):
        expected = logits(captioner)
    off = (logits(copy_in(torch.bfloat16, captioner)) - expected).pow(2).mean(dim=(0, 2)).sqrt()
    near, far = float(off[1:40].mean()), float(off[80:].mean())
    assert far < 1.5 * near


def test_a_rollout_actor_holds_one_captioner_and_casts_it_before_the_device_sees_it(
    make_captioner: MakeCaptioner, monkeypatch: pytest.MonkeyPatch, tiny: TinyData, tmp_path: Path
) -> None:
    captioner, moved = make_captioner("llama"), []
    plain = captioner.to

    def to(device: Any) -> PrefixCaptioner:
        moved.extend(p.dtype for p in captioner.parameters())
        return plain(device)

    monkeypatch.setattr(captioner, "to", to)
    monkeypatch.setattr(rollout_worker, "load_captioner", lambda folder: captioner)
    monkeypatch.setattr(precision.copy, "deepcopy", planted)
    actor = rollout_worker.RolloutActor(
        "rollout-0", str(tmp_path), str(tiny.grid.folder), SCSTRecipe(), RewardPools({}), max_length=5, seed=0,
        threads=1, device="cpu", precision="bfloat16",
    )  # fmt: skip
    assert actor.worker.captioner is captioner
    assert set(moved) == {torch.bfloat16}
