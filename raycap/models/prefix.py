"""The prefix captioner: a causal LM of Hugging Face that reads an image as a few embeddings before the caption.

Source: ClipCap (Mokady et al. 2021), the model of HAR (eq. 1) and of the self-supervised paper (sec. 2.2). The prefix
of an image is run once, whatever the number of its captions: their rows share its keys and values.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raycap.errors import RecipeError
from raycap.models.accumulate import use_summing
from raycap.models.captioner import image_of_rows
from raycap.models.lora import add_adapters
from raycap.models.mapping import GridMapping, MLPMapping, TransformerMapping
from raycap.models.products import use_onednn
from raycap.models.readout import Readout, placed, readout_entropies, readout_logprobs
from raycap.models.seeing import FeatureConfig, SeesFeatures
from raycap.models.shared_attention import NAME, Decode, Prefill, Score, Unsupported, Walk, register, starts_of
from raycap.models.tokenizer import Tokenizer

MAPPINGS = ("grid", "mlp", "transformer")
TUNINGS = ("frozen", "lora", "full")


@dataclass(frozen=True)
class PrefixConfig(FeatureConfig):
    """Everything that is needed to build the module again; stored beside its weights.

    Attributes:
        mapping: grid, mlp or transformer.
        prefix_length: P of mlp and transformer; the grid mapping has one a cell.
        lm_config: a Hugging Face config as a dict, `model_type` included.
        lm_source: name or path of pretrained weights; empty when trained from scratch.
        lm_tuning: `full`, `lora` or `frozen`.
        lora: arguments of `lora.add_adapters`, for `lora` alone.
        feature_dropout: on the features (grid mapping), word_dropout: on whole words that are read, while it trains.
    """

    mapping: str
    prefix_length: int
    lm_config: dict[str, Any] = field(default_factory=dict)
    lm_source: str = ""
    lm_tuning: str = "full"
    lora: dict[str, Any] = field(default_factory=dict)
    mapping_layers: int = 2
    mapping_heads: int = 4
    feature_dropout: float = 0.0
    word_dropout: float = 0.0


@dataclass
class PrefixState:
    """N rows and the readout of their next token.

    Attributes:
        rows: each at its own place, the rows of an image sharing its prefix; `Copied` where the LM allows no sharing.
    """

    rows: Decode | Copied
    readout: Readout

    @property
    def joins(self) -> bool:
        return isinstance(self.rows, Decode)

    def select(self, rows: Tensor) -> PrefixState:
        return PrefixState(self.rows.select(rows), self.readout.select(rows))

    def repeat(self, times: int) -> PrefixState:
        return PrefixState(self.rows.repeat(times), self.readout.repeat(times))

    def join(self, other: PrefixState) -> PrefixState:
        assert isinstance(self.rows, Decode)
        assert isinstance(other.rows, Decode)
        return PrefixState(self.rows.join(other.rows), self.readout.join(other.readout))


@dataclass
class Copied:
    """Rows of an LM whose attention is its own: each holds its image's prefix, all stand at one place, none can join.

    A step writes into the cache that it was given, so rows that are selected from must not be used again.
    """

    cache: Any

    def select(self, rows: Tensor) -> Copied:
        self.cache.batch_select_indices(rows)
        return self

    def repeat(self, times: int) -> Copied:
        self.cache.batch_repeat_interleave(times)
        return self


class PrefixCaptioner(SeesFeatures):
    """A visual prefix and a causal LM behind the four verbs of `Captioner`."""

    config: PrefixConfig

    def __init__(self, config: PrefixConfig, lm: nn.Module, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.config, self.lm, self.tokenizer = config, lm, tokenizer
        self._shares_prefix: bool | None = None
        # An LM that asks for another attention does something besides (caps its scores, biases them by distance).
        if getattr(lm, "_supports_attention_backend", False) and lm.config._attn_implementation == "sdpa":  # type: ignore[union-attr]
            register()
            lm.config._attn_implementation = NAME  # type: ignore[union-attr]
        _check_vocabulary(lm, tokenizer, config.lm_source)
        hidden = lm.get_input_embeddings().embedding_dim  # type: ignore[operator]
        self.mapping = _build_mapping(config, hidden)
        _choose_what_learns(lm, config)
        use_onednn(self, lm.get_output_embeddings())  # type: ignore[operator]
        use_summing(self)

    def encode(self, features: Tensor) -> Tensor:
        """Features [B, D] or [B, G, D] → prefix embeddings [B, P, H]."""
        return self.mapping(self.cells(features).to(next(self.mapping.parameters()).dtype))

    def prefill(self, conditioning: Tensor) -> PrefixState:
        if self.shares_prefix:
            walk = Prefill()
            hidden = self._hidden(walk, inputs_embeds=conditioning)[:, -1]
            walk.done = True
            image = torch.arange(len(hidden), device=hidden.device)
            return PrefixState(Decode(walk.layers, image), self._readout(hidden))
        output = self.lm(inputs_embeds=conditioning, use_cache=True, logits_to_keep=1)
        return PrefixState(Copied(output.past_key_values), Readout(output.logits[:, -1]))

    def step(self, state: PrefixState, tokens: Tensor) -> tuple[Readout, PrefixState]:
        walk = state.rows
        if isinstance(walk, Decode):
            places = walk.begin() + walk.prefix[0].keys.shape[2]
            hidden = self._hidden(walk, input_ids=tokens[:, None], position_ids=places[:, None])[:, 0]
            walk.end()
            readout = self._readout(hidden)
            return readout, PrefixState(walk, readout)
        output = self.lm(input_ids=tokens[:, None], past_key_values=walk.cache, use_cache=True)
        readout = Readout(output.logits[:, -1])
        return readout, PrefixState(Copied(output.past_key_values), readout)

    def score(self, conditioning: Tensor, tokens: Tensor, loss_mask: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probabilities of `tokens` under softmax(logits / temperature).

        Args:
            conditioning: prefix [B, P, H]; row n belongs to image n // (N/B).
            tokens: int64 [N, T], right-padded.
            loss_mask: [N, T], 0 where nothing is to be scored (padding may hold any id).

        Returns:
            float32 [N, T], 0 outside the mask.
        """
        return self._scored(conditioning, tokens, loss_mask, temperature, entropy=False)[0]

    def score_with_entropy(
        self, conditioning: Tensor, tokens: Tensor, loss_mask: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """`score`, and the entropy of the words at each place: nats, float32 [N, T], 0 outside the mask."""
        logprobs, spread = self._scored(conditioning, tokens, loss_mask, temperature, entropy=True)
        assert spread is not None
        return logprobs, spread

    def _scored(
        self, conditioning: Tensor, tokens: Tensor, loss_mask: Tensor, temperature: float, *, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        image = image_of_rows(len(tokens), len(conditioning), tokens.device)
        score = self._score_packed if self.shares_prefix else self._score_copied
        return score(conditioning, image, tokens, loss_mask, temperature, entropy)

    def _score_packed(
        self, conditioning: Tensor, image: Tensor, tokens: Tensor, loss_mask: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        prefill = Prefill()
        hidden = self._hidden(prefill, inputs_embeds=conditioning)[:, -1]
        prefill.done = True
        read = (_lengths(loss_mask) - 1).clamp(min=0)  # the last token of a caption is said, not read
        nothing = not int(read.max())
        if nothing:  # ranks that share the blocks must go through them equally often: one is read, and not looked at
            read[0] = 1
        walk = Score(prefill.layers, image, read)
        inside = torch.arange(tokens.shape[1], device=tokens.device) < read[:, None]
        places = (walk.places + conditioning.shape[1])[None]
        words = tokens[inside] * (not nothing)  # padding may hold any id
        packed = self._hidden(walk, **self._read(words[None]), position_ids=places)
        hidden = torch.cat([hidden, packed[0]])
        before = torch.cat([image[:, None], starts_of(read)[:, None] + len(conditioning)
                            + torch.arange(tokens.shape[1] - 1, device=tokens.device)], dim=1)  # fmt: skip
        wanted = loss_mask > 0
        readout = self._readout(hidden.index_select(0, before[wanted]))
        return _told(readout, tokens, wanted, temperature, entropy)

    def _score_copied(
        self, conditioning: Tensor, image: Tensor, tokens: Tensor, loss_mask: Tensor, temperature: float, entropy: bool
    ) -> tuple[Tensor, Tensor | None]:
        prefix = self.lm(inputs_embeds=conditioning, use_cache=True, logits_to_keep=1)
        lengths = _lengths(loss_mask)
        # Rows of like length together: short captions are not carried along to the longest one's end.
        buckets = torch.argsort(lengths, stable=True).split(max(_BUCKET, -(-len(tokens) // 4)))
        out = [torch.zeros(tokens.shape, dtype=torch.float32, device=tokens.device) for _ in range(1 + entropy)]
        for rows in buckets:
            width = int(lengths[rows].max())
            if width == 0:
                continue
            part, mask = tokens[rows, :width], loss_mask[rows, :width]
            logits = prefix.logits[:, -1].index_select(0, image[rows])[:, None]
            if width > 1:
                cache = _rows_of(prefix.past_key_values, image[rows])
                output = self.lm(**self._read(part[:, :-1]), past_key_values=cache, use_cache=True)
                logits = torch.cat([logits, output.logits], dim=1)
            wanted = mask > 0
            found = _told(Readout(logits[wanted]), part, wanted, temperature, entropy)
            wider = (0, tokens.shape[1] - width)
            out = [each.index_put((rows,), torch.nn.functional.pad(new, wider))
                   for each, new in zip(out, found, strict=False) if new is not None]  # fmt: skip
        return out[0], out[1] if entropy else None

    def _hidden(self, walk: Walk, **inputs: Tensor) -> Tensor:
        """The LM's last hidden states, its attention as the walk says."""
        like = next(iter(inputs.values()))
        mask = torch.zeros(1, 1, 1, 1, device=like.device)  # of four dimensions: taken as made, and none is built
        body = self.lm.base_model
        return body(**inputs, walk=walk, attention_mask=mask, use_cache=False).last_hidden_state  # type: ignore[operator]

    def _readout(self, hidden: Tensor) -> Readout:
        head = self.lm.get_output_embeddings()  # type: ignore[operator]
        return Readout(hidden, head.weight, head.bias, getattr(head, "ready", None))

    @property
    def shares_prefix(self) -> bool:
        """Whether the LM's captions can share their prefix: it hands its attention over, and it comes out the same.

        Found out by trying, once: what an LM does to its attention or its logits besides is not written anywhere.
        """
        if self._shares_prefix is None:
            self._shares_prefix, found = True, None  # while it is tried
            try:
                # in the parameters' own type: rounded products would say more of autocast than of the LM
                with torch.autocast(next(self.lm.parameters()).device.type, enabled=False):
                    found = self._sharing_is_exact()
            except torch.OutOfMemoryError:
                raise
            except _NOT_SHARED:
                found = False
            finally:
                self._shares_prefix = found
        return bool(self._shares_prefix)

    @torch.no_grad()
    def _sharing_is_exact(self) -> bool:
        """A prefix of three, a caption of three, twice: decoded and scored against a plain forward."""
        head, embed = self.lm.get_output_embeddings(), self.lm.get_input_embeddings()  # type: ignore[operator]
        if self.lm.config._attn_implementation != NAME or not isinstance(head, nn.Linear):  # type: ignore[union-attr]
            return False
        was_training = self.training
        self.eval()
        try:
            ids = torch.arange(9, device=head.weight.device).view(1, 9) % embed.num_embeddings
            shown, said = embed(ids[:, :3]), ids[:, 3:].view(2, 3)
            rows = torch.cat([shown.expand(2, -1, -1), embed(said)], dim=1)
            plain = self.lm(inputs_embeds=rows, use_cache=False).logits[:, 2:].float()
            state = self.prefill(shown).repeat(2)
            walked = [state.readout.logits]
            for position in range(3):
                readout, state = self.step(state, said[:, position])
                walked.append(readout.logits)
            scored = self.score(shown, said, torch.ones(2, 3, device=said.device))
        finally:
            self.train(was_training)
        near = (1e-3 if rows.dtype == torch.float32 else 5e-2) * float(plain.abs().max())
        expected = torch.log_softmax(plain[:, :3], dim=-1).gather(2, said[:, :, None])[:, :, 0]
        return bool(torch.allclose(torch.stack(walked, dim=1).float(), plain, rtol=0.0, atol=near)
                    and torch.allclose(scored, expected, rtol=0.0, atol=near))  # fmt: skip

    def _read(self, tokens: Tensor) -> dict[str, Tensor]:
        """Tokens as the LM's input; in training some words go missing (their embedding is 0)."""
        rate = self.config.word_dropout
        if not (self.training and rate):
            return {"input_ids": tokens}
        embedded = self.lm.get_input_embeddings()(tokens)  # type: ignore[operator]
        kept = torch.rand(tokens.shape, device=tokens.device) >= rate
        return {"inputs_embeds": embedded * kept.unsqueeze(-1)}


# What an LM raises that takes no such argument, makes its own of the mask, does not number its layers, has no body
# behind its output layer, or holds keys and values of other shapes.
_NOT_SHARED = (Unsupported, TypeError, ValueError, RuntimeError, AttributeError, LookupError)
# Rows that are scored together at least; below it the matrix products are too thin to pay.
_BUCKET = 32


def _lengths(loss_mask: Tensor) -> Tensor:
    """Position after the last token that is scored, int64 [N]."""
    places = torch.arange(1, loss_mask.shape[1] + 1, device=loss_mask.device)
    return ((loss_mask > 0) * places).amax(dim=1)


def _rows_of(cache: Any, rows: Tensor) -> Any:
    """A new cache with the given rows of another one, which is left as it was; layers stay of their kinds."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.reorder_cache(rows)
    return chosen


def token_logprobs(logits: Tensor, tokens: Tensor, loss_mask: Tensor, temperature: float = 1.0) -> Tensor:
    """Pick log softmax(logits / temperature) at the tokens: float32 [N, T], 0 (and no gradient) outside the mask.

    Only masked-in positions go through the softmax: padding costs nothing and its NaN reaches nothing.
    """
    wanted = loss_mask > 0
    return placed(readout_logprobs(Readout(logits[wanted]), tokens[wanted], temperature), wanted)


def _told(
    readout: Readout, tokens: Tensor, wanted: Tensor, temperature: float, entropy: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities of the wanted tokens and, where asked, the entropies beside them, in their places [N, T]."""
    if not entropy:
        return placed(readout_logprobs(readout, tokens[wanted], temperature), wanted), None
    logprobs, spread = readout_entropies(readout, tokens[wanted], temperature)
    return placed(logprobs, wanted), placed(spread, wanted)


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


def _choose_what_learns(lm: nn.Module, config: PrefixConfig) -> None:
    if config.lm_tuning not in TUNINGS:
        raise RecipeError(f"expected {', '.join(TUNINGS[:-1])} or {TUNINGS[-1]}", key="captioner.lm_tuning",
                          value=config.lm_tuning)  # fmt: skip
    if config.lm_tuning != "full":
        lm.requires_grad_(False)
    if config.lm_tuning == "lora":  # after the mapping was drawn, which so is the same however the LM is tuned
        add_adapters(lm, **config.lora)


def _check_vocabulary(lm: nn.Module, tokenizer: Tokenizer, source: str) -> None:
    rows = lm.get_input_embeddings().num_embeddings  # type: ignore[operator]
    if tokenizer.vocab_size > rows or tokenizer.eos_id >= rows:
        raise RecipeError(
            f"the LM embeds {rows} tokens, its tokenizer knows {tokenizer.vocab_size} (EOS {tokenizer.eos_id})",
            key="captioner.lm", value=source or "from scratch", remedy="use the tokenizer that belongs to the LM",
        )  # fmt: skip
