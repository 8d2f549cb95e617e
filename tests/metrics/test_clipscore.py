"""CLIPScore, RefCLIPScore and RefCompare against loops over plain numbers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from raycap.errors import Refused
from raycap.metrics import refcompare
from raycap.metrics.clipscore import ClipEmbeddings, clip_scores, normalised, ref_clip_scores
from raycap.metrics.refcompare import own_refs, pooled


def _random(seed: int = 0, images: int = 7, dimension: int = 6) -> tuple[np.ndarray, ...]:
    rng = np.random.default_rng(seed)
    owner = np.repeat(np.arange(images), rng.integers(1, 5, images))
    image, candidate = rng.normal(size=(2, images, dimension))
    return normalised(image), normalised(candidate), normalised(rng.normal(size=(len(owner), dimension))), owner


def test_clipscore_by_hand() -> None:
    image = normalised([[1, 0], [1, 0], [1, 0]])
    candidate = normalised([[3, 4], [-1, 0], [0, 0]])
    assert clip_scores(image, candidate) == pytest.approx([2.5 * 0.6, 0, 0], abs=1e-6)


def test_refclipscore_by_hand() -> None:
    """CLIPScore 2.5 · 0.6 = 1.5; best reference 0.8, unscaled: 2 · 1.5 · 0.8 / 2.3."""
    image, candidate = normalised([[1, 0]]), normalised([[3, 4]])
    reference = normalised([[0, 5], [-1, 0]])
    score = ref_clip_scores(image, candidate, reference, np.array([0, 0]))
    assert score == pytest.approx([2 * 1.5 * 0.8 / 2.3], abs=1e-6)


def test_refclipscore_is_zero_where_a_part_is() -> None:
    image, candidate = normalised([[1, 0], [-1, 0]]), normalised([[1, 0], [1, 0]])
    scores = ref_clip_scores(image, candidate, normalised([[-1, 0], [-1, 0]]), np.array([0, 1]))
    assert scores.tolist() == [0, 0]


def test_refclipscore_equals_a_loop() -> None:
    image, candidate, reference, owner = _random()
    scores = ref_clip_scores(image, candidate, reference, owner)
    for i in range(len(image)):
        clip = 2.5 * max(float(image[i] @ candidate[i]), 0)
        best = max(max(float(candidate[i] @ reference[r]), 0) for r in np.flatnonzero(owner == i))
        assert scores[i] == pytest.approx(2 * clip * best / (clip + best) if clip + best else 0, abs=1e-6)


@pytest.mark.parametrize("block", [1, 40, 1 << 24])
def test_refcompare_equals_a_loop_in_any_block_size(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refcompare, "_CELLS_AT_ONCE", block)
    image, candidate, reference, owner = _random(1)
    own, all_of_them = own_refs(image, candidate, reference, owner), pooled(image, candidate, reference, owner)
    for i in range(len(image)):
        ours = image[i] @ candidate[i]
        won = image[i] @ reference.T < ours
        assert own[i] == pytest.approx(won[owner == i].mean())
        assert all_of_them[i] == pytest.approx(won.mean())


def test_refcompare_counts_ties_half() -> None:
    image = normalised([[1.0, 0.2, 0.3]])
    human = normalised([[0.3, 0.1, 0.9], [1.0, 0.2, 0.3], [-1.0, 0, 0]])
    owner = np.zeros(3, np.int64)
    # the candidate says what the first reference says; the second is closer, the third farther
    assert own_refs(image, human[:1], human, owner).tolist() == [0.5]
    assert pooled(image, human[:1], human, owner).tolist() == [0.5]


def test_embeddings_are_put_in_order_and_refused_by_name() -> None:
    vectors = {"a": [2.0, 0.0], "b": [0.0, 3.0]}
    embeddings = ClipEmbeddings("toy", vectors, vectors, {"a": [[1.0, 0.0], [0.0, 1.0]], "b": [[0.0, 1.0]]})
    image, _ = embeddings.pairs(["b", "a"])
    assert image.tolist() == [[0, 1], [1, 0]]
    reference, owner = embeddings.reference_rows(["b", "a"])
    assert reference is not None
    assert (owner.tolist(), reference[0].tolist()) == ([0, 1, 1], [0, 1])
    with pytest.raises(Refused, match="image embedding") as refused:
        embeddings.pairs(["a", "zz"])
    assert "zz" in str(refused.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("side", ["image", "candidate", "references"])
def test_vectors_that_are_not_finite_are_refused_with_image_and_side(side: str, bad: float) -> None:
    """They would come out as RefCLIPScore 0 and a share of 0, or as NaN."""
    sides = {name: {"a": np.ones((1, 2)), "b": np.ones((1, 2))} for name in ("image", "candidate", "references")}
    sides[side]["b"] = np.array([[1.0, bad]])
    one = {name: {image: rows[0] for image, rows in sides[name].items()} for name in ("image", "candidate")}
    embeddings = ClipEmbeddings("toy", one["image"], one["candidate"], sides["references"])
    read = embeddings.reference_rows if side == "references" else embeddings.pairs
    with pytest.raises(Refused, match=r"1 .* embedding\(s\) hold NaN or infinity") as refused:
        read(["a", "b"])
    assert (refused.value.key, refused.value.value) == (f"embeddings.{side}", ["b"])


@pytest.mark.parametrize("measure", [ref_clip_scores, own_refs, pooled])
@pytest.mark.parametrize("side", [0, 1, 2])
def test_the_formulas_refuse_them_as_well(measure: Callable[..., np.ndarray], side: int) -> None:
    *vectors, owner = _random()
    vectors[side][1, 0] = np.nan
    with pytest.raises(Refused, match=r"\['row 1'\]"):
        measure(*vectors, owner)
    if side < 2:
        with pytest.raises(Refused, match=r"\['row 1'\]"):
            clip_scores(*vectors[:2])
