"""LSTM captioners behind the four verbs: the merge model, and soft attention over grid features.

`merge` is the model of the feedback paper (`rlhf_flickr8k`, Fig. 4; Tanti et al. 2017 gave the architecture its name):
the LSTM reads the words alone, and the image joins it in front of the output layer. `attention` is Show, Attend and
Tell (Xu et al. 2015): each word is said while looking at the cells, and where it looked can be drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from raycap.errors import RecipeError
from raycap.models.accumulate import use_summing
from raycap.models.captioner import image_of_rows
from raycap.models.products import use_onednn
from raycap.models.readout import Readout, placed, readout_entropies, readout_logprobs
from raycap.models.seeing import FeatureConfig, SeesFeatures
from raycap.models.tokenizer import Tokenizer

KINDS = ("merge", "attention")


@dataclass(frozen=True)
class LSTMConfig(FeatureConfig):
    """Everything that is needed to build the module again.

    Attributes:
        kind: merge (which takes the mean of a grid's cells) or attention.
        width: of words, image and LSTM alike (256 in the paper).
        dropout: on image and words while MLE trains (0.5 in the paper).
    """

    kind: str
    width: int = 256
    dropout: float = 0.5


@dataclass
class LSTMState:
    """N rows: what the LSTM remembers, whose image each belongs to, and the readout of its next token.

    Attributes:
        memory: of B images, what `encode` gave.
        image: int64 [N].
        cell: hidden and cell state, [N, W] each.
        looked: [N, G], where the row looked for its next token; [N, 0] for merge.
    """

    memory: Tensor
    image: Tensor
    cell: tuple[Tensor, Tensor]
    readout: Readout
    looked: Tensor
    joins = True

    def select(self, rows: Tensor) -> LSTMState:
        needed, image = torch.unique(self.image[rows], return_inverse=True)
        cell = (self.cell[0].index_select(0, rows), self.cell[1].index_select(0, rows))
        return LSTMState(self.memory.index_select(0, needed), image, cell, self.readout.select(rows),
                         self.looked.index_select(0, rows))  # fmt: skip

    def repeat(self, times: int) -> LSTMState:
        return self.select(torch.arange(len(self.image), device=self.image.device).repeat_interleave(times))

    def join(self, other: LSTMState) -> LSTMState:
        cell = (torch.cat([self.cell[0], other.cell[0]]), torch.cat([self.cell[1], other.cell[1]]))
        image = torch.cat([self.image, other.image + len(self.memory)])
        return LSTMState(torch.cat([self.memory, other.memory]), image, cell,
                         self.readout.join(other.readout), torch.cat([self.looked, other.looked]))  # fmt: skip


class LSTMCaptioner(SeesFeatures):
    """Words through an LSTM, the image beside them (merge) or looked at word by word (attention)."""

    config: LSTMConfig

    def __init__(self, config: LSTMConfig, tokenizer: Tokenizer) -> None:
        super().__init__()
        if config.kind not in KINDS:
            raise RecipeError(f"expected one of {', '.join(KINDS)}", key="captioner.kind", value=config.kind)
        if config.kind == "attention" and config.features != "grid":
            raise RecipeError("attention needs cells to look at", key="features.kind", value=config.features,
                              remedy="take features.kind = 'grid', or the merge model")  # fmt: skip
        self.config, self.tokenizer = config, tokenizer
        width, looks = config.width, config.kind == "attention"
        self.image = nn.Linear(config.feature_dim, width)
        self.words = nn.Embedding(tokenizer.vocab_size, width)
        self.start = nn.Parameter(torch.randn(width))  # the start token: read, never said
        self.cell = nn.LSTMCell(2 * width if looks else width, width)
        self.hidden = nn.Linear(width, width)
        self.out = nn.Linear(width, tokenizer.vocab_size)
        self.drop = nn.Dropout(config.dropout)
        if looks:
            self.begin = nn.Linear(width, 2 * width)
            self.where = nn.Linear(width, width)
            self.pointer = nn.Linear(width, 1, bias=False)
            self.gate = nn.Linear(width, width)
            self.context = nn.Linear(width, width)
        use_onednn(self, self.out)
        use_summing(self)

    def encode(self, features: Tensor) -> Tensor:
        """Features [B, D] or [B, G, D] → what is looked at: [B, 1, W] (merge) or [B, G, W]."""
        cells = self.cells(features).to(self.image.weight.dtype)
        if self.config.kind == "merge" and cells.dim() == 3:
            cells = cells.mean(dim=1)
        cells = cells if cells.dim() == 3 else cells[:, None]
        return torch.relu(self.image(self.drop(cells)))

    def prefill(self, conditioning: Tensor) -> LSTMState:
        count = len(conditioning)
        image = torch.arange(count, device=conditioning.device)
        cell = self._begin(conditioning)
        return self._walk(conditioning, image, cell, self.start.expand(count, -1))

    def step(self, state: LSTMState, tokens: Tensor) -> tuple[Readout, LSTMState]:
        walked = self._walk(state.memory, state.image, state.cell, self.words(tokens))
        return walked.readout, walked

    def score(self, conditioning: Tensor, tokens: Tensor, loss_mask: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probabilities of `tokens` under softmax(logits / temperature): float32 [N, T], 0 outside the mask.

        Args:
            conditioning: of B images; row n belongs to image n // (N/B).
            tokens: int64 [N, T], right-padded.
            loss_mask: [N, T], 0 where nothing is to be scored.
        """
        said, _ = self._forced(conditioning, tokens)
        wanted = loss_mask > 0
        picked = readout_logprobs(self._readout(said[wanted]), tokens[wanted], temperature)
        return placed(picked, wanted)

    def score_with_entropy(
        self, conditioning: Tensor, tokens: Tensor, loss_mask: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """`score`, and the entropy of the words at each place: nats, float32 [N, T], 0 outside the mask."""
        said, _ = self._forced(conditioning, tokens)
        wanted = loss_mask > 0
        found = readout_entropies(self._readout(said[wanted]), tokens[wanted], temperature)
        return placed(found[0], wanted), placed(found[1], wanted)

    def attention(self, conditioning: Tensor, tokens: Tensor) -> Tensor:
        """Where each word was looked for: [N, T, G], rows of it sum to 1 (the paper's Fig. 6)."""
        return self._forced(conditioning, tokens)[1]

    def _forced(self, memory: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """In front of the output layer [N, T, W], and where was looked [N, T, G], the words being given."""
        rows = len(tokens)
        image = image_of_rows(rows, len(memory), tokens.device)
        first = self._begin(memory)
        cell = (first[0].index_select(0, image), first[1].index_select(0, image))
        read = torch.cat([self.start.expand(rows, 1, -1), self.words(tokens[:, :-1])], dim=1)
        said, looked = [], []
        for position in range(tokens.shape[1]):
            hidden, looks, cell = self._advance(memory, image, cell, read[:, position])
            said.append(hidden)
            looked.append(looks)
        return torch.stack(said, dim=1), torch.stack(looked, dim=1)

    def _walk(self, memory: Tensor, image: Tensor, cell: tuple[Tensor, Tensor], words: Tensor) -> LSTMState:
        hidden, looked, cell = self._advance(memory, image, cell, words)
        return LSTMState(memory, image, cell, self._readout(hidden), looked)

    def _readout(self, hidden: Tensor) -> Readout:
        return Readout(hidden, self.out.weight, self.out.bias, getattr(self.out, "ready", None))

    def _begin(self, memory: Tensor) -> tuple[Tensor, Tensor]:
        if self.config.kind == "merge":
            nothing = memory.new_zeros(len(memory), self.config.width)
            return nothing, nothing
        hidden, cell = self.begin(memory.mean(dim=1)).tanh().chunk(2, dim=1)
        return hidden, cell

    def _advance(
        self, memory: Tensor, image: Tensor, cell: tuple[Tensor, Tensor], words: Tensor
    ) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor]]:
        words = self.drop(words)
        if self.config.kind == "merge":
            cell = self.cell(words, cell)
            seen = memory[:, 0].index_select(0, image)
            return torch.relu(self.hidden(seen + cell[0])), memory.new_zeros(len(image), 0), cell
        near = torch.tanh(memory.index_select(0, image) + self.where(cell[0])[:, None])
        looked = torch.softmax(self.pointer(near)[..., 0].float(), dim=1).to(memory.dtype)
        context = torch.bmm(looked[:, None], memory.index_select(0, image))[:, 0]
        context = torch.sigmoid(self.gate(cell[0])) * context
        cell = self.cell(torch.cat([words, context], dim=1), cell)
        said = self.hidden(self.drop(cell[0])) + self.context(context) + words
        return torch.tanh(said), looked, cell
