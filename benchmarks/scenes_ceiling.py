"""How good a captioner of drawn scenes could be: CIDEr-D of captions that know the scene, against its real references.

    python benchmarks/scenes_ceiling.py STORAGE/scenes/prepare/scenes [--split test]

Three figures: the oracle (of 200 true captions the one with the best expected score), a true caption drawn at random,
and one of the references against the other four (people's agreement, as far as drawn people agree).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from raycap.data.input_report import InputReport
from raycap.data.scenes.dataset import import_scenes, load_truth
from raycap.data.scenes.grammar import candidate_captions
from raycap.data.scenes.oracle import oracle_caption
from raycap.metrics.cider import DocumentFrequency, cider_d, cider_d_corpus, prepare_references
from raycap.metrics.ptb import tokenize


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    arguments.add_argument("scenes", type=Path)
    arguments.add_argument("--split", default="test")
    asked = arguments.parse_args()
    truth = load_truth(asked.scenes)
    records = import_scenes(asked.scenes, splits={asked.split}, report=InputReport())
    references = {r.image_id: [tokenize(text) for text in r.captions] for r in records}
    frequency = DocumentFrequency.from_references(references)

    def score(captions: Sequence[str], against: Sequence[str]) -> list[float]:
        prepared = prepare_references({"scene": [tokenize(text) for text in against]}, frequency)
        return cider_d([tokenize(c) for c in captions], ["scene"] * len(captions), prepared).tolist()

    oracle = [tokenize(oracle_caption(truth[i], score)) for i in references]
    drawn = [tokenize(candidate_captions(truth[i], count=1)[0]) for i in references]
    print(f"oracle              {cider_d_corpus(oracle, list(references.values()))[0]:.3f}")
    print(f"a true caption      {cider_d_corpus(drawn, list(references.values()))[0]:.3f}")
    first, others = [r[0] for r in references.values()], [r[1:] for r in references.values()]
    print(f"a reference         {cider_d_corpus(first, others)[0]:.3f}  (against the other four)")


if __name__ == "__main__":
    main()
