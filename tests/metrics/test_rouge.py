"""ROUGE-L against pycocoevalcap and a plain table of subsequences."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raycap.metrics.rouge import _common, rouge_l, rouge_l_caption

pycoco = pytest.importorskip("pycocoevalcap.rouge.rouge")

WORDS = st.sampled_from(
    ["a", "man", "dog", "é", "日本", "1\u00a01/2", "n't", "runs", "😀", "\u00a0a.com", "a.com\u2003", "a.com"]
)
CAPTION = st.lists(WORDS, max_size=12)
CORPUS = st.lists(st.tuples(CAPTION, st.lists(CAPTION, min_size=1, max_size=4)), min_size=1, max_size=6)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(CORPUS)
def test_equals_pycocoevalcap(corpus: list[tuple[list[str], list[list[str]]]]) -> None:
    candidates, references = [one for one, _ in corpus], [several for _, several in corpus]
    gts = {i: [" ".join(tokens) for tokens in several] for i, several in enumerate(references)}
    theirs, each = pycoco.Rouge().compute_score(gts, {i: [" ".join(one)] for i, one in enumerate(candidates)})
    ours, per_image = rouge_l(candidates, references)
    assert ours == pytest.approx(theirs, abs=1e-9)
    assert per_image == pytest.approx(each, abs=1e-9)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(st.text("abc", min_size=1, max_size=80), st.text("abc", max_size=80))
def test_common_subsequence_equals_the_table(one: str, other: str) -> None:
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for i, left in enumerate(one):
        for j, right in enumerate(other):
            table[i + 1][j + 1] = table[i][j] + 1 if left == right else max(table[i][j + 1], table[i + 1][j])
    masks: dict[str, int] = {}
    for position, char in enumerate(one):
        masks[char] = masks.get(char, 0) | 1 << position
    assert _common(masks, len(one), list(other)) == table[-1][-1]


def test_by_hand() -> None:
    """Best precision 3/4 from the first reference, best recall 1 from the second: F with β² = 1.44."""
    score = rouge_l_caption(["a", "dog", "runs", "home"], [["a", "dog", "was", "home", "again"], ["dog", "home"]])
    assert score == pytest.approx(2.44 * 0.75 * 1 / (1 + 1.44 * 0.75))


def test_empty_captions_as_the_reference_tool_has_them() -> None:
    assert rouge_l_caption([], [["a"]]) == 0.0
    assert rouge_l_caption([], [[]]) == 1.0
    assert rouge_l([], [])[0] == 0.0
