"""What every component's answer goes through: a failure is never a reward, and it says whose it is."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from raycap.errors import DataError, RecipeError, RewardError
from raycap.recipe.sections import THROUGH_CLIP, WITH_REFERENCES
from raycap.rewards.contract import BUILT_IN, build_component, checked_scores, score_generation
from raycap.types import CaptionBatch, Generation

BATCH = CaptionBatch(("cat.jpg", "cat.jpg", "dog.jpg"), ("a cat", "a red cat", "a dog"), (True, False, True))


class Scripted:
    """Answers what it was told to, and remembers what it was asked."""

    def __init__(self, answer: Callable[[CaptionBatch], Any]) -> None:
        self.answer, self.asked = answer, list[CaptionBatch]()

    def score(self, batch: CaptionBatch) -> Any:
        self.asked.append(batch)
        return self.answer(batch)


def ask(answer: Callable[[CaptionBatch], Any], batch: CaptionBatch = BATCH) -> Any:
    return checked_scores("mine", Scripted(answer), batch)


def test_good_answers_are_handed_on_as_float32_and_none_as_nan() -> None:
    got = ask(lambda batch: [1.5, None, -2])
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, np.array([1.5, np.nan, -2], np.float32))


@pytest.mark.parametrize(
    "answer",
    [
        np.array([1, 2, 3], np.float64), np.array([1, 2, 3]), torch.tensor([1.0, 2.0, 3.0]), (1, 2.0, np.float16(3)),
        [True, Decimal(2), torch.tensor(3.0)],
    ],
)  # fmt: skip
def test_numbers_of_every_library_will_do(answer: Any) -> None:
    assert ask(lambda batch: answer).tolist() == [1, 2, 3]


BAD_VALUES = [
    math.nan, math.inf, -math.inf, np.float32("nan"), torch.tensor(math.inf), 1e300, -1e39, 10**400, "0.5", "good",
    b"1", [0.5], object(), 1j,
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD_VALUES, ids=lambda bad: str(bad)[:12])
def test_what_is_no_finite_number_stops_the_job_and_names_component_image_and_caption(bad: Any) -> None:
    with pytest.raises(RewardError) as failed:
        ask(lambda batch: [0.5, bad, 0.5])
    message = str(failed.value)
    for part in ("rewards.mine", "'cat.jpg'", "'a red cat'", "return None"):
        assert part in message
    assert failed.value.exit_code == 1


@pytest.mark.parametrize(("count", "caption"), [(0, "a cat"), (2, "a dog"), (4, "a dog")])
def test_a_wrong_number_of_values_stops_the_job(count: int, caption: str) -> None:
    with pytest.raises(RewardError, match=rf"rewards.mine = '{caption}': returned {count} values for 3 captions"):
        ask(lambda batch: [0.0] * count)


@pytest.mark.parametrize("error", [ValueError("no such word"), KeyError("x"), MemoryError(), SystemExit(3)])
def test_an_exception_stops_the_job_and_is_kept_as_the_cause(error: BaseException) -> None:
    def answer(batch: CaptionBatch) -> Any:
        raise error

    with pytest.raises(RewardError, match=rf"raised {type(error).__name__}") as failed:
        ask(answer)
    assert failed.value.__cause__ is error
    for part in ("rewards.mine", "'cat.jpg'", "'a cat'", "mend the component"):
        assert part in str(failed.value)


@pytest.mark.parametrize("answer", [None, 0.5, 7])
def test_an_answer_that_is_no_list_stops_the_job(answer: Any) -> None:
    with pytest.raises(RewardError, match="raised TypeError"):
        ask(lambda batch: answer)


@pytest.mark.parametrize(
    "answer",
    [{1.0: "a", 2.0: "b", 3.0: "c"}, {1.0: 1, 2.0: 2, 3.0: 3}.keys(), {1.0, 2.0, 3.0}, frozenset((1, 2, 3)), "123",
     b"123", bytearray(b"123"), {}, Counter([1.0, 2.0, 3.0])],
    ids=lambda answer: type(answer).__name__,
)  # fmt: skip
def test_what_has_no_order_of_captions_stops_the_job(answer: Any) -> None:
    """The keys of a dict of three numbers would pass for three rewards."""
    kind = type(answer).__name__
    with pytest.raises(RewardError, match=rf"rewards.mine = 'a cat': returned a {kind}.*return a list"):
        ask(lambda batch: answer)


def test_a_fault_of_the_configuration_stays_one() -> None:
    """A refusal (exit 2) by what the context gives must not turn into a failure of the component."""

    def answer(batch: CaptionBatch) -> Any:
        raise DataError("has no features", key="image_id", value="cat.jpg")

    with pytest.raises(DataError, match="has no features"):
        ask(answer)


def test_identical_captions_of_one_image_are_scored_once_and_answered_everywhere() -> None:
    batch = CaptionBatch(
        ("a", "a", "b", "a", "a", "b"), ("x", "y", "x", "x", "x", "x"), (True, True, True, True, False, True)
    )
    component = Scripted(lambda asked: list(range(10, 10 + len(asked))))
    got = checked_scores("mine", component, batch)
    assert component.asked == [CaptionBatch(("a", "a", "b", "a"), ("x", "y", "x", "x"), (True, True, True, False))]
    # whether a caption ended by itself decides about its EOS: such twins are scored apart
    assert got.tolist() == [10, 11, 12, 10, 13, 12]


def test_no_caption_at_all() -> None:
    assert checked_scores("mine", Scripted(lambda batch: []), CaptionBatch((), (), ())).shape == (0,)
    with pytest.raises(RewardError, match=r"rewards.mine: returned 1 values for 0"):
        checked_scores("mine", Scripted(lambda batch: [1.0]), CaptionBatch((), (), ()))


def generation(captions: Sequence[str], greedy: Sequence[str], samples: int) -> Generation:
    rows = len(captions)
    return Generation(
        tokens=np.zeros((rows, 1), np.int64), lengths=np.ones(rows, np.int64),
        behavior_logprobs=np.zeros((rows, 1), np.float32), finished=np.arange(rows) % 2 == 0, captions=tuple(captions),
        greedy_captions=tuple(greedy), greedy_finished=np.array([True, False]), num_samples=samples,
    )  # fmt: skip


def test_a_lease_s_samples_and_greedy_captions_find_their_places() -> None:
    made = generation(["p", "q", "r", "s", "t", "u"], ["v", "w"], 3)
    component = Scripted(lambda batch: [None if c == "q" else float(ord(c)) for c in batch.captions])
    scores = score_generation("mine", component, ["a", "b"], made)
    expected = np.array([[ord("p"), np.nan, ord("r")], [ord("s"), ord("t"), ord("u")]], np.float32)
    np.testing.assert_array_equal(scores.rewards, expected)
    np.testing.assert_array_equal(scores.greedy_rewards, np.array([ord("v"), ord("w")], np.float32))
    assert scores.seconds >= 0
    (asked,) = component.asked
    assert asked.image_ids == ("a", "a", "a", "b", "b", "b", "a", "b")
    assert asked.captions == ("p", "q", "r", "s", "t", "u", "v", "w")
    assert asked.finished == (True, False, True, False, True, False, True, False)
    assert all(type(flag) is bool for flag in asked.finished)


def test_a_failure_reaches_the_caller_of_a_lease_and_is_never_zero() -> None:
    made = generation(["p", "q"], ["v", "w"], 1)
    with pytest.raises(RewardError, match="'w'"):
        score_generation("mine", Scripted(lambda batch: [1.0, 1.0, 1.0, math.nan]), ["a", "b"], made)


USER_MODULE = '''
class Mistaken:
    """Its constructor fails with the error that wrong options would give."""

    def __init__(self, context):
        len(3)

    def score(self, batch):
        return []


class Short:
    """Shorter is better."""

    def __init__(self, context, *, scale=1.0):
        self.context, self.scale = context, scale

    def score(self, batch):
        return [-self.scale * len(caption.split()) for caption in batch.captions]


class Picky:
    def __init__(self, context):
        raise FileNotFoundError("dictionary.txt")
'''


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "users_own_rewards.py").write_text(USER_MODULE)
    (tmp_path / "broken_rewards.py").write_text("def score(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "users_own_rewards"
    sys.modules.pop("users_own_rewards", None)


def test_a_component_of_the_user_by_module_and_class(user_module: str) -> None:
    context: Any = object()
    component = build_component("short", context, {"scale": 2.0}, f"{user_module}:Short")
    assert component.context is context  # type: ignore[attr-defined]
    assert checked_scores("short", component, BATCH).tolist() == [-4, -6, -4]
    # a source of one's own stands in for the built-in one of that name
    assert type(build_component("cider", context, {}, f"{user_module}:Short")).__name__ == "Short"


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("meteor", "", r"rewards.meteor.source = 'meteor': expected one of cider, clip"),
        ("mine", "users_own_rewards", r"rewards.mine.source = 'users_own_rewards': expected"),
        ("mine", "users_own_rewards:", "expected one of"),
        ("mine", ":Short", "expected one of"),
        ("mine", "users_own_rewards:Long", "cannot be imported.*Long"),
        ("mine", "no_such_module_anywhere:Short", "cannot be imported.*no_such_module_anywhere"),
        ("mine", "broken_rewards:Short", "cannot be imported: SyntaxError"),
    ],
)
def test_sources_that_lead_nowhere_are_refused(user_module: str, name: str, source: str, message: str) -> None:
    context: Any = object()
    with pytest.raises(RecipeError, match=message) as refused:
        build_component(name, context, {}, source)
    assert refused.value.key == f"rewards.{name}.source"


def test_wrong_options_are_refused_and_a_constructor_that_fails_is_named(user_module: str) -> None:
    context: Any = object()
    with pytest.raises(RecipeError, match="weight") as refused:
        build_component("short", context, {"weight": 3}, f"{user_module}:Short")
    assert (refused.value.key, refused.value.value) == ("rewards.short.options", {"weight": 3})
    with pytest.raises(RewardError, match=r"rewards.picky = 'users_own_rewards:Picky'.*dictionary.txt"):
        build_component("picky", context, {}, f"{user_module}:Picky")
    with pytest.raises(RewardError, match=r"raised TypeError when it was built: .*len\(\)"):
        build_component("mistaken", context, {}, f"{user_module}:Mistaken")


def test_what_a_component_needs_is_known_by_its_name(make_context: Any) -> None:
    """The recipe's lists, which decide before anything is built, against the components themselves."""
    batch = CaptionBatch(("d",), ("a dog",), (True,))  # an image without references
    for name in sorted(BUILT_IN.keys() - {"critic"}):  # a critic is another's class
        if name in THROUGH_CLIP:
            with pytest.raises(RecipeError, match=r"clip\.reward: is not set"):
                build_component(name, make_context(), {})
            continue
        lacks = build_component(name, make_context(), {}).score(batch) == [None]
        assert lacks == (name in (*WITH_REFERENCES, "bias")), name  # `bias` is a brake: it joins where it can
