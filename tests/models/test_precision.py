"""bfloat16 is taken where it is measured to be faster, and then in every part that multiplies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from raycap.decoding.sample import generate
from raycap.models import precision
from raycap.models.precision import computing_in, copy_in, measure_precision, recorded_precision, refresh
from raycap.models.prefix import PrefixCaptioner

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
    assert found["float32_gflops"] > 0.1


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
