"""The prefix captioner: a causal LM of Hugging Face that reads an image as a few embeddings before the caption.

Source: ClipCap (Mokady et al. 2021), the model of HAR (eq. 1) and of the self-supervised paper (sec. 2.2). The prefix
of an image is run once, whatever the number of its captions: their rows share its keys and values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from raycap.errors import RecipeError
from raycap.models.grid import pool_grid, random_windows
from raycap.models.mapping import GridMapping, MLPMapping, TransformerMapping
from raycap.models.tokenizer import Tokenizer

MAPPINGS = ("grid", "mlp", "transformer")


@dataclass(frozen=True)
class PrefixConfig:
    """Everything that is needed to build the module again; stored beside its weights.

    Attributes:
        features: `grid` [G, D] or `pooled` [D].
        feature_dim: D.
        mapping: grid, mlp or transformer.
        prefix_length: P of mlp and transformer; the grid mapping has one a cell.
        lm_config: a Hugging Face config as a dict, `model_type` included.
        lm_source: name or path of pretrained weights; empty when trained from scratch.
        lm_tuning: `full` or `frozen`.
        feature_dropout: on the features (grid mapping), word_dropout: on whole words that are read, while it trains.
        grid_size: a grid is pooled to this many cells a side; 0 leaves it as it comes.
    """

    features: str
    feature_dim: int
    mapping: str
    prefix_length: int
    lm_config: dict[str, Any] = field(default_factory=dict)
    lm_source: str = ""
    lm_tuning: str = "full"
    mapping_layers: int = 2
    mapping_heads: int = 4
    feature_dropout: float = 0.0
    word_dropout: float = 0.0
    grid_size: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class PrefixState:
    """Keys and values of N rows, and the logits [N, V] of their next token."""

    cache: Any
    logits: Tensor

    def select(self, rows: Tensor) -> PrefixState:
        # A step writes into the cache it was given, so a state that is selected from must not be used again.
        self.cache.batch_select_indices(rows)
        return PrefixState(self.cache, self.logits.index_select(0, rows))

    def repeat(self, times: int) -> PrefixState:
        self.cache.batch_repeat_interleave(times)
        return PrefixState(self.cache, self.logits.repeat_interleave(times, dim=0))


class PrefixCaptioner(nn.Module):
    """A visual prefix and a causal LM behind the four verbs of `Captioner`."""

    def __init__(self, config: PrefixConfig, lm: nn.Module, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config, self.lm, self.tokenizer = config, lm, tokenizer
        _check_vocabulary(lm, tokenizer, config.lm_source)
        hidden = lm.get_input_embeddings().embedding_dim  # type: ignore[operator]
        self.mapping = _build_mapping(config, hidden)
        if config.lm_tuning == "frozen":
            lm.requires_grad_(False)
        elif config.lm_tuning != "full":
            raise RecipeError("expected frozen or full", key="captioner.lm_tuning", value=config.lm_tuning)

    def encode(self, features: Tensor) -> Tensor:
        """Features [B, D] or [B, G, D] → prefix embeddings [B, P, H]."""
        expected = 2 if self.config.features == "pooled" else 3
        if features.dim() != expected or features.shape[-1] != self.config.feature_dim:
            raise RecipeError(
                f"the captioner was built for {self.config.features} features of width {self.config.feature_dim}",
                key="features", value=tuple(features.shape), remedy="extract the features it was trained with",
            )  # fmt: skip
        if self.config.grid_size:
            features = pool_grid(features, self.config.grid_size)
        return self.mapping(features)

    def windows(
        self, features: Tensor, *, crop: int, flip: bool, seed: int, step: int, positions: Sequence[int]
    ) -> Tensor:
        """A random window of each image's grid to train on; the features themselves without crop and flip.

        Args:
            features: [B, D] or [B, G, D].
            positions: length B; a window is a function of (seed, step, position).
        """
        if not (crop or flip):
            return features
        size = self.config.grid_size or None
        return random_windows(features, size, crop=crop, flip=flip, seed=seed, step=step, positions=positions)

    def prefill(self, conditioning: Tensor) -> PrefixState:
        output = self.lm(inputs_embeds=conditioning, use_cache=True, logits_to_keep=1)
        return PrefixState(output.past_key_values, output.logits[:, -1])

    def step(self, state: PrefixState, tokens: Tensor) -> tuple[Tensor, PrefixState]:
        output = self.lm(input_ids=tokens[:, None], past_key_values=state.cache, use_cache=True)
        logits = output.logits[:, -1]
        return logits, PrefixState(output.past_key_values, logits)

    def score(self, conditioning: Tensor, tokens: Tensor, loss_mask: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probabilities of `tokens` under softmax(logits / temperature).

        Args:
            conditioning: prefix [B, P, H]; row n belongs to image n // (N/B).
            tokens: int64 [N, T], right-padded.
            loss_mask: [N, T], 0 where nothing is to be scored (padding may hold any id).

        Returns:
            float32 [N, T], 0 outside the mask.
        """
        prefix = self.prefill(conditioning)
        image_of_row = torch.arange(len(tokens), device=tokens.device) // (len(tokens) // conditioning.shape[0])
        lengths = _lengths(loss_mask)
        # Rows of like length together: short captions are not carried along to the longest one's end.
        buckets = torch.argsort(lengths, stable=True).split(max(_BUCKET, -(-len(tokens) // 4)))
        out = torch.zeros(tokens.shape, dtype=torch.float32, device=tokens.device)
        for rows in buckets:
            width = int(lengths[rows].max())
            if width == 0:
                continue
            part, mask = tokens[rows, :width], loss_mask[rows, :width]
            logits = prefix.logits[image_of_row[rows]][:, None]
            if width > 1:
                cache = _rows_of(prefix.cache, image_of_row[rows])
                output = self.lm(**self._read(part[:, :-1]), past_key_values=cache, use_cache=True)
                logits = torch.cat([logits, output.logits], dim=1)
            picked = token_logprobs(logits, part, mask, temperature)
            out = out.index_put((rows,), torch.nn.functional.pad(picked, (0, tokens.shape[1] - width)))
        return out

    def _read(self, tokens: Tensor) -> dict[str, Tensor]:
        """Tokens as the LM's input; in training some words go missing (their embedding is 0)."""
        rate = self.config.word_dropout
        if not (self.training and rate):
            return {"input_ids": tokens}
        embedded = self.lm.get_input_embeddings()(tokens)  # type: ignore[operator]
        kept = torch.rand(tokens.shape, device=tokens.device) >= rate
        return {"inputs_embeds": embedded * kept.unsqueeze(-1)}


# Rows that are scored together at least; below it the matrix products are too thin to pay.
_BUCKET = 32


def _lengths(loss_mask: Tensor) -> Tensor:
    """Position after the last token that is scored, int64 [N]."""
    places = torch.arange(1, loss_mask.shape[1] + 1, device=loss_mask.device)
    return ((loss_mask > 0) * places).amax(dim=1)


def _rows_of(cache: Any, rows: Tensor) -> Any:
    """A new cache with the given rows of another one, which is left as it was."""
    chosen = DynamicCache()
    for index, layer in enumerate(cache.layers):
        chosen.update(layer.keys.index_select(0, rows), layer.values.index_select(0, rows), index)
    return chosen


def token_logprobs(logits: Tensor, tokens: Tensor, loss_mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Pick log softmax(logits / temperature) at the tokens: float32 [N, T], 0 (and no gradient) outside the mask.

    Only masked-in positions go through the softmax: padding costs nothing and its NaN reaches nothing.
    """
    wanted = loss_mask > 0
    chosen = logits[wanted].float()
    if temperature != 1.0:
        chosen = chosen / temperature
    picked = -torch.nn.functional.cross_entropy(chosen, tokens[wanted], reduction="none")
    return torch.zeros(tokens.shape, dtype=torch.float32, device=logits.device).masked_scatter(wanted, picked)


def _build_mapping(config: PrefixConfig, hidden: int) -> nn.Module:
    if config.mapping == "grid":
        return GridMapping(config.feature_dim, hidden, config.feature_dropout)
    if config.mapping == "mlp":
        return MLPMapping(config.feature_dim, hidden, config.prefix_length)
    if config.mapping == "transformer":
        return TransformerMapping(
            config.feature_dim, hidden, config.prefix_length, config.mapping_layers, config.mapping_heads,
            grid=config.features == "grid",
        )  # fmt: skip
    raise RecipeError(f"expected one of {', '.join(MAPPINGS)}", key="captioner.mapping", value=config.mapping)


def _check_vocabulary(lm: nn.Module, tokenizer: Tokenizer, source: str) -> None:
    rows = lm.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if tokenizer.vocab_size > rows or tokenizer.eos_id >= rows:
        raise RecipeError(
            f"the LM embeds {rows} tokens, its tokenizer knows {tokenizer.vocab_size} (EOS {tokenizer.eos_id})",
            key="captioner.lm", value=source or "from scratch", remedy="use the tokenizer that belongs to the LM",
        )  # fmt: skip
