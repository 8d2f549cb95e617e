"""What reward components may know, opened in the process that scores: references, image embeddings, df."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from raycap.data.dataset import PreparedDataset
from raycap.data.features import FeatureStore
from raycap.errors import RecipeError
from raycap.recipe import ClipModelRecipe, Recipe


@dataclass(frozen=True)
class ContextSpec:
    """Where a context comes from: paths alone, whatever the size of the data set.

    It travels in the arguments of reward actors. Ray puts large arguments into its object store and frees them once the
    actor is there, and an actor whose arguments are gone cannot be restarted.

    Attributes:
        prepared: folder of the prepared data set.
        labelled: file with the ids whose captions this trial may read, a JSON list; the others have no references here.
        document_frequency: file with the frozen document frequencies of the labelled captions.
        clip_embeddings: folder of the image embeddings under `clip.reward`; empty when the recipe has none.
        trained_clip: folder of `clip.reward` when it was trained here.
    """

    recipe: Recipe
    prepared: str
    labelled: str
    document_frequency: str
    clip_embeddings: str = ""
    trained_clip: str = ""
    device: str = "cpu"

    def open(self) -> Context:
        return Context(self)


@dataclass
class Context:
    """See `raycap.rewards.contract.RewardContext`."""

    spec: ContextSpec
    _labelled: frozenset[str] | None = field(default=None, init=False)
    _dataset: PreparedDataset | None = field(default=None, init=False)
    _embeddings: FeatureStore | None = field(default=None, init=False)

    @property
    def recipe(self) -> Recipe:
        return self.spec.recipe

    @property
    def device(self) -> str:
        return self.spec.device

    @property
    def document_frequency(self) -> Path:
        return Path(self.spec.document_frequency)

    @property
    def reward_clip(self) -> tuple[ClipModelRecipe, str]:
        """Recipe and folder of `clip.reward`."""
        if self.recipe.clip.reward is None:
            raise RecipeError("is not set, but a reward needs it", key="clip.reward")
        return self.recipe.clip.reward, self.spec.trained_clip

    @property
    def labelled(self) -> frozenset[str]:
        """Ids of the images that have references here."""
        if self._labelled is None:
            self._labelled = frozenset(json.loads(Path(self.spec.labelled).read_text()))
        return self._labelled

    def references(self, image_id: str) -> Sequence[str]:
        if image_id not in self.labelled:
            return ()
        if self._dataset is None:
            self._dataset = PreparedDataset.open(self.spec.prepared)
        return self._dataset.references(image_id)

    def image_embedding(self, image_id: str) -> NDArray[np.float32]:
        if not self.spec.clip_embeddings:
            raise RecipeError("is not set, but a reward asks for image embeddings", key="clip.reward")
        if self._embeddings is None:
            self._embeddings = FeatureStore.open(Path(self.spec.clip_embeddings))
        return self._embeddings.get([image_id])[0]

    def labelled_references(self) -> Mapping[str, Sequence[str]]:
        """References of every labelled image, in the order of their ids."""
        return {image_id: self.references(image_id) for image_id in sorted(self.labelled)}
