"""The four verbs that every captioner answers to, and the state that decoding walks with.

Evaluation, rollouts, beam search and the learner know a captioner by this protocol alone, so a prefix LM, an LSTM and
a region transformer go through the same engine.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from raycap.models.readout import Readout
from raycap.models.tokenizer import Tokenizer


class DecodingState(Protocol):
    """Where decoding stands: N rows, each with its past and the logits of its next token.

    Attributes:
        readout: of the next token of every row.
    """

    readout: Readout

    @property
    def joins(self) -> bool:
        """Whether rows that stand at another place can join these; `join` is called only then."""
        ...

    def select(self, rows: Tensor) -> DecodingState:
        """The state of the given rows (int64 [M]); rows may repeat."""
        ...

    def repeat(self, times: int) -> DecodingState:
        """Every row `times` times, copies as neighbours."""
        ...

    def join(self, other: Any) -> DecodingState:
        """These rows, and behind them those of another state, which may be at another place."""
        ...


class Captioner(Protocol):
    """From features to captions. N = rows = B images · K captions each, rows of an image as neighbours."""

    tokenizer: Tokenizer

    def decoding(self) -> AbstractContextManager[None]:
        """Entered while captions are made: weights do not change inside, there are no gradients."""
        ...

    def encode(self, features: Tensor) -> Any:
        """Conditioning of B images from their features (pooled [B, D] or grid [B, G, D])."""
        ...

    def prefill(self, conditioning: Any) -> DecodingState:
        """State of B rows before their first token."""
        ...

    def step(self, state: Any, tokens: Tensor) -> tuple[Readout, Any]:
        """Feed one token a row (int64 [N]); the logits of the next one, computed when they are read, and the new state.

        The old state is used up.
        """
        ...

    def score(self, conditioning: Any, tokens: Tensor, loss_mask: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-probability of each token given those before it: float32 [N, T], 0 outside the mask."""
        ...

    def score_with_entropy(
        self, conditioning: Any, tokens: Tensor, loss_mask: Tensor, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """The same, and beside it the entropy of the words that could have stood there: nats, float32 [N, T]."""
        ...


def image_of_rows(rows: int, images: int, device: torch.device) -> Tensor:
    """The image of each of N rows of B images, rows of an image as neighbours: int64 [N]."""
    return torch.arange(rows, device=device) // (rows // images)
