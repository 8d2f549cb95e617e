"""The critic's place among the rewards: a learned model of what raters prefer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from raycap.errors import RecipeError
from raycap.rewards.context import Context
from raycap.rewards.contract import load_dotted
from raycap.types import CaptionBatch


class Critic(Protocol):
    """What a critic has to be able to do: built once a process as `Critic(context, folder)`."""

    def values(self, image_ids: Sequence[str], captions: Sequence[str]) -> NDArray[np.float32]:
        """What each caption is worth to the raters, float32 [N]; finite for every caption."""
        ...


class CriticReward:
    """A critic's value of each caption: `Feedback` of the paper on captions tuned by human feedback
    (Adarsh et al. 2024, eq. 1: Loss = −Σ y log p − Feedback), there −1..1.

    Args:
        model: `package.module:ClassName` of a `Critic`.
        checkpoint: folder of its weights.

    Raises:
        RecipeError: no critic is named, it cannot be imported, or `checkpoint` is no folder.
    """

    def __init__(self, context: Context, *, model: str = "", checkpoint: str = "") -> None:
        self.check_options(model=model, checkpoint=checkpoint)
        self.critic: Critic = load_dotted(model, key="rewards.critic.options.model")(context, Path(checkpoint))
        self.signature = f"critic[{model}]"

    @staticmethod
    def check_options(*, model: str = "", checkpoint: str = "") -> None:
        """Raises RecipeError for what the constructor would refuse."""
        if not model:
            raise RecipeError("no critic is named", key="rewards.critic.options.model", value=model,
                              remedy="package.module:ClassName of a class with values(image_ids, captions)",
                              )  # fmt: skip
        if not checkpoint or not Path(checkpoint).is_dir():
            raise RecipeError("is not a folder", key="rewards.critic.options.checkpoint", value=checkpoint,
                              remedy="give the folder of the critic's weights")  # fmt: skip

    def score(self, batch: CaptionBatch) -> list[float | None]:
        return [float(value) for value in self.critic.values(batch.image_ids, batch.captions)]
