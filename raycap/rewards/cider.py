"""CIDEr-D as a training reward: document frequencies frozen from the training references, EOS counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from raycap.errors import RecipeError
from raycap.metrics.cider import EOS, DocumentFrequency, cider_d, prepare_references
from raycap.metrics.ptb import tokenize
from raycap.rewards.context import Context
from raycap.types import CaptionBatch
from raycap.whole_file import write_whole


def write_document_frequency(references: Mapping[str, Sequence[str]], file: Path, *, eos: bool) -> None:
    """Count document frequencies (Vedantam et al. 2015, eq. 1) over all labelled images once and put them into a file.

    The file is written atomically; with `eos` every reference ends in the end-of-sequence token.

    Raises:
        Refused: an image without references.
    """
    tokenized = {image_id: [tokenize(text) for text in texts] for image_id, texts in references.items()}
    frequency = DocumentFrequency.from_references(tokenized, eos=EOS if eos else None)
    write_whole(file, frequency.to_bytes())


# The stage counts them before any component is built, and goes by that name.
_ONE_SETTING = (
    "they are counted once a run, with the `eos` of the component named `cider` (true without one): name this "
    "component `cider`, without `source`, and give every CIDEr-D of the run the same `eos`"
)


class CiderReward:
    """CIDEr-D against the image's labelled references (Vedantam et al. 2015; the reward R of HAR eq. 2), 0..10.
    None where it has none. The formula stands at `metrics.cider.cider_d`.

    Args:
        eos: append the end-of-sequence token to references and to candidates that finished by themselves; without
            it the policy learns to stop in the middle.

    Raises:
        RecipeError: the document frequencies were counted with the other `eos`.
    """

    def __init__(self, context: Context, *, eos: bool = True) -> None:
        frequency = DocumentFrequency.from_bytes(context.document_frequency.read_bytes())
        if (frequency.eos is not None) != eos:
            raise RecipeError("the document frequencies were counted with the other setting",
                              key="rewards.cider.options.eos", value=eos, remedy=_ONE_SETTING)  # fmt: skip
        references = context.labelled_references()
        tokenized = {image_id: [tokenize(text) for text in texts] for image_id, texts in references.items()}
        self.known = frozenset(tokenized)
        self.prepared = prepare_references(tokenized, frequency)
        # as SacreEOS writes it (Hu et al. 2022): whether EOS counts in rewards and in the document frequencies
        self.signature = f"{'STANDARD_wInit' if eos else 'NO<EOS>_w/oInit'}+Cider-D[n4,s6.0]"

    def score(self, batch: CaptionBatch) -> list[float | None]:
        places = [n for n, image_id in enumerate(batch.image_ids) if image_id in self.known]
        scores: list[float | None] = [None] * len(batch)
        values = cider_d(
            [tokenize(batch.captions[n]) for n in places],
            [batch.image_ids[n] for n in places],
            self.prepared,
            finished=[batch.finished[n] for n in places],
        )
        for place, value in zip(places, values.tolist(), strict=True):
            scores[place] = value
        return scores
