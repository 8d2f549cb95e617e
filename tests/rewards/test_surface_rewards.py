"""Length, repetition, bad endings and gender words as rewards, by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from raycap.errors import RecipeError
from raycap.rewards.context import Context
from raycap.rewards.contract import build_component
from raycap.types import CaptionBatch

MakeContext = Callable[..., Context]


def score(context: Context, name: str, *captions: str, image: str = "a", finished: bool = True, **options: Any) -> Any:
    batch = CaptionBatch((image,) * len(captions), captions, (finished,) * len(captions))
    return build_component(name, context, options).score(batch)


def test_length_is_free_near_the_target_and_falls_linearly_outside(make_context: MakeContext) -> None:
    words = ["dog", "a dog", "a big dog", "a big red dog runs", "a big red dog runs in the snow"]
    got = score(make_context(), "length", *words, "", target=4, tolerance=1)
    assert got == pytest.approx([-2 / 4, -1 / 4, 0, 0, -3 / 4, -3 / 4])


def test_the_target_is_the_references_mean_length(make_context: MakeContext) -> None:
    context = make_context()
    lengths = [len(text.replace(".", "").replace(",", "").split())
               for texts in context.labelled_references().values() for text in texts]  # fmt: skip
    assert build_component("length", context, {}).target == pytest.approx(sum(lengths) / len(lengths), abs=0.5)  # type: ignore[attr-defined]


def test_repetition_is_the_share_of_bigrams_said_before(make_context: MakeContext) -> None:
    assert score(make_context(), "repetition", "a dog a dog a dog", "a red dog", "dog") == pytest.approx([-3 / 5, 0, 0])
    assert score(make_context(), "repetition", "a dog and a cat", n=1) == pytest.approx([-1 / 5])


def test_a_caption_that_stops_in_the_middle_costs_one(make_context: MakeContext) -> None:
    context = make_context()
    assert score(context, "bad_ending", "a dog on the", "a dog on the grass", "") == [-1, 0, 0]
    assert score(context, "bad_ending", "a dog on the grass", finished=False) == [-1]
    assert score(context, "bad_ending", "a dog on the grass", finished=False, unfinished=False) == [0]


def test_gender_words_cost_where_no_reference_has_that_gender(make_context: MakeContext) -> None:
    context = make_context()
    images = {image: " ".join(texts) for image, texts in context.labelled_references().items()}
    male = next(image for image, text in images.items() if " man" in f" {text}")
    neither = next(image for image, text in images.items() if " man" not in f" {text}" and "wom" not in text)
    said = ("a man rides", "a woman rides", "a girl and her mother", "a person rides")
    assert score(context, "bias", *said, image=male) == [0, -1, -3, 0]
    assert score(context, "bias", *said, image=neither) == [-1, -1, -3, 0]
    assert score(context, "bias", "a man", image="d") == [None]


@pytest.mark.parametrize(
    ("name", "options"),
    [("length", {"target": 0}), ("length", {"target": float("nan")}), ("length", {"tolerance": -1}),
     ("repetition", {"n": 0})],
)  # fmt: skip
def test_options_out_of_range_are_refused_by_name(
    make_context: MakeContext, name: str, options: dict[str, Any]
) -> None:
    with pytest.raises(RecipeError, match=rf"rewards\.{name}\.options\.{next(iter(options))} = "):
        build_component(name, make_context(), options)
