"""CIDEr-D: the published vectors, pycocoevalcap, a slow oracle, and the faults that others have made."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from raycap.errors import Refused
from raycap.metrics.cider import (
    EOS,
    DocumentFrequency,
    cider_d,
    cider_d_corpus,
    prepare_references,
    prepare_training,
)

pycoco = pytest.importorskip("pycocoevalcap.cider.cider")

CANDIDATES = ["a man is speaking", "rain falls"]
REFERENCES = [
    ["a man speaks", "someone speaks", "a man is speaking while a bird is chirping in the background"],
    ["rain is falling hard on a surface"],
]
WORDS = st.sampled_from(
    ["a", "man", "dog", "é", "日本", "1\u00a01/2", "n't", "runs", "😀", "\u3000", "\u00a0a.com", "a.com\u2003", "a.com"]
)
CAPTION = st.lists(WORDS, max_size=9)
IMAGE = st.tuples(CAPTION, st.lists(CAPTION, min_size=1, max_size=4))
CORPUS = st.lists(IMAGE, min_size=1, max_size=6)


def _split(captions: Sequence[str]) -> list[list[str]]:
    return [caption.split() for caption in captions]


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1))


def _oracle(candidate: Sequence[str], references: Sequence[Sequence[str]], df: Counter, images: int) -> float:
    """CIDEr-D word for word as CORRECTNESS.md has it."""

    def weights(tokens: Sequence[str], n: int) -> dict[tuple[str, ...], float]:
        return {g: tf * (math.log(images) - math.log(max(1, df[g]))) for g, tf in _ngrams(tokens, n).items()}

    total = 0.0
    for reference in references:
        delta = max(len(candidate) - 1, 0) - max(len(reference) - 1, 0)
        for n in range(1, 5):
            ours, theirs = weights(candidate, n), weights(reference, n)
            dot = sum(min(ours[g], theirs[g]) * theirs[g] for g in ours if g in theirs)
            norms = math.hypot(*ours.values()) * math.hypot(*theirs.values())
            total += (dot / norms if norms else 0.0) * math.exp(-(delta**2) / (2 * 6.0**2))
    return 10 * total / (4 * len(references))


def _count(references: Sequence[Sequence[Sequence[str]]]) -> Counter:
    df: Counter = Counter()
    for several in references:
        df.update({g for tokens in several for n in range(1, 5) for g in _ngrams(tokens, n)})
    return df


def test_published_vector() -> None:
    corpus, per_image = cider_d_corpus(_split(CANDIDATES), [_split(several) for several in REFERENCES])
    assert corpus == pytest.approx(0.9613547163493905, abs=1e-12)
    assert per_image == pytest.approx([1.3640549170323026, 0.5586545156664785], abs=1e-12)


def test_one_image_alone_scores_zero() -> None:
    assert cider_d_corpus([["a", "man"]], [[["a", "man"]]])[0] == 0.0


def test_nothing_and_empty_captions() -> None:
    assert cider_d_corpus([], [])[0] == 0.0
    corpus, per_image = cider_d_corpus([[], ["a"]], [[[]], [["a"], []]])
    assert corpus == pytest.approx(per_image.mean())
    assert np.isfinite(per_image).all()


@settings(derandomize=True, max_examples=200, deadline=None)
@given(CORPUS)
def test_equals_pycocoevalcap(corpus: list[tuple[list[str], list[list[str]]]]) -> None:
    candidates, references = [one for one, _ in corpus], [several for _, several in corpus]
    assume(any(" ".join(tokens).split() for several in references for tokens in several))  # it cannot do without words
    gts = {i: [" ".join(tokens) for tokens in several] for i, several in enumerate(references)}
    theirs, each = pycoco.Cider().compute_score(gts, {i: [" ".join(one)] for i, one in enumerate(candidates)})
    ours, per_image = cider_d_corpus(candidates, references)
    assert ours == pytest.approx(theirs, abs=1e-9)
    assert per_image == pytest.approx(each, abs=1e-9)


@settings(derandomize=True, max_examples=100, deadline=None)
@given(CORPUS, CORPUS, st.booleans())
def test_equals_the_oracle_under_foreign_frequencies(
    training: list[tuple[list[str], list[list[str]]]], scored: list[tuple[list[str], list[list[str]]]], eos: bool
) -> None:
    """df from other images than those that are scored, EOS in both when asked for."""
    end = [EOS] if eos else []
    counted = [[" ".join(tokens).split() + end for tokens in several] for _, several in training]
    references = [[" ".join(tokens).split() + end for tokens in several] for _, several in scored]
    finished = [number % 2 == 0 for number in range(len(scored))]
    df = DocumentFrequency.from_references(
        {str(i): several for i, (_, several) in enumerate(training)}, EOS if eos else None
    )
    prepared = prepare_references({str(i): several for i, (_, several) in enumerate(scored)}, df)
    scores = cider_d([one for one, _ in scored], [str(i) for i in range(len(scored))], prepared, finished)
    for number, (candidate, _) in enumerate(scored):
        ours = " ".join(candidate).split() + (end if finished[number] else [])
        assert scores[number] == pytest.approx(
            _oracle(ours, references[number], _count(counted), len(training)), abs=1e-9
        )


def test_several_candidates_of_one_image_in_any_order() -> None:
    references = {"x": _split(REFERENCES[0]), "y": _split(REFERENCES[1])}
    _, prepared = prepare_training(references)
    captions = _split(["rain falls", "a man is speaking", "a man a man", "rain falls"])
    scores = cider_d(captions, ["y", "x", "x", "x"], prepared)
    alone = [
        cider_d([caption], [image], prepared)[0] for caption, image in zip(captions, ["y", "x", "x", "x"], strict=True)
    ]
    assert scores.tolist() == pytest.approx(alone, abs=1e-15)
    assert scores[0] == pytest.approx(0.5586545156664785)


class TestDocumentFrequency:
    def test_counts_images_not_references(self) -> None:
        df = DocumentFrequency.from_references({"x": _split(["a man", "a man"]), "y": _split(["a dog"])})
        assert (df[["a"]], df[["a", "man"]], df[["dog"]], df.num_images) == (2, 1, 1, 2)

    def test_looking_up_adds_nothing(self) -> None:
        """A defaultdict would grow with every unseen n-gram, and with it the `max(df)` that others divide by."""
        df = DocumentFrequency.from_references({"x": _split(["a man"]), "y": _split(["a dog"])})
        size = len(df)
        assert df[["zebra"]] == df[["a", "zebra"]] == df[["man", "a"]] == df[[]] == df[["a"] * 5] == 0
        prepared = prepare_references({"x": _split(["a man"])}, df)
        cider_d([["zebra", "zebra", "runs"]], ["x"], prepared)
        assert len(df) == size
        assert len(list(df.trie.ngrams())) == size

    def test_is_read_only(self) -> None:
        df = DocumentFrequency.from_references({"x": _split(["a man"])})
        with pytest.raises(ValueError, match="read-only"):
            df.counts[1] = 7
        with pytest.raises(ValueError, match="read-only"):
            df.trie.codes[0][0] = 7

    def test_later_references_do_not_change_it(self) -> None:
        """Frozen frequencies: preparing (or scoring) other images must not leak into them."""
        df = DocumentFrequency.from_references({"x": _split(["a man"]), "y": _split(["a dog"])})
        before = df.to_bytes()
        prepare_references({"z": _split(["a cat sits", "a man"])}, df)
        assert df.to_bytes() == before

    @settings(derandomize=True, max_examples=100, deadline=None)
    @given(st.lists(st.lists(CAPTION, min_size=1, max_size=3), min_size=1, max_size=4))
    def test_bytes_keep_any_tokens(self, references: list[list[list[str]]]) -> None:
        """White space inside or at the ends of a token, too: the words are kept as one line."""
        df = DocumentFrequency.from_references({str(n): several for n, several in enumerate(references)})
        copy = DocumentFrequency.from_bytes(df.to_bytes())
        assert list(copy.trie.ngrams()) == list(df.trie.ngrams())
        assert copy.counts.tolist() == df.counts.tolist()
        for ngram in (gram for several in references for tokens in several for gram in _ngrams(tokens, 1)):
            assert copy[ngram] == df[ngram]

    @pytest.mark.parametrize("eos", [None, EOS])
    def test_bytes_and_pickle_keep_everything(self, eos: str | None) -> None:
        references = {"x": _split(REFERENCES[0]), "é": _split(["日本 dog"])}
        df, prepared = prepare_training(references, eos)
        for copy in (DocumentFrequency.from_bytes(df.to_bytes()), pickle.loads(pickle.dumps(df))):
            assert list(copy.trie.ngrams()) == list(df.trie.ngrams())
            assert (copy.counts.tolist(), copy.num_images, copy.eos) == (df.counts.tolist(), 2, eos)
        copied = pickle.loads(pickle.dumps(prepared))
        ours = cider_d([["a", "man"]], ["x"], prepared, [True])
        assert cider_d([["a", "man"]], ["x"], copied, [True]) == pytest.approx(ours)


RIDING = {"x": [["a", "man", "riding", "a", "horse"]], "y": [["a", "dog"]], "z": [["rain"]]}


class TestEndOfSequence:
    def test_counts_for_finished_captions_only(self) -> None:
        _, prepared = prepare_training(RIDING, EOS)
        whole, cut = ["a", "man", "riding", "a", "horse"], ["a", "man", "riding", "a"]
        scores = cider_d([whole, whole, cut, cut], ["x"] * 4, prepared, [True, False, True, False])
        assert scores[0] > scores[1]  # same words, but it did not stop by itself
        assert scores[0] > scores[3]
        assert scores[0] == pytest.approx(10.0)

    def test_is_in_the_frequencies(self) -> None:
        df, _ = prepare_training(RIDING, EOS)
        assert df[[EOS]] == 3
        assert df[["horse", EOS]] == 1

    def test_flags_are_required(self) -> None:
        _, prepared = prepare_training(RIDING, EOS)
        with pytest.raises(Refused, match="finished"):
            cider_d([["a"]], ["x"], prepared)

    def test_without_eos_flags_change_nothing(self) -> None:
        _, prepared = prepare_training(RIDING)
        flagged = cider_d([["a", "dog"]] * 2, ["y"] * 2, prepared, [True, False])
        assert flagged[0] == flagged[1]


def test_refusals_name_the_fault() -> None:
    _, prepared = prepare_training({"x": [["a"]]})
    with pytest.raises(Refused, match="nope"):
        cider_d([["a"]], ["nope"], prepared)
    with pytest.raises(Refused, match="image_ids"):
        cider_d([["a"]], [], prepared)
    with pytest.raises(Refused, match="bare"):
        prepare_training({"x": [["a"]], "bare": []})
