"""Adapters against dense matrices worked by hand, and through every path that an LM is called on here."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from raycap.decoding.beam import beam_search
from raycap.decoding.sample import generate
from raycap.errors import CheckpointError, RecipeError
from raycap.models.build import new_captioner
from raycap.models.checkpoint import WEIGHTS, load_captioner, save_captioner
from raycap.models.export import export_captioner
from raycap.models.lora import adapted_layers, is_adapter, merge_adapters
from raycap.models.precision import computing_in, copy_in
from raycap.models.prefix import PrefixCaptioner
from raycap.models.preflight import check_models
from raycap.models.recompute import recompute_blocks
from raycap.models.tokenizer import WordTokenizer
from raycap.models.weights import load_snapshot, snapshot
from raycap.recipe import CaptionerRecipe, load_recipe
from raycap.train.optimizing import adamw
from raycap.types import WeightsId

MakeCaptioner = Callable[..., PrefixCaptioner]
LMS = ["gpt2", "llama"]
RANK, ALPHA = 2, 6.0  # of `make_captioner`
EOS = 1


def pictures(count: int, seed: int = 5) -> Tensor:
    return torch.randn(count, 4, 8, generator=torch.Generator().manual_seed(seed))


def moved(captioner: PrefixCaptioner, seed: int = 9, size: float = 0.3) -> PrefixCaptioner:
    """As if it had learned: the adapters are far from zero."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in captioner.named_parameters():
            if "lora_B" in name:
                parameter.copy_(size * torch.randn(parameter.shape, generator=draw, dtype=parameter.dtype))
    return captioner


def adapted(captioner: PrefixCaptioner) -> dict[str, Any]:
    """Layers with an adapter by name."""
    return {name: layer for name, layer in captioner.lm.named_modules() if hasattr(layer, "lora_A")}


def transposed(layer: Any) -> bool:
    """GPT-2 keeps its weights the other way round, [I, O]."""
    return not isinstance(layer, nn.Linear)


def dense(captioner: PrefixCaptioner, make: Callable[[], PrefixCaptioner]) -> PrefixCaptioner:
    """A captioner without adapters whose weights are W + α/r · B A, computed here."""
    plain = make()
    theirs = dict(captioner.named_parameters())
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            layer, _, kind = name.rpartition(".")
            inside = f"{layer}.base_layer.{kind}"
            parameter.copy_(theirs[inside if inside in theirs else name])
            if inside in theirs and kind == "weight":
                product = theirs[f"{layer}.lora_B.default.weight"] @ theirs[f"{layer}.lora_A.default.weight"]
                whole = ALPHA / RANK * product
                parameter += whole.T if transposed(plain.get_submodule(layer)) else whole
    return plain


def scored(captioner: PrefixCaptioner) -> Tensor:
    """Log-probabilities of nine captions of three pictures."""
    tokens = torch.randint(2, 20, (9, 6), generator=torch.Generator().manual_seed(2))
    mask = (torch.arange(6) < 1 + torch.arange(9)[:, None] % 6).float()
    features = pictures(3).to(next(captioner.parameters()).dtype)
    return captioner.score(captioner.encode(features), tokens, mask)


def gradients(captioner: PrefixCaptioner) -> dict[str, Tensor]:
    captioner.zero_grad()
    scored(captioner).sum().backward()
    return {name: p.grad.clone() for name, p in captioner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lm", LMS)
def test_before_it_learns_it_is_the_lm_itself_bit_by_bit(make_captioner: MakeCaptioner, lm: str) -> None:
    fresh, base = make_captioner(lm, lm_tuning="lora"), make_captioner(lm, lm_tuning="frozen")
    theirs = base.state_dict()
    own = {name.replace(".base_layer", ""): value for name, value in fresh.state_dict().items() if not is_adapter(name)}
    assert own.keys() == theirs.keys()
    assert all(torch.equal(own[name], theirs[name]) for name in own)
    assert all(bool(layer.lora_A["default"].weight.any()) for layer in adapted(fresh).values())
    assert not any(bool(layer.lora_B["default"].weight.any()) for layer in adapted(fresh).values())
    assert torch.equal(scored(fresh), scored(base))
    options: dict[str, Any] = {"num_samples": 3, "greedy": True, "max_length": 8, "seed": 1}
    ours, expected = (generate(each, pictures(5), **options) for each in (fresh, base))
    assert (ours.captions, ours.greedy_captions) == (expected.captions, expected.greedy_captions)
    assert (ours.behavior_logprobs == expected.behavior_logprobs).all()
    assert not torch.equal(scored(moved(fresh)), scored(base))  # or the comparison says nothing


@pytest.mark.parametrize("lm", LMS)
def test_each_layer_multiplies_by_w_and_its_low_rank_product(make_captioner: MakeCaptioner, lm: str) -> None:
    captioner = moved(make_captioner(lm, lm_tuning="lora")).double()
    layers = adapted(captioner)
    assert len(layers) == {"gpt2": 8, "llama": 14}[lm]
    for name, layer in layers.items():
        base, a, b = layer.base_layer, layer.lora_A["default"].weight, layer.lora_B["default"].weight
        weight = base.weight.T if transposed(base) else base.weight
        assert (a.shape, b.shape) == ((RANK, weight.shape[1]), (weight.shape[0], RANK))
        x = torch.randn(3, 5, weight.shape[1], dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        expected = x @ (weight + ALPHA / RANK * b @ a).T
        bias = getattr(base, "bias", None)
        expected = expected if bias is None else expected + bias
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12, msg=name)


@pytest.mark.parametrize("lm", LMS)
@pytest.mark.parametrize("shares", [True, False], ids=["shared", "prefixes copied"])
def test_scores_and_gradients_are_those_of_the_dense_matrices(
    make_captioner: MakeCaptioner, lm: str, shares: bool
) -> None:
    """With W' = W + α/r · B A: dL/dB = α/r · dL/dW' Aᵀ and dL/dA = α/r · Bᵀ dL/dW'."""
    captioner = moved(make_captioner(lm, lm_tuning="lora")).double()
    plain = dense(captioner, lambda: make_captioner(lm).double())
    captioner._shares_prefix = plain._shares_prefix = shares
    torch.testing.assert_close(scored(captioner), scored(plain), rtol=0, atol=1e-6)  # float32 at its end
    ours, theirs = gradients(captioner), gradients(plain)
    assert {name for name in ours if not name.startswith("mapping.")} == set(filter(is_adapter, ours))
    for name in filter(lambda name: name.startswith("mapping."), theirs):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=1e-7, msg=name)
    for name, layer in adapted(captioner).items():
        slope = theirs[f"lm.{name}.weight"]
        slope = ALPHA / RANK * (slope.T if transposed(layer.base_layer) else slope)
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        for part, expected in (("A", b.T @ slope), ("B", slope @ a.T)):
            got = ours[f"lm.{name}.lora_{part}.default.weight"]
            assert bool(got.any())
            torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7, msg=f"{name} {part}")


@pytest.mark.parametrize("lm", LMS)
@pytest.mark.parametrize("shares", [True, False], ids=["shared", "prefixes copied"])
@torch.no_grad()
def test_what_is_decoded_is_what_a_plain_forward_says(make_captioner: MakeCaptioner, lm: str, shares: bool) -> None:
    """Greedy tokens one by one from forwards without any cache; log-probabilities of samples from `score`."""
    captioner = moved(make_captioner(lm, lm_tuning="lora", spread=0.6))
    captioner._shares_prefix = shares
    shown, words = pictures(6), captioner.lm.get_input_embeddings()  # type: ignore[operator]
    made = generate(captioner, shown, num_samples=3, greedy=True, max_length=8, seed=4)
    for picture, caption in zip(shown, made.greedy_captions, strict=True):
        said: list[int] = []
        while len(said) < 8 and EOS not in said:
            prefix = captioner.encode(picture[None])
            inputs = torch.cat([prefix, words(torch.tensor([said], dtype=torch.int64))], dim=1)
            said.append(int(captioner.lm(inputs_embeds=inputs, use_cache=False).logits[0, -1].argmax()))
        assert caption == captioner.tokenizer.decode(said)
    tokens = torch.from_numpy(made.tokens)
    mask = (torch.arange(tokens.shape[1]) < torch.from_numpy(made.lengths)[:, None]).float()
    again = captioner.score(captioner.encode(shown), tokens, mask)
    torch.testing.assert_close(again, torch.from_numpy(made.behavior_logprobs), rtol=0, atol=1e-5)
    without = generate(make_captioner(lm, lm_tuning="frozen", spread=0.6), shown, num_samples=0, greedy=True,
                       max_length=8)  # fmt: skip
    assert made.greedy_captions != without.greedy_captions, "the adapters say nothing here"


def test_its_captions_share_their_prefix_and_its_blocks_recompute(make_captioner: MakeCaptioner) -> None:
    kept, again = (moved(make_captioner("llama", lm_tuning="lora")) for _ in range(2))
    assert kept.shares_prefix
    assert recompute_blocks(again) == 2
    expected, got = gradients(kept), gradients(again)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, msg=name)


def test_it_learns_and_generates_in_bfloat16(make_captioner: MakeCaptioner) -> None:
    captioner = moved(make_captioner("llama", lm_tuning="lora", spread=0.2))
    plain = dense(captioner, lambda: make_captioner("llama"))

    def roughness(of: PrefixCaptioner) -> float:
        """How far bfloat16 moves the gradients that both have."""
        exact = gradients(of)
        with computing_in(torch.bfloat16, torch.device("cpu")):
            rough = gradients(of)
        assert rough.keys() == exact.keys()
        assert all(value.dtype == torch.float32 for value in rough.values())
        before, after = (torch.cat([each[name].reshape(-1) for name in each if name.startswith("mapping.")])
                         for each in (exact, rough))  # fmt: skip
        return float((before - after).norm() / before.norm())

    assert 0 < roughness(captioner) < 2 * roughness(plain) < 0.3
    actor = copy_in(torch.bfloat16, captioner)
    made = generate(actor, pictures(3), num_samples=3, greedy=True, max_length=6)
    tokens = torch.from_numpy(made.tokens)
    mask = (torch.arange(tokens.shape[1]) < torch.from_numpy(made.lengths)[:, None]).float()
    with torch.no_grad():
        again = captioner.score(captioner.encode(pictures(3)), tokens, mask)
    assert float((again - torch.from_numpy(made.behavior_logprobs)).abs().max()) < 0.2


@pytest.mark.parametrize("lm", LMS)
def test_a_step_changes_adapters_and_mapping_alone(make_captioner: MakeCaptioner, lm: str) -> None:
    captioner = make_captioner(lm, lm_tuning="lora")
    optimizer = adamw(captioner, lr=1e-2, weight_decay=0.01)
    before = {name: value.clone() for name, value in captioner.state_dict().items()}
    for _ in range(2):  # while B is zero, A has no gradient
        gradients(captioner)
        optimizer.step()
    changed = {name for name, value in captioner.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith("mapping.") or is_adapter(name)}


def test_adapters_drop_out_in_training_mode_alone(make_captioner: MakeCaptioner) -> None:
    settings = {"rank": 2, "alpha": 6.0, "dropout": 0.5, "targets": None}
    captioner = moved(make_captioner(lm_tuning="lora", lora=settings, lm_config={"resid_pdrop": 0.0, "attn_pdrop": 0.0,
                                     "embd_pdrop": 0.0}))  # fmt: skip
    assert torch.equal(scored(captioner), scored(captioner))
    whole = scored(captioner)
    captioner.train()
    assert not torch.equal(scored(captioner), whole)
    assert torch.equal(scored(captioner.eval()), whole)


def size(captioner: PrefixCaptioner) -> int:
    return sum(p.numel() for p in captioner.parameters())


def test_adapters_and_mapping_are_what_is_published(make_captioner: MakeCaptioner) -> None:
    """8 bytes a unit of width and layer: r = 2 of A's columns and B's rows, in float32."""
    settings = {"rank": 2, "alpha": 6.0, "dropout": 0.0, "targets": ["q_proj", "v_proj"]}
    learner = moved(make_captioner("llama", lm_tuning="lora", lora=settings))
    whole, published = snapshot(make_captioner("llama"), WeightsId(0, 0)), snapshot(learner, WeightsId(0, 0))
    names = {entry.name for entry in published.manifest}
    assert {name.split(".")[0] for name in names if not is_adapter(name)} == {"mapping"}
    mapping = 4 * sum(p.numel() for p in learner.mapping.parameters())
    # two layers of: q_proj 16 → 16, v_proj 16 → 8
    assert sum(entry.nbytes for entry in published.manifest) == mapping + 2 * (2 * 4) * ((16 + 16) + (16 + 8))
    assert sum(entry.nbytes for entry in whole.manifest) == 4 * size(make_captioner("llama"))
    assert published.nbytes < whole.nbytes / 4
    worker = make_captioner("llama", lm_tuning="lora", lora=settings)
    load_snapshot(worker, published)
    assert torch.equal(scored(worker), scored(learner))
    with pytest.raises(CheckpointError, match="of another model"):
        load_snapshot(make_captioner("llama"), published)


def recipe_of(lm: Path | None, **lora: Any) -> CaptionerRecipe:
    values: dict[str, Any] = {"lm_config": {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2}}
    return CaptionerRecipe(**values, lm=str(lm) if lm else None, lm_tuning="lora", lora={"rank": 2, "alpha": 4, **lora})


def build(lm: Path | None, seed: int = 0, **lora: Any) -> PrefixCaptioner:
    return new_captioner(recipe_of(lm, **lora), (4, 8), {"a": ["a red dog runs", "two cats"]}, seed=seed).eval()


def test_a_hangs_on_the_seed_and_no_two_layers_have_the_same(pretrained_lm: Path) -> None:
    first = build(pretrained_lm)
    torch.rand(7)  # whatever was drawn before
    second, third = build(pretrained_lm), build(pretrained_lm, seed=1)
    assert all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())
    drawn = [layer.lora_A["default"].weight for each in (first, third) for layer in adapted(each).values()]
    rows = [row for a in drawn for row in a.detach()]
    assert len({tuple(row[:8].tolist()) for row in rows}) == len(rows)


@pytest.mark.parametrize("scratch", [True, False])
def test_a_checkpoint_holds_what_was_trained(tmp_path: Path, pretrained_lm: Path, scratch: bool) -> None:
    captioner = moved(build(None if scratch else pretrained_lm))
    save_captioner(tmp_path / "best", captioner, {})
    stored = load_file(tmp_path / "best" / WEIGHTS)
    assert any(map(is_adapter, stored))
    assert any(name.startswith("lm.") and not is_adapter(name) for name in stored) == scratch
    torch.manual_seed(77)
    again = load_captioner(tmp_path / "best")
    assert again.config == captioner.config
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in captioner.state_dict().items())
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in captioner.parameters()]


def test_adapters_are_not_put_beside_another_lm(tmp_path: Path, pretrained_lm: Path) -> None:
    lm = shutil.copytree(pretrained_lm, tmp_path / "lm")
    save_captioner(tmp_path / "best", build(lm), {})
    shutil.move(lm, tmp_path / "elsewhere")
    with pytest.raises(RecipeError, match=r"captioner\.lm = .*cannot be loaded"):
        load_captioner(tmp_path / "best")
    shutil.copytree(tmp_path / "elsewhere", lm)
    load_captioner(tmp_path / "best")
    other: Any = build(lm).lm
    merge_adapters(other)
    with torch.no_grad():
        other.transformer.h[0].mlp.c_fc.weight *= 1.02
    other.save_pretrained(lm)
    with pytest.raises(CheckpointError, match=r"captioner\.lm = .*trained on.*an export"):
        load_captioner(tmp_path / "best")


@pytest.mark.parametrize("scratch", [True, False])
def test_an_export_is_a_plain_model_that_says_the_same(
    tmp_path: Path, pretrained_lm: Path, monkeypatch: pytest.MonkeyPatch, scratch: bool
) -> None:
    lm = None if scratch else shutil.copytree(pretrained_lm, tmp_path / "lm")
    captioner = moved(build(lm))
    values = load_recipe("flickr8k", [f"captioner.lm={lm or 'null'}", "captioner.lm_tuning=lora"], {})
    save_captioner(tmp_path / "run" / "best", captioner, {"recipe": values.model_dump(mode="json")})
    folder = export_captioner(tmp_path / "run", tmp_path / "export")
    if lm:
        shutil.rmtree(lm)
    assert captioner.config.lm_tuning == "lora"  # the export merges a captioner of its own
    monkeypatch.setitem(sys.modules, "peft", None)
    plain = load_captioner(folder)
    assert plain.config.lm_tuning == ("full" if scratch else "frozen")
    assert not any(map(is_adapter, plain.state_dict()))
    assert scratch == any(name.startswith("lm.") for name in load_file(folder / WEIGHTS))
    options: dict[str, Any] = {"num_samples": 3, "greedy": True, "max_length": 8, "seed": 4}
    ours, theirs = (generate(each, pictures(8), **options) for each in (captioner, plain))
    assert (ours.captions, ours.greedy_captions) == (theirs.captions, theirs.greedy_captions)
    torch.testing.assert_close(
        torch.from_numpy(theirs.behavior_logprobs), torch.from_numpy(ours.behavior_logprobs), rtol=0, atol=1e-5
    )
    beams = [[text for text, _ in beam_search(each, pictures(8), beam_size=3, max_length=8)]
             for each in (captioner, plain)]  # fmt: skip
    assert beams[0] == beams[1]
    assert len(set(ours.captions)) > 3
    with torch.no_grad():
        for name, layer in adapted(captioner).items():
            layer.lora_B["default"].weight.zero_()
            assert name
    assert generate(captioner, pictures(8), **options).captions != theirs.captions, "the adapters say nothing here"


def test_broken_adapters_are_not_merged(tmp_path: Path, pretrained_lm: Path) -> None:
    captioner = moved(build(pretrained_lm))
    with torch.no_grad():
        next(iter(adapted(captioner).values())).lora_A["default"].weight[0, 0] = torch.nan
    values = load_recipe("flickr8k", [f"captioner.lm={pretrained_lm}", "captioner.lm_tuning=lora"], {})
    save_captioner(tmp_path / "best", captioner, {"recipe": values.model_dump(mode="json")})
    with pytest.raises(CheckpointError, match=r"checkpoint = .*best.*not finite"):
        export_captioner(tmp_path, tmp_path.parent / "export")


@pytest.mark.parametrize(
    ("targets", "names"),
    [
        (["q_proj", "v_proj"], {f"model.layers.{n}.self_attn.{kind}_proj" for n in (0, 1) for kind in "qv"}),
        (["1.mlp.down_proj"], {"model.layers.1.mlp.down_proj"}),
        (["mlp.up_proj", "self_attn.o_proj"], {f"model.layers.{n}.{rest}" for n in (0, 1)
                                               for rest in ("mlp.up_proj", "self_attn.o_proj")}),
    ],
)  # fmt: skip
def test_targets_are_ends_of_names(make_captioner: MakeCaptioner, targets: list[str], names: set[str]) -> None:
    captioner = make_captioner("llama", lm_tuning="lora", lora={"rank": 2, "alpha": 1.0, "dropout": 0.0,
                               "targets": targets})  # fmt: skip
    assert set(adapted(captioner)) == names


def test_all_linear_layers_of_the_blocks_and_no_other() -> None:
    """OPT has linear layers in front of its blocks and behind them."""
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(hidden_size=16, ffn_dim=32, word_embed_proj_dim=8, num_hidden_layers=1, num_attention_heads=2,
                       vocab_size=20)  # fmt: skip
    found = adapted_layers(OPTForCausalLM(config), None)
    kinds = ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj", "fc1", "fc2")
    assert found == [f"model.decoder.layers.0.{kind}" for kind in kinds]


@pytest.mark.parametrize("target", ["lorra", "c_att", "lm_head", "wte", "ln_1", "attn"])
def test_a_target_that_is_no_layer_of_the_blocks_is_refused(make_captioner: MakeCaptioner, target: str) -> None:
    given = {"rank": 2, "alpha": 1.0, "dropout": 0.0, "targets": ["c_attn", target]}
    with pytest.raises(RecipeError, match=rf"captioner\.lora\.targets = .*called {target} .*c_attn, c_fc, c_proj"):
        make_captioner("gpt2", lm_tuning="lora", lora=given)


def test_an_lm_without_blocks_of_linear_layers_is_refused(make_captioner: MakeCaptioner) -> None:
    lm: Any = make_captioner("gpt2").lm
    lm.transformer.h = nn.ModuleList()
    with pytest.raises(RecipeError, match=r"captioner\.lm_tuning = 'lora': .*no blocks.*full or frozen"):
        adapted_layers(lm, None)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("rank=0", r"captioner\.lora\.rank = 0: .*greater than or equal to 1"),
        ("alpha=0", r"captioner\.lora\.alpha = 0: .*greater than 0"),
        ("dropout=1", r"captioner\.lora\.dropout = 1: .*less than 1"),
        ("targets=[]", r"captioner\.lora\.targets = \[\]: .*at least 1"),
        ("r=8", r"captioner\.lora\.r = 8: no such key \(.*rank"),
        ("targets=[q_proj]", r"captioner\.lora\.targets = \['q_proj'\]: .*c_attn, c_fc, c_proj"),
    ],
)
def test_bad_values_are_refused_before_a_run(given: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_models(load_recipe("flickr8k", ["captioner.lm_tuning=lora", f"captioner.lora.{given}"], {}))


def test_good_values_pass_before_a_run(pretrained_lm: Path) -> None:
    check_models(load_recipe("flickr8k", ["captioner.lm_tuning=lora"], {}))
    given = [f"captioner.lm={pretrained_lm}", "captioner.lm_tuning=lora", "captioner.lora.targets=[c_attn]"]
    check_models(load_recipe("flickr8k", given, {}))


def test_words_travel_with_adapters(tmp_path: Path, make_captioner: MakeCaptioner) -> None:
    """An LM from scratch with adapters needs nothing beside its folder."""
    words = WordTokenizer(["a", "red", "dog", "runs"])
    captioner = moved(make_captioner("llama", lm_tuning="lora", tokenizer=words))
    save_captioner(tmp_path / "here", captioner, {})
    again = load_captioner(shutil.move(tmp_path / "here", tmp_path / "there"))
    options: dict[str, Any] = {"num_samples": 2, "greedy": True, "max_length": 6, "seed": 3}
    ours, theirs = (generate(each, pictures(4), **options) for each in (captioner, again))
    assert ours.captions == theirs.captions
    assert (ours.behavior_logprobs == theirs.behavior_logprobs).all()
