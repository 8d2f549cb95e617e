"""The prefix captioner's four verbs against forwards without cache, buckets or shared prefixes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from raycap.errors import RecipeError
from raycap.models import prefix as prefix_module
from raycap.models.build import new_captioner
from raycap.models.precision import computing_in
from raycap.models.prefix import PrefixCaptioner, PrefixConfig, token_logprobs
from raycap.models.tokenizer import WordTokenizer
from raycap.recipe import CaptionerRecipe
from tests.conftest import NumberTokenizer

MakeCaptioner = Callable[..., PrefixCaptioner]
CASES = [
    ("gpt2", "grid", "grid"), ("llama", "grid", "mlp"), ("gpt2", "grid", "transformer"),
    ("llama", "pooled", "mlp"), ("gpt2", "pooled", "transformer"),
]  # fmt: skip


def pictures(features: str, count: int) -> Tensor:
    return torch.randn(count, *([4, 8] if features == "grid" else [8]), generator=torch.Generator().manual_seed(1))


def captions(count: int, width: int = 7) -> tuple[Tensor, Tensor]:
    """Random tokens and masks of every length from 1 to `width`; some tokens inside a caption are not scored."""
    draw = torch.Generator().manual_seed(2)
    tokens = torch.randint(2, 20, (count, width), generator=draw)
    lengths = 1 + torch.arange(count) * 5 % width
    mask = (torch.arange(width) < lengths[:, None]).float()
    mask[(torch.rand(count, width, generator=draw) < 0.15) & (torch.arange(width) + 1 < lengths[:, None])] = 0
    return tokens, mask


def naive(captioner: PrefixCaptioner, features: Tensor, tokens: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """Row by row: prefix and words through one forward, softmax over everything."""
    group = len(tokens) // len(features)
    rows = []
    for n in range(len(tokens)):
        prefix = captioner.encode(features[n // group][None])
        words = captioner.lm.get_input_embeddings()(tokens[n : n + 1])  # type: ignore[operator]
        logits = captioner.lm(inputs_embeds=torch.cat([prefix, words], dim=1), use_cache=False).logits
        logits = logits[0, prefix.shape[1] - 1 : -1] / temperature
        rows.append(torch.log_softmax(logits, dim=-1).gather(1, tokens[n][:, None])[:, 0] * mask[n])
    return torch.stack(rows)


def gradients(captioner: PrefixCaptioner, value: Tensor) -> dict[str, Tensor]:
    captioner.zero_grad()
    value.backward()
    return {name: p.grad.clone() for name, p in captioner.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("lm", "features", "mapping"), CASES)
@pytest.mark.parametrize(
    ("shares", "bucket", "temperature"),
    [(True, 32, 1.0), (True, 32, 1.3), (False, 1, 1.3), (False, 32, 1.0)],
    ids=["shared", "shared, warm", "prefixes copied, four buckets, warm", "prefixes copied"],
)
def test_scores_and_gradients_equal_the_naive_forward(
    make_captioner: MakeCaptioner, monkeypatch: pytest.MonkeyPatch, lm: str, features: str, mapping: str, shares: bool,
    bucket: int, temperature: float,
) -> None:  # fmt: skip
    monkeypatch.setattr(prefix_module, "_BUCKET", bucket)
    captioner = make_captioner(lm, features=features, mapping=mapping)
    captioner._shares_prefix = shares
    shown, (tokens, mask) = pictures(features, 4), captions(12)
    direction = torch.randn(12, 7, generator=torch.Generator().manual_seed(3))
    slow = naive(captioner, shown, tokens, mask, temperature)
    fast = captioner.score(captioner.encode(shown), tokens, mask, temperature)
    assert fast.dtype == torch.float32
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-4)
    assert bool((fast[mask == 0] == 0).all())
    expected, got = gradients(captioner, (slow * direction).sum()), gradients(captioner, (fast * direction).sum())
    assert expected.keys() == got.keys()
    assert any(name.startswith("mapping.") for name in got)
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-4, msg=name)
    mapped = [float(value.abs().max()) for name, value in got.items() if name.startswith("mapping.")]
    assert max(mapped) > 1e-3


@pytest.mark.parametrize("lm", ["gpt2", "llama"])
@pytest.mark.parametrize("shares", [True, False])
def test_entropies_come_beside_the_scores(make_captioner: MakeCaptioner, lm: str, shares: bool) -> None:
    captioner = make_captioner(lm)
    captioner._shares_prefix = shares
    shown, (tokens, mask) = pictures("grid", 4), captions(12)
    direction = torch.randn(12, 7, generator=torch.Generator().manual_seed(3))
    conditioning = captioner.encode(shown)
    rows = torch.cat([conditioning.repeat_interleave(3, dim=0), captioner.lm.get_input_embeddings()(tokens)], dim=1)  # type: ignore[operator]
    logits = captioner.lm(inputs_embeds=rows, use_cache=False).logits[:, conditioning.shape[1] - 1 : -1] / 1.3
    slow = torch.distributions.Categorical(logits=logits).entropy() * mask
    expected = gradients(captioner, (slow * direction).sum())
    logprobs, fast = captioner.score_with_entropy(captioner.encode(shown), tokens, mask, 1.3)
    torch.testing.assert_close(logprobs, captioner.score(captioner.encode(shown), tokens, mask, 1.3))
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-4)
    got = gradients(captioner, (fast * direction).sum())
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        torch.testing.assert_close(got[name], value, rtol=1e-3, atol=1e-4, msg=name)


GROUPED: dict[str, Any] = {"num_key_value_heads": 2, "intermediate_size": 32}
# Prefix and captions take eleven places, the trial takes six: windows of seven are not felt there.
OTHERS: dict[str, dict[str, Any]] = {
    "mistral": {**GROUPED, "sliding_window": 48},
    "mistral, looking back 7": {**GROUPED, "sliding_window": 7},
    "mistral, looking back less than its prefix": {**GROUPED, "sliding_window": 3},
    "qwen2": {**GROUPED, "sliding_window": 7, "use_sliding_window": False},
    "qwen2, looking back 7": {**GROUPED, "sliding_window": 7, "use_sliding_window": True, "max_window_layers": 1},
    "gemma": {"num_key_value_heads": 1, "intermediate_size": 32, "head_dim": 4},
    "gemma2": {"num_key_value_heads": 1, "intermediate_size": 32, "head_dim": 4},  # caps its attention and its logits
    "gemma3_text": {**GROUPED, "head_dim": 4, "sliding_window": 64},
    "gemma3_text, looking back 7": {**GROUPED, "head_dim": 4, "sliding_window": 7, "sliding_window_pattern": 2},
    "llama4_text": {**GROUPED, "intermediate_size_mlp": 32, "head_dim": 4, "num_local_experts": 2, "moe_layers": [],
                    "attention_chunk_size": 7},
    "deepseek_v3": {"num_key_value_heads": 4, "intermediate_size": 32, "q_lora_rank": None, "kv_lora_rank": 8,
                    "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 6, "first_k_dense_replace": 2},
    "gpt_neox": {"intermediate_size": 32},
    "phi": {"intermediate_size": 32},
    "bloom": {"n_layer": 2, "n_head": 4},  # its own attention, by distance
    "opt": {"ffn_dim": 32, "word_embed_proj_dim": 16},
    "falcon": {},
}  # fmt: skip
OF_THEIR_OWN = ("gemma2", "llama4_text", "bloom", "opt", "falcon")


@pytest.mark.parametrize("name", OTHERS)
def test_other_lms_score_and_decode_as_one_forward_does(make_captioner: MakeCaptioner, name: str) -> None:
    """Whether an LM shares its prefixes is found out by trying: it must come out right either way."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 48}
    lm = {"model_type": name.partition(",")[0], **sizes, **OTHERS[name]}
    captioner = make_captioner(lm_config=lm, spread=0.3)
    shown, (tokens, mask) = pictures("grid", 3), captions(6)
    with torch.no_grad():
        conditioning = captioner.encode(shown)
        scores = captioner.score(conditioning, tokens, mask)
        torch.testing.assert_close(scores, naive(captioner, shown, tokens, mask, 1.0), rtol=0, atol=1e-4)
        state = captioner.prefill(conditioning).repeat(2)
        for position in range(7):
            picked = torch.log_softmax(state.readout.logits, dim=1).gather(1, tokens[:, position, None])[:, 0]
            torch.testing.assert_close(picked * mask[:, position], scores[:, position], rtol=0, atol=1e-4)
            _, state = captioner.step(state, tokens[:, position])
    assert captioner.shares_prefix == (name not in OF_THEIR_OWN and "looking back" not in name)


@pytest.mark.parametrize("lm", ["gpt2", "llama"])
def test_whether_prefixes_are_shared_does_not_hang_on_autocast(make_captioner: MakeCaptioner, lm: str) -> None:
    """Its products are off by more than a float32 LM may be: who asks first inside must hear the same."""
    captioner, (tokens, mask) = make_captioner(lm), captions(4)
    with computing_in(torch.bfloat16, torch.device("cpu")):
        captioner.score(captioner.encode(pictures("grid", 4)), tokens, mask)
    assert captioner.shares_prefix


def test_an_lm_that_does_not_number_its_layers_shares_no_prefix(make_captioner: MakeCaptioner) -> None:
    captioner = make_captioner("llama")
    for layer in captioner.lm.model.layers:  # type: ignore[union-attr]
        del layer.self_attn.layer_idx
    assert captioner.shares_prefix is False


@pytest.mark.parametrize(("error", "ends"), [(torch.OutOfMemoryError, True), (KeyboardInterrupt, True),
                                             (RuntimeError, False), (IndexError, False)])  # fmt: skip
def test_a_trial_that_was_cut_short_is_made_again(
    make_captioner: MakeCaptioner, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], ends: bool
) -> None:
    """No room says nothing of the LM; what its attention raises does."""
    captioner = make_captioner()

    def fails(*arguments: Any) -> Any:
        raise error("planted")

    monkeypatch.setattr(captioner, "step", fails)
    if ends:
        with pytest.raises(error):
            _ = captioner.shares_prefix
    else:
        assert captioner.shares_prefix is False
    monkeypatch.undo()
    assert captioner._shares_prefix is (None if ends else False)
    assert captioner.shares_prefix == ends


@pytest.mark.parametrize("lm", ["gpt2", "llama"])
def test_a_row_does_not_depend_on_padding_or_neighbours(make_captioner: MakeCaptioner, lm: str) -> None:
    captioner = make_captioner(lm)
    shown, (tokens, mask) = pictures("grid", 3), captions(9)
    with torch.no_grad():
        scores = captioner.score(captioner.encode(shown), tokens, mask)
        wild = torch.where(mask.flip(1).cummax(dim=1).values.flip(1) > 0, tokens, torch.full_like(tokens, 19))
        torch.testing.assert_close(captioner.score(captioner.encode(shown), wild, mask), scores, rtol=0, atol=1e-5)
        wider = torch.nn.functional.pad(tokens, (0, 5), value=3), torch.nn.functional.pad(mask, (0, 5))
        padded = captioner.score(captioner.encode(shown), *wider)
        torch.testing.assert_close(padded[:, :7], scores, rtol=0, atol=1e-5)
        assert bool((padded[:, 7:] == 0).all())
        for image in range(3):
            rows = slice(3 * image, 3 * image + 3)
            alone = captioner.score(captioner.encode(shown[image : image + 1]), tokens[rows], mask[rows])
            torch.testing.assert_close(alone, scores[rows], rtol=0, atol=1e-5)


def test_a_row_with_nothing_to_score_is_zero(make_captioner: MakeCaptioner) -> None:
    captioner = make_captioner()
    tokens, mask = captions(4)
    mask[1] = 0
    scores = captioner.score(captioner.encode(pictures("grid", 2)), tokens, mask)
    assert scores[1].tolist() == [0] * 7
    assert bool((scores[0][mask[0] > 0] < 0).all())
    none = captioner.score(captioner.encode(pictures("grid", 2)), tokens, torch.zeros_like(mask))
    assert not bool(none.any())


def test_nan_in_logits_of_padding_does_not_leak() -> None:
    logits = torch.randn(2, 3, 5)
    mask = torch.tensor([[1.0, 0, 1], [1, 0, 0]])
    logits[mask == 0] = torch.nan
    logits.requires_grad_()
    got = token_logprobs(logits, torch.zeros(2, 3, dtype=torch.int64), mask)
    got.sum().backward()
    assert bool((got[mask == 0] == 0).all())
    assert bool(torch.isfinite(logits.grad).all())


@pytest.mark.parametrize("lm", ["gpt2", "llama"])
@torch.no_grad()
def test_stepping_equals_one_forward_and_states_select_and_repeat_rows(make_captioner: MakeCaptioner, lm: str) -> None:
    captioner = make_captioner(lm)
    shown, tokens = pictures("grid", 3), captions(6)[0]
    state = captioner.prefill(captioner.encode(shown)).repeat(2)
    logits = [state.readout.logits]
    for position in range(3):
        out, state = captioner.step(state, tokens[:, position])
        assert torch.equal(out.logits, state.readout.logits)
        logits.append(out.logits)
    rows = torch.tensor([5, 0, 0])
    state = state.select(rows)
    out, state = captioner.step(state, tokens[rows, 3])
    for n, row in enumerate(rows.tolist()):
        prefix = captioner.encode(shown[row // 2][None])
        words = captioner.lm.get_input_embeddings()(tokens[row : row + 1, :4])  # type: ignore[operator]
        full = captioner.lm(inputs_embeds=torch.cat([prefix, words], dim=1), use_cache=False).logits[0, 3:]
        torch.testing.assert_close(torch.stack([each[row] for each in logits]), full[:4], rtol=0, atol=1e-4)
        torch.testing.assert_close(out.logits[n], full[4], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("features", "mapping", "length"),
    [("grid", "grid", 4), ("grid", "mlp", 3), ("grid", "transformer", 3), ("pooled", "mlp", 3),
     ("pooled", "transformer", 3)],
)  # fmt: skip
def test_the_prefix_has_its_shape_and_depends_on_the_picture(
    make_captioner: MakeCaptioner, features: str, mapping: str, length: int
) -> None:
    captioner = make_captioner(features=features, mapping=mapping)
    shown = pictures(features, 5)
    prefix = captioner.encode(shown)
    assert prefix.shape == (5, length, 16)
    torch.testing.assert_close(captioner.encode(shown[2:3])[0], prefix[2], rtol=0, atol=1e-6)
    assert float((prefix[0] - prefix[1]).abs().max()) > 1e-3


def test_a_grid_mapping_keeps_its_cells_apart_and_the_transformer_hands_on_its_constants(
    make_captioner: MakeCaptioner,
) -> None:
    shown = pictures("grid", 1)
    changed = shown.clone()
    changed[0, 2] += 1.0 * torch.arange(8)
    cells = make_captioner(mapping="grid")
    moved = (cells.encode(changed) - cells.encode(shown)).abs().amax(dim=2)[0]
    assert [bool(value > 1e-6) for value in moved] == [False, False, True, False]
    transformer = make_captioner(mapping="transformer").mapping
    before = transformer(shown)
    with torch.no_grad():
        transformer.constants[1] += 1.0
    assert float((transformer(shown) - before)[0, 1].abs().max()) > 0.1
    mlp = make_captioner(mapping="mlp")
    torch.testing.assert_close(mlp.encode(shown), mlp.mapping(shown.mean(dim=1)))


def test_feature_dropout_acts_while_training_only(make_captioner: MakeCaptioner) -> None:
    captioner = make_captioner(feature_dropout=0.5)
    shown = pictures("grid", 3)
    assert torch.equal(captioner.encode(shown), captioner.encode(shown))
    captioner.train()
    assert not torch.equal(captioner.encode(shown), captioner.encode(shown))


def test_word_dropout_acts_while_training_only_and_spares_the_targets(make_captioner: MakeCaptioner) -> None:
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    captioner, (tokens, mask) = make_captioner(word_dropout=0.5, lm_config=off), captions(6)
    prefix = captioner.encode(pictures("grid", 6))
    assert torch.equal(captioner.score(prefix, tokens, mask), captioner.score(prefix, tokens, mask))
    whole = captioner.score(prefix, tokens, mask)
    captioner.train()
    dropped = captioner.score(prefix, tokens, mask)
    torch.testing.assert_close(dropped[:, 0], whole[:, 0])  # the first word is read from the prefix alone
    assert not torch.allclose(dropped[:, 1:], whole[:, 1:])
    assert bool((dropped[mask > 0] < 0).all())


def test_a_grid_is_pooled_to_the_cells_that_the_captioner_was_built_for(make_captioner: MakeCaptioner) -> None:
    captioner, plain = make_captioner(grid_size=2), make_captioner()
    shown = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(3))
    pooled = torch.nn.functional.avg_pool2d(shown.transpose(1, 2).reshape(2, 8, 4, 4), 2).flatten(2).transpose(1, 2)
    torch.testing.assert_close(captioner.encode(shown), plain.encode(pooled))
    torch.testing.assert_close(captioner.encode(pooled), plain.encode(pooled))


def test_views_are_drawn_where_they_are_asked_for(make_captioner: MakeCaptioner) -> None:
    shown, captioner = pictures("grid", 3), make_captioner()
    of = {"seed": 1, "positions": [3, 4, 5]}
    assert captioner.windows(shown, crop=0, flip=False, step=2, **of) is shown
    views = [captioner.windows(shown, crop=0, flip=True, step=step, **of) for step in range(6)]
    mirrored = shown[:, [1, 0, 3, 2]]
    for image in range(3):
        seen = [torch.equal(v[image], mirrored[image]) for v in views]
        assert all(m or torch.equal(v[image], shown[image]) for m, v in zip(seen, views, strict=True))
    assert 0 < sum(torch.equal(v[i], mirrored[i]) for v in views for i in range(3)) < 18


def test_a_frozen_lm_gets_no_gradient_and_the_mapping_does(make_captioner: MakeCaptioner) -> None:
    captioner = make_captioner(lm_tuning="frozen")
    tokens, mask = captions(4)
    captioner.score(captioner.encode(pictures("grid", 4)), tokens, mask).sum().backward()
    assert {name.split(".")[0] for name, p in captioner.named_parameters() if p.requires_grad} == {"mapping"}
    assert all(p.grad is None for p in captioner.lm.parameters())
    assert all(p.grad is not None and bool(p.grad.any()) for p in captioner.mapping.parameters())


def test_a_prefix_that_leaves_no_room_for_captions_is_refused() -> None:
    lm = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 30}
    fits = CaptionerRecipe(lm_config=lm, max_length=14, grid_size=4)
    new_captioner(fits, (81, 8), {"a": ["a dog runs"]}, seed=0)
    with pytest.raises(RecipeError, match=r"captioner.lm_config = .* has 30 positions, a prefix of 16 and 15 tokens"):
        new_captioner(fits.model_copy(update={"max_length": 15}), (81, 8), {"a": ["a dog runs"]}, seed=0)
    with pytest.raises(RecipeError, match="a prefix of 81"):
        new_captioner(fits.model_copy(update={"grid_size": None}), (81, 8), {"a": ["a dog runs"]}, seed=0)


@pytest.mark.parametrize(
    ("features", "shape"),
    [("grid", (2, 4, 9)), ("grid", (2, 8)), ("pooled", (2, 7)), ("pooled", (2, 4, 8))],
)
def test_features_of_another_shape_are_refused_by_name(
    make_captioner: MakeCaptioner, features: str, shape: tuple[int, ...]
) -> None:
    captioner = make_captioner(features=features, mapping="mlp")
    with pytest.raises(RecipeError, match=f"{features} features of width 8") as refused:
        captioner.encode(torch.zeros(shape))
    assert refused.value.value == shape


def test_an_lm_that_knows_fewer_tokens_than_its_tokenizer_is_refused(make_captioner: MakeCaptioner) -> None:
    captioner = make_captioner()
    config = PrefixConfig(features="grid", feature_dim=8, mapping="grid", prefix_length=3, lm_source="some/model")
    tokenizer = WordTokenizer([f"w{n}" for n in range(30)])
    with pytest.raises(RecipeError, match="embeds 20 tokens, its tokenizer knows 33") as refused:
        PrefixCaptioner(config, captioner.lm, tokenizer)
    assert (refused.value.key, refused.value.value) == ("captioner.lm", "some/model")


def test_unknown_mappings_and_tunings_are_refused(make_captioner: MakeCaptioner) -> None:
    with pytest.raises(RecipeError, match=r"captioner.mapping = 'lstm'"):
        make_captioner(mapping="lstm")
    with pytest.raises(RecipeError, match=r"captioner.lm_tuning = 'lorra': expected frozen, lora or full"):
        make_captioner(lm_tuning="lorra")


TINY_LM: dict[str, Any] = {"model_type": "gpt2", "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 32}


def build(seed: int = 0, **changed: Any) -> PrefixCaptioner:
    recipe = CaptionerRecipe(**{"lm_config": TINY_LM, **changed})
    return new_captioner(recipe, (4, 8), {"b": ["a red dog"], "a": ["the dog runs"]}, seed=seed)


def test_a_new_captioner_hangs_on_its_seed_alone() -> None:
    first = build()
    torch.rand(7)  # whatever was drawn before
    second, third = build(), build(seed=1)
    assert first.tokenizer.decode([3, 4]) == second.tokenizer.decode([3, 4]) == "dog a"
    own, same, other = (c.state_dict() for c in (first, second, third))
    assert all(torch.equal(own[name], same[name]) for name in own)
    assert not torch.equal(own["mapping.project.weight"], other["mapping.project.weight"])
    assert first.lm.config.eos_token_id == first.tokenizer.eos_id  # type: ignore[union-attr]
    assert first.lm.config.vocab_size == first.tokenizer.vocab_size  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"lm_config": {"model_type": "gpt22"}}, "captioner.lm_config"),
        ({"lm_config": {"n_embd": 16}}, "captioner.lm_config"),
        ({"lm": "/no/such/folder"}, r"captioner.lm = '/no/such/folder'"),
    ],
)
def test_lms_that_cannot_be_built_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        build(**changed)


@pytest.mark.parametrize("lm", ["gpt2", "llama", "llama, prefixes copied"])
def test_gradients_repeat_bit_by_bit_on_several_threads(make_captioner: MakeCaptioner, lm: str) -> None:
    """A sum whose order hangs on which thread comes first makes every run another one, whatever the seed says."""
    wide = {"n_embd": 64} if lm == "gpt2" else {"hidden_size": 64}
    captioner = make_captioner(lm.partition(",")[0], tokenizer=NumberTokenizer(2000), spread=0.05, lm_config=wide)
    captioner._shares_prefix = "copied" not in lm
    draw = torch.Generator().manual_seed(4)
    shown, tokens = torch.randn(8, 4, 8, generator=draw), torch.randint(2, 2000, (200, 9), generator=draw)
    mask = (torch.arange(9) < 3 + torch.arange(200)[:, None] % 7).float()
    torch.set_num_threads(2)
    try:
        first, *others = [
            gradients(captioner, captioner.score(captioner.encode(shown), tokens, mask).sum()) for _ in range(4)
        ]
    finally:
        torch.set_num_threads(1)
    for other in others:
        assert [name for name, value in first.items() if not torch.equal(other[name], value)] == []
