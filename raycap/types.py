"""The records that cross a room's or a process's boundary: frozen dataclasses, shapes and dtypes in their docstrings.

B = images (prompts) in a lease, K = num_samples, N = B·K sampled rows, T = longest caption in tokens, V = vocabulary.
Rows of one image are neighbours: row b·K + k is sample k of image b. Arrays are numpy here, because records travel
between processes; the learner turns them into tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]


class Prompt(NamedTuple):
    """One image of one step's prompts.

    `position` is the image's place in the fixed order of the training images; together with seed, step, sample and
    token position it addresses the random numbers of its captions.
    """

    image_id: str
    position: int


@dataclass(frozen=True)
class Lease:
    """A fixed, numbered slice of a step's prompts: the unit of generation, of reward and of loss.

    Slices depend on the recipe alone, never on the number of workers, which is what makes runs equal bit by bit.
    """

    step: int
    number: int
    prompts: tuple[Prompt, ...]
    attempt: int = 0

    @property
    def image_ids(self) -> tuple[str, ...]:
        return tuple(prompt.image_id for prompt in self.prompts)

    def id(self, incarnation: int) -> LeaseId:
        """What it is called while it is out, given out under this incarnation of the learner."""
        return LeaseId(incarnation, self.step, self.number, self.attempt)


class LeaseId(NamedTuple):
    """A lease that is out: a restart of the learner, or a loss, gives the same slice out again under another one."""

    incarnation: int
    step: int
    number: int
    attempt: int


@dataclass(frozen=True)
class WeightsId:
    """Identity of published weights: (incarnation, policy_version). A restart of the learner raises the incarnation."""

    incarnation: int
    policy_version: int


@dataclass(frozen=True)
class ManifestEntry:
    """Where one parameter lies in the flat buffer: `offset` and `nbytes` in bytes; bfloat16 is stored as uint16."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class WeightSnapshot:
    """The trainable parameters of a policy as one flat uint8 buffer and its manifest."""

    weights_id: WeightsId
    manifest: tuple[ManifestEntry, ...]
    buffer: NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        return int(self.buffer.nbytes)


@dataclass(frozen=True)
class CaptionBatch:
    """What a reward component sees: strings, and whether each caption ended by its own EOS.

    Attributes:
        image_ids: image of each caption, length N.
        captions: decoded captions, length N.
        finished: False where the length limit cut the caption, length N.
    """

    image_ids: tuple[str, ...]
    captions: tuple[str, ...]
    finished: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.captions)


@dataclass(frozen=True)
class Generation:
    """Sampled and greedy captions of one lease.

    Attributes:
        tokens: int64 [B·K, T], right-padded with pad.
        lengths: int64 [B·K], tokens up to and including the first EOS (the EOS itself when it was generated).
        behavior_logprobs: float32 [B·K, T], 0 beyond `lengths`, at the temperature that was sampled with.
        finished: bool [B·K].
        captions: decoded samples, length B·K.
        greedy_captions: decoded greedy captions, length B (empty when no greedy caption was asked for).
        greedy_finished: bool [B].
        num_samples: K.
    """

    tokens: Int64
    lengths: Int64
    behavior_logprobs: Float32
    finished: Bool
    captions: tuple[str, ...]
    greedy_captions: tuple[str, ...]
    greedy_finished: Bool
    num_samples: int


@dataclass(frozen=True)
class ComponentScores:
    """One reward component's answer for a lease; NaN stands for `None` ("this component does not apply").

    Attributes:
        rewards: float32 [B, K].
        greedy_rewards: float32 [B].
        seconds: time the component took.
    """

    rewards: Float32
    greedy_rewards: Float32
    seconds: float = 0.0


@dataclass(frozen=True)
class Rollouts:
    """A scored lease, ready for the learner.

    `generation` holds the tokens, `scores` each component's rewards; `weights_id` says which policy spoke.
    """

    lease: Lease
    weights_id: WeightsId
    generation: Generation
    scores: dict[str, ComponentScores]
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StepPart:
    """A rank's part of a step, as the Exchange gives it out: every lease of the part is in one of the two.

    Attributes:
        rollouts: in the order of their prompts.
        set_aside: numbers of the leases that were quarantined.
    """

    rollouts: tuple[Rollouts, ...]
    set_aside: tuple[int, ...] = ()


@dataclass(frozen=True)
class LabelledBatch:
    """A batch for the cross-entropy: `captions_per_image` (C) rows an image, neighbours.

    Attributes:
        image_ids: length B.
        tokens: int64 [B·C, T], right-padded, EOS included.
        loss_mask: float32 [B·C, T], 1 on every token that is learned (EOS included, unknown words and padding not).
    """

    image_ids: tuple[str, ...]
    tokens: Int64
    loss_mask: Float32
