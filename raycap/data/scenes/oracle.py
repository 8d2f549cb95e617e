"""What a captioner that sees everything could reach: the caption with the best expected score among true ones.

The ceiling of a data set is the metric of these captions against its real references. The metric comes in as a
function, because metrics are another room.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from raycap.data.scenes.grammar import candidate_captions, references
from raycap.data.scenes.world import Scene

Score = Callable[[Sequence[str], Sequence[str]], Sequence[float]]
"""score(candidates, references) -> one number a candidate: its score against all these references."""


def fresh_references(scene: Scene, *, sets: int = 8) -> tuple[str, ...]:
    """5 x `sets` references of the scene as other annotators might have written them; the real ones are not used."""
    return tuple(caption for number in range(sets) for caption in references(scene, salt=f"fresh {number}"))


def oracle_caption(scene: Scene, score: Score, *, candidates: int = 200, sets: int = 8) -> str:
    """The true caption with the best expected score.

    CIDEr-D is a mean over references, so its score against many fresh references is the expectation over reference
    sets. The oracle knows the scene and the grammar, not the references it is going to be scored with.
    """
    captions = candidate_captions(scene, count=candidates)
    scores = score(captions, fresh_references(scene, sets=sets))
    return max(zip(scores, captions, strict=True))[1]
