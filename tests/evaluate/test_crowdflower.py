"""Published agreement with human judgements, reproduced: Flickr8k-CrowdFlower, all rows."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import pytest

from raycap.evaluate.judgements import correlate, read_judgements

SHARED = Path(os.environ.get("RAYCAP_SHARED", Path(__file__).resolve().parents[3] / "shared"))


@pytest.fixture(scope="module")
def flickr8k() -> Path:
    if not (SHARED / "flickr8k" / "CrowdFlowerAnnotations.txt").is_file():
        pytest.skip(f"no judgements: {SHARED / 'flickr8k'} does not hold them (set RAYCAP_SHARED)")
    return SHARED / "flickr8k"


def test_tau_b_is_the_published_one(flickr8k: Path) -> None:
    judgements = read_judgements("flickr8k-crowdflower", flickr8k)
    sizes = Counter(map(len, set(judgements.references)))
    assert sizes == {4: 719, 5: 279, 3: 2}, "723 judged captions are left out of their images' references"
    found = correlate(judgements, ["bleu", "rouge", "cider"])["metrics"]
    assert {found[name]["n"] for name in ("bleu_4", "rouge_l", "cider_d")} == {47_830}
    for name, published in (("bleu_4", 16.86), ("rouge_l", 19.90), ("cider_d", 24.62)):
        assert 100 * found[name]["tau_b"] == pytest.approx(published, abs=0.05)
