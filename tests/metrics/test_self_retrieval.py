"""Self-retrieval against sorting, and what ties are worth."""

from __future__ import annotations

import numpy as np
import pytest

from raycap.errors import Refused
from raycap.metrics import retrieval
from raycap.metrics.clipscore import normalised
from raycap.metrics.retrieval import self_retrieval


@pytest.mark.parametrize("block", [1, 100, 1 << 24])
def test_equals_sorting(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_CELLS_AT_ONCE", block)
    rng = np.random.default_rng(0)
    image = normalised(rng.normal(size=(40, 8)))
    caption = normalised(image + rng.normal(size=(40, 8)) * 0.5)
    order = np.argsort(-(caption @ image.T), axis=1)
    ranks = np.array([np.flatnonzero(row == i)[0] + 1 for i, row in enumerate(order)])
    recall = self_retrieval(caption, image, range(1, 41))  # every k: as good as the ranks themselves
    assert recall == pytest.approx({k: (ranks <= k).mean() for k in range(1, 41)})
    assert recall[1] < recall[5] < 1


def test_captions_that_say_nothing_score_chance() -> None:
    image = normalised(np.tile([1.0, 0.0], (20, 1)))
    every = self_retrieval(image, image, range(1, 21))
    assert every == pytest.approx({k: k / 20 for k in range(1, 21)})
    assert self_retrieval(image, image) == pytest.approx({k: every[k] for k in (1, 5, 10)})


def test_refuses_unequal_sides() -> None:
    with pytest.raises(Refused, match="as many captions"):
        self_retrieval(np.ones((2, 2), np.float32), np.ones((3, 2), np.float32))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_refuses_what_is_no_vector(bad: float) -> None:
    """NaN is never larger than anything, so it had no rival and a recall of 1."""
    good, broken = normalised(np.eye(3)), normalised(np.eye(3))
    broken[1] = bad
    with pytest.raises(Refused, match=r"embeddings.caption = \['row 1'\]"):
        self_retrieval(broken, good)
    with pytest.raises(Refused, match=r"embeddings.image = \['row 1'\]"):
        self_retrieval(good, broken)
