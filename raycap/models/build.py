"""Build a captioner: an LM from a config or from pretrained weights, its tokenizer, its mapping."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from raycap.errors import RecipeError
from raycap.models.lora import adapted_layers
from raycap.models.prefix import PrefixCaptioner, PrefixConfig
from raycap.models.tokenizer import HFTokenizer, Tokenizer, WordTokenizer
from raycap.recipe import CaptionerRecipe, VocabularyRecipe


def new_captioner(
    recipe: CaptionerRecipe, feature_shape: Sequence[int], captions: Mapping[str, Sequence[str]], *, seed: int
) -> PrefixCaptioner:
    """A captioner as the recipe says, its random weights from the seed alone.

    Args:
        feature_shape: (G, D) of grid features or (D,) of pooled ones.
        captions: the labelled captions by image; the vocabulary of an LM from scratch is made from these only.
    """
    torch.manual_seed(int(np.random.SeedSequence([seed, 0]).generate_state(1)[0]))
    if recipe.lm:
        lm, tokenizer = lm_from_pretrained(recipe.lm)
        lm_config: dict[str, Any] = {}
    else:
        tokenizer = new_tokenizer(recipe.vocabulary, captions)
        lm, lm_config = lm_from_scratch(recipe.lm_config, tokenizer)
    cells = 1 if len(feature_shape) == 1 else (recipe.grid_size or 0) ** 2 or feature_shape[0]
    _check_positions(recipe, cells if recipe.mapping == "grid" else recipe.prefix_length, lm.config)
    config = PrefixConfig(
        features="grid" if len(feature_shape) == 2 else "pooled",
        feature_dim=feature_shape[-1],
        mapping=recipe.mapping,
        prefix_length=recipe.prefix_length,
        lm_config=lm_config,
        lm_source=recipe.lm or "",
        lm_tuning=recipe.lm_tuning,
        lora=recipe.lora.model_dump() if recipe.lm_tuning == "lora" else {},
        mapping_layers=recipe.mapping_layers,
        mapping_heads=recipe.mapping_heads,
        feature_dropout=recipe.feature_dropout,
        word_dropout=recipe.word_dropout,
        grid_size=recipe.grid_size or 0,
    )
    return PrefixCaptioner(config, lm, tokenizer)


def check_captioner(recipe: CaptionerRecipe, grid_size: int | None = None) -> None:
    """What can be said of the LM before there are features: its kind, its place, its positions, its adapted layers.

    Args:
        grid_size: cells a side of the features, where the recipe says so.

    Raises:
        RecipeError: as `new_captioner` would, hours later.
    """
    if recipe.lm:
        config = _pretrained_config(recipe.lm)
    else:
        values = {key: value for key, value in recipe.lm_config.items() if key != "model_type"}
        config = lm_config_of(recipe.lm_config, values)
    known = (recipe.grid_size or grid_size or 0) ** 2 if recipe.mapping == "grid" else recipe.prefix_length
    if known:
        _check_positions(recipe, known, config)
    if recipe.lm_tuning == "lora":
        adapted_layers(_without_weights(config), recipe.lora.targets)


def _without_weights(config: Any) -> nn.Module:
    """The LM's layers by name and size; however large it is, it takes no memory."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        lm: nn.Module = AutoModelForCausalLM.from_config(config)
    return lm


def _pretrained_config(source: str) -> Any:
    """The config of a pretrained LM: a small file, and there only where the LM is."""
    from transformers import AutoConfig

    folder, remedy = Path(source), "give the folder of a Hugging Face model that every node sees"
    if folder.is_absolute() and not folder.is_dir():
        raise RecipeError("there is no such folder", key="captioner.lm", value=source, remedy=remedy)
    if not folder.is_absolute() and (folder.is_dir() or source.startswith(".")):
        raise RecipeError("is a relative path; a Ray job runs in a disposable copy of the working directory",
                          key="captioner.lm", value=source, remedy=remedy)  # fmt: skip
    try:
        return AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise _not_to_be_had(source, error) from error


def _not_to_be_had(source: str, error: Exception) -> RecipeError:
    return RecipeError(f"cannot be loaded: {str(error).splitlines()[0]}", key="captioner.lm", value=source,
                       remedy="give a model folder on this machine, or a hub name where the hub is reachable",
                       )  # fmt: skip


def _check_positions(recipe: CaptionerRecipe, prefix: int, lm_config: Any) -> None:
    """Prefix and longest caption must find room in the LM, or generation fails in the middle of a run."""
    room = getattr(lm_config, "max_position_embeddings", None)
    if room is not None and prefix + recipe.max_length > room:
        raise RecipeError(
            f"the LM has {room} positions, a prefix of {prefix} and {recipe.max_length} tokens need more",
            key="captioner.lm_config" if not recipe.lm else "captioner.lm", value=recipe.lm or recipe.lm_config,
            remedy="raise n_positions, or lower the grid_size of captioner or features, or captioner.max_length",
        )  # fmt: skip


def new_tokenizer(recipe: VocabularyRecipe, captions: Mapping[str, Sequence[str]]) -> Tokenizer:
    """Word or BPE vocabulary made from the given captions, in the order of their images' ids."""
    texts = [text for image_id in sorted(captions) for text in captions[image_id]]
    if recipe.kind == "word":
        return WordTokenizer.train(texts, min_count=recipe.min_count)
    return HFTokenizer.train_bpe(texts, vocab_size=recipe.size)


def lm_from_scratch(lm_config: dict[str, Any], tokenizer: Tokenizer) -> tuple[nn.Module, dict[str, Any]]:
    """A causal LM of any Hugging Face architecture with random weights (from torch's global generator).

    Args:
        lm_config: `model_type` and the config's own keys; vocabulary and special tokens come from the tokenizer.

    Returns:
        The module and its complete config.
    """
    from transformers import AutoModelForCausalLM

    values = {k: v for k, v in lm_config.items() if k != "model_type"}
    values |= {"vocab_size": tokenizer.vocab_size, "bos_token_id": tokenizer.eos_id,
               "eos_token_id": tokenizer.eos_id, "pad_token_id": None}  # fmt: skip
    config = lm_config_of(lm_config, values)
    lm = AutoModelForCausalLM.from_config(config)
    return lm, {"model_type": lm_config["model_type"], **values}


def lm_config_of(lm_config: Mapping[str, Any], values: Mapping[str, Any]) -> Any:
    """A Hugging Face config of `lm_config["model_type"]` with these values.

    Raises:
        RecipeError: transformers knows no such causal LM, or it takes no such values.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    try:
        config = AutoConfig.for_model(lm_config["model_type"], **values)
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise ValueError(f"{lm_config['model_type']} is no causal LM")
    except (KeyError, ValueError, TypeError) as error:
        raise RecipeError(f"not a causal LM that transformers knows: {error}", key="captioner.lm_config",
                          value=dict(lm_config), remedy="model_type: gpt2, llama, mistral ...") from error  # fmt: skip
    return config


def lm_from_pretrained(source: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Tokenizer]:
    """A pretrained causal LM and its tokenizer by name or path.

    Raises:
        RecipeError: neither a folder here nor to be had from the hub.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        lm = AutoModelForCausalLM.from_pretrained(source, dtype=dtype)
    except (OSError, ValueError) as error:
        raise _not_to_be_had(source, error) from error
    return lm, HFTokenizer(tokenizer, lead=" ")
