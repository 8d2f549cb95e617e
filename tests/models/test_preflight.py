"""Names that would be refused hours into a run are refused before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from raycap.errors import RecipeError
from raycap.models.preflight import check_models
from raycap.recipe import load_recipe

LM = "captioner.lm_config={model_type: gpt2, n_embd: 32, n_layer: 1, n_head: 2, n_positions: 30}"


@pytest.mark.parametrize("name", ["scenes", "flickr8k", "photos"])
def test_our_recipes_pass(name: str) -> None:
    check_models(load_recipe(name, [], {}))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("features.encoder=resnet51", r"features.encoder = 'resnet51': no such timm model"),
        ("clip.judge={model: ViT-B-33, pretrained: openai}", r"clip.judge.model = 'ViT-B-33'"),
        ("clip.judge={model: ViT-B-32, pretrained: opnai}", r"clip.judge.pretrained = 'opnai'.*tags: openai"),
        ("clip.reward={model: ViT-B-32, pretrained: /nowhere/clip.pt}", r"clip.reward.pretrained = '/nowhere/clip.pt'"),
        ("captioner.lm_config={model_type: gtp2}", r"captioner.lm_config = .*gtp2"),
        ("captioner.lm_config={model_type: vit}", r"captioner.lm_config = .*no causal LM"),
        (LM, r"captioner.lm_config = .*30 positions, a prefix of 25 and 20 tokens"),
        ("captioner.lm=/nowhere/llama", r"captioner.lm = '/nowhere/llama': there is no such folder"),
    ],
)
def test_what_is_not_there_is_named(given: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        check_models(load_recipe("flickr8k", [given], {}))


def test_a_pretrained_lm_is_looked_at_before_anything_is_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its config is a small file: whether the LM is there and has room for prefix and caption is said in seconds."""
    from transformers import GPT2Config

    GPT2Config(n_positions=30, n_embd=8, n_layer=1, n_head=2).save_pretrained(tmp_path / "short")
    GPT2Config(n_positions=64, n_embd=8, n_layer=1, n_head=2).save_pretrained(tmp_path / "long")
    check_models(load_recipe("flickr8k", [f"captioner.lm={tmp_path / 'long'}"], {}))
    with pytest.raises(RecipeError, match=r"captioner.lm = .*30 positions, a prefix of 25 and 20 tokens"):
        check_models(load_recipe("flickr8k", [f"captioner.lm={tmp_path / 'short'}"], {}))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r"captioner.lm = 'long': is a relative path"):
        check_models(load_recipe("flickr8k", ["captioner.lm=long"], {}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RecipeError, match=r"captioner.lm = .*cannot be loaded"):
        check_models(load_recipe("flickr8k", [f"captioner.lm={tmp_path / 'empty'}"], {}))


def test_only_what_the_stages_need_is_looked_at(tmp_path: Path) -> None:
    given = ["features.encoder=resnet51", "captioner.lm=/nowhere/llama", "stages=[prepare]"]
    check_models(load_recipe("flickr8k", given, {}))
    own = tmp_path / "clip.pt"
    own.touch()
    check_models(load_recipe("flickr8k", [f"clip.judge={{model: ViT-B-32, pretrained: {own}}}"], {}))
