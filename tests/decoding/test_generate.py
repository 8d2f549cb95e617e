"""K samples and greedy in one cached batch: against Hugging Face's `generate` and against forwards without a cache."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raycap.decoding import sample
from raycap.decoding.filters import Filters
from raycap.decoding.sample import generate
from raycap.decoding.uniforms import caption_uniforms
from raycap.models.prefix import PrefixCaptioner
from raycap.types import Generation
from tests.conftest import NumberTokenizer

EOS, PAD, LIMIT = 1, 0, 10


def pictures(count: int, seed: int = 5) -> Tensor:
    return torch.randn(count, 4, 8, generator=torch.Generator().manual_seed(seed))


def likes_to_end(captioner: PrefixCaptioner) -> PrefixCaptioner:
    """Scale the EOS's row so that captions end at many different lengths."""
    with torch.no_grad():
        captioner.lm.get_output_embeddings().weight[EOS] *= 2.0  # type: ignore[operator]
    return captioner


@pytest.fixture(scope="module", params=["gpt2", "llama", "llama, prefixes copied"])
def captioner(request: pytest.FixtureRequest, make_captioner: Callable[..., PrefixCaptioner]) -> PrefixCaptioner:
    """The last one is what becomes of an LM that does not hand its attention over."""
    made = make_captioner(request.param.partition(",")[0], seed=3, lm_config={"tie_word_embeddings": False})
    if "copied" in request.param:
        made._shares_prefix = False
    return likes_to_end(made)


def full_logprobs(captioner: PrefixCaptioner, picture: Tensor, ids: list[int], temperature: float = 1.0) -> Tensor:
    """One caption through one forward without a cache, in float32."""
    words = captioner.lm.get_input_embeddings()(torch.tensor([ids], dtype=torch.int64))  # type: ignore[operator]
    prefix = captioner.encode(picture[None])
    with torch.no_grad():
        logits = captioner.lm(inputs_embeds=torch.cat([prefix, words], dim=1), use_cache=False).logits[0]
    logprobs = torch.log_softmax(logits[prefix.shape[1] - 1 : -1] / temperature, dim=-1)
    return logprobs.gather(1, torch.tensor(ids)[:, None])[:, 0]


def hugging_face(captioner: PrefixCaptioner, features: Tensor, **options: Any) -> Any:
    prefix = captioner.encode(features)
    return captioner.lm.generate(  # type: ignore[operator]
        inputs_embeds=prefix, attention_mask=torch.ones(prefix.shape[:2], dtype=torch.int64), max_new_tokens=LIMIT,
        do_sample=False, eos_token_id=EOS, pad_token_id=PAD, **options,
    )  # fmt: skip


def spelt(row: Tensor) -> str:
    ids = row.tolist()
    return " ".join(map(str, ids[: ids.index(EOS)] if EOS in ids else ids))


def same_rows(one: Generation, two: Generation, rows_one: list[int], rows_two: list[int]) -> None:
    """The rows say the same: equal tokens, log-probabilities to rounding."""
    width = min(one.tokens.shape[1], two.tokens.shape[1])
    for a, b in zip(rows_one, rows_two, strict=True):
        length = int(one.lengths[a])
        assert length == int(two.lengths[b]) <= width
        np.testing.assert_array_equal(one.tokens[a, :length], two.tokens[b, :length])
        np.testing.assert_allclose(one.behavior_logprobs[a, :length], two.behavior_logprobs[b, :length], atol=1e-5)
        assert one.finished[a] == two.finished[b]


@torch.no_grad()
def test_greedy_captions_equal_hugging_face_token_by_token(captioner: PrefixCaptioner) -> None:
    features = pictures(200)
    made = generate(captioner, features, num_samples=0, greedy=True, max_length=LIMIT)
    theirs = [spelt(row) for row in hugging_face(captioner, features)]
    assert list(made.greedy_captions) == theirs
    lengths = {len(text.split()) for text in theirs}
    assert len(lengths) > 4, "the captions should end at many places"
    assert len(set(theirs)) > 50, "the captions should differ"


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_equal_a_full_forward(captioner: PrefixCaptioner, temperature: float) -> None:
    features = pictures(12)
    made = generate(
        captioner, features, num_samples=4, greedy=True, max_length=LIMIT, seed=1, step=2, temperature=temperature
    )
    assert made.num_samples == 4
    assert made.tokens.shape == made.behavior_logprobs.shape
    assert made.behavior_logprobs.dtype == np.float32
    for row, length in enumerate(made.lengths.tolist()):
        ids = made.tokens[row, :length].tolist()
        expected = full_logprobs(captioner, features[row // 4], ids, temperature)
        np.testing.assert_allclose(made.behavior_logprobs[row, :length], expected, atol=1e-4)


@torch.no_grad()
def test_rows_hold_pad_and_zero_behind_their_end_and_say_whether_they_finished(captioner: PrefixCaptioner) -> None:
    made = generate(captioner, pictures(20), num_samples=3, greedy=True, max_length=LIMIT, seed=4)
    cut = ended = 0
    for row, length in enumerate(made.lengths.tolist()):
        ids = made.tokens[row].tolist()
        assert (ids[length:], made.behavior_logprobs[row, length:].tolist()) == (
            [PAD] * (len(ids) - length), [0.0] * (len(ids) - length),
        )  # fmt: skip
        assert EOS not in ids[: length - 1]
        assert bool(made.finished[row]) == (ids[length - 1] == EOS)
        assert made.finished[row] or length == LIMIT
        assert made.captions[row] == spelt(torch.tensor(ids[:length]))
        cut, ended = cut + (not made.finished[row]), ended + bool(made.finished[row])
    assert cut, "some captions should be cut by the limit"
    assert ended, "and some should end by themselves"
    assert made.tokens.shape[1] == max(made.lengths)
    assert [len(text.split()) < LIMIT for text in made.greedy_captions] == made.greedy_finished.tolist()


@torch.no_grad()
def test_a_sample_follows_its_numbers_step_by_step(captioner: PrefixCaptioner) -> None:
    """The slow loop: one row, no cache, the inverse CDF in float64."""
    features, positions, seed, step, temperature = pictures(3), [17, 2, 90], 6, 31, 0.8
    made = generate(
        captioner, features, positions=positions, num_samples=2, greedy=False, max_length=LIMIT, seed=seed, step=step,
        temperature=temperature,
    )  # fmt: skip
    numbers = caption_uniforms(seed, step, np.array(positions), 2, LIMIT)
    words = captioner.lm.get_input_embeddings()  # type: ignore[operator]
    for row in range(6):
        ids: list[int] = []
        while len(ids) < LIMIT and ids[-1:] != [EOS]:
            known = words(torch.tensor([ids], dtype=torch.int64)) if ids else torch.zeros(1, 0, 16)
            inputs = torch.cat([captioner.encode(features[row // 2][None]), known], dim=1)
            logits = captioner.lm(inputs_embeds=inputs, use_cache=False).logits[0, -1].double()
            cumulative = torch.softmax(logits / temperature, dim=0).cumsum(0).numpy()
            ids.append(int(np.searchsorted(cumulative, numbers[row, len(ids)], side="right")))
        assert made.tokens[row, : made.lengths[row]].tolist() == ids


@torch.no_grad()
def test_captions_do_not_depend_on_batch_mates(captioner: PrefixCaptioner) -> None:
    features, positions = pictures(16), list(range(100, 116))
    options: dict[str, Any] = {"num_samples": 3, "greedy": True, "max_length": LIMIT, "seed": 2, "step": 9}
    whole = generate(captioner, features, positions=positions, **options)
    start = 0
    for size in (1, 2, 5, 8):
        part = slice(start, start + size)
        cut = generate(captioner, features[part], positions=positions[part], **options)
        rows = list(range(start * 3, (start + size) * 3))
        same_rows(whole, cut, rows, [row - start * 3 for row in rows])
        assert whole.greedy_captions[part] == cut.greedy_captions
        assert whole.greedy_finished[part].tolist() == cut.greedy_finished.tolist()
        start += size
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0)).tolist()
    mixed = generate(captioner, features[order], positions=[positions[i] for i in order], **options)
    same_rows(whole, mixed, [3 * i for i in order], list(range(0, 48, 3)))


@torch.no_grad()
def test_captions_of_a_real_vocabulary_hardly_depend_on_batch_mates(
    make_captioner: Callable[..., PrefixCaptioner],
) -> None:
    """4,000 words: fewer than one token in 10,000 differs, counted up to each caption's first difference."""
    wide = {"n_embd": 64, "n_head": 4}
    captioner = make_captioner("gpt2", tokenizer=NumberTokenizer(4000), seed=3, spread=0.15, lm_config=wide)
    features = pictures(200)
    options: dict[str, Any] = {"num_samples": 5, "greedy": True, "max_length": 20, "seed": 2}
    whole = generate(captioner, features, **options)
    tokens = differing = row = 0
    sizes = itertools.cycle([1, 3, 17])
    while row < 1000:
        images = slice(row // 5, row // 5 + next(sizes))
        part = generate(captioner, features[images], positions=range(200)[images], **options)
        for ids, length in zip(part.tokens, part.lengths.tolist(), strict=True):
            same = ids[:length] == whole.tokens[row, :length]
            tokens += length if same.all() else int(same.argmin()) + 1
            differing += not same.all()
            row += 1
    assert tokens > 10_000
    assert differing < 1e-4 * tokens


@torch.no_grad()
def test_more_samples_change_no_earlier_one(captioner: PrefixCaptioner) -> None:
    features = pictures(6)
    few = generate(captioner, features, num_samples=2, greedy=False, max_length=LIMIT, seed=2)
    many = generate(captioner, features, num_samples=5, greedy=True, max_length=LIMIT, seed=2)
    same_rows(few, many, [0, 1, 2, 3], [0, 1, 5, 6])
    assert few.greedy_captions == ()
    assert few.greedy_finished.shape == (0,)


@torch.no_grad()
def test_dropping_dead_rows_changes_nothing(captioner: PrefixCaptioner, monkeypatch: pytest.MonkeyPatch) -> None:
    made, steps = [], []
    plain = captioner.step
    for share in (0.0, 0.2, 2.0):  # at once, as it is, never
        monkeypatch.setattr(sample, "_DEAD_SHARE", share)
        sizes: list[int] = []

        def counted(state: Any, tokens: Tensor, sizes: list[int] = sizes) -> Any:
            sizes.append(len(tokens))
            return plain(state, tokens)

        monkeypatch.setattr(captioner, "step", counted)
        made.append(generate(captioner, pictures(16), num_samples=3, greedy=True, max_length=LIMIT, seed=8))
        steps.append(sizes)
    assert steps[2] == [64] * len(steps[2]), "the last run should keep every row"
    assert sum(steps[0]) <= sum(steps[1]) < sum(steps[2]), "the others should drop some"
    for other in made[1:]:
        same_rows(made[0], other, list(range(48)), list(range(48)))
        assert made[0].greedy_captions == other.greedy_captions


@torch.no_grad()
@pytest.mark.parametrize("rows_at_once", [1, 8, 20, 47])
def test_images_that_wait_say_the_same(captioner: PrefixCaptioner, rows_at_once: int) -> None:
    """Freed places are refilled with waiting images, whose rows stand at other places than those that are there."""
    features = pictures(24)
    options: dict[str, Any] = {"num_samples": 3, "greedy": True, "max_length": LIMIT, "seed": 3}
    whole = generate(captioner, features, **options)
    refilled = generate(captioner, features, **options, rows_at_once=rows_at_once)
    same_rows(whole, refilled, list(range(72)), list(range(72)))
    assert whole.greedy_captions == refilled.greedy_captions
    assert whole.greedy_finished.tolist() == refilled.greedy_finished.tolist()


@torch.no_grad()
def test_places_are_refilled_before_all_of_a_batch_have_ended(
    captioner: PrefixCaptioner, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not captioner.shares_prefix:
        pytest.skip("its rows stand at one place")
    sizes: list[int] = []
    plain = captioner.step

    def counted(state: Any, tokens: Tensor) -> Any:
        sizes.append(len(tokens))
        return plain(state, tokens)

    monkeypatch.setattr(captioner, "step", counted)
    made = generate(captioner, pictures(48), num_samples=3, greedy=False, max_length=LIMIT, rows_at_once=36)
    tokens = int((made.lengths - 1).sum())
    assert max(sizes) <= 36
    batches = [made.lengths[start : start + 36].max() - 1 for start in range(0, 144, 36)]
    assert len(sizes) < sum(batches), "one batch after the other takes more steps"
    assert sum(sizes) < 1.35 * tokens, "and few of the rows that are walked are dead"


@torch.no_grad()
def test_products_have_eight_rows_at_least(captioner: PrefixCaptioner, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    plain = captioner.step

    def counted(state: Any, tokens: Tensor) -> Any:
        sizes.append(len(tokens))
        return plain(state, tokens)

    said = generate(captioner, pictures(20), num_samples=0, greedy=True, max_length=LIMIT).greedy_captions
    longest = max(range(20), key=lambda n: len(said[n]))
    picture = pictures(20)[longest : longest + 1]
    monkeypatch.setattr(captioner, "step", counted)
    alone = generate(captioner, picture, num_samples=5, greedy=True, max_length=LIMIT)
    assert sizes
    assert set(sizes) == {8}
    many = generate(
        captioner, picture.expand(6, -1, -1), positions=[0] * 6, num_samples=5, greedy=True, max_length=LIMIT
    )
    same_rows(alone, many, list(range(5)), list(range(10, 15)))


@torch.no_grad()
def test_filters_hold_for_whole_captions(captioner: PrefixCaptioner) -> None:
    """No caption ends early or says a pair of words twice; greedy ones are Hugging Face's under the same limits."""
    features = pictures(40)
    filters = Filters(top_k=6, min_length=4, no_repeat_ngram=2)
    made = generate(captioner, features, num_samples=3, greedy=True, max_length=LIMIT, filters=filters)
    theirs = [spelt(row) for row in hugging_face(captioner, features, min_new_tokens=4, no_repeat_ngram_size=2)]
    assert list(made.greedy_captions) == theirs
    for row, length in zip(made.tokens.tolist(), made.lengths.tolist(), strict=True):
        words = row[:length]
        assert length > 4
        pairs = list(itertools.pairwise(words))
        assert len(set(pairs)) == len(pairs)
    free = generate(captioner, features, num_samples=3, greedy=True, max_length=LIMIT)
    assert free.captions != made.captions
    with torch.no_grad():
        first = captioner.prefill(captioner.encode(features)).readout.logits
    likely = first.masked_fill(torch.arange(20) == EOS, -torch.inf).topk(6, dim=1).indices
    assert all(made.tokens[3 * n + k, 0] in likely[n].tolist() for n in range(40) for k in range(3))


@torch.no_grad()
def test_greedy_alone_and_samples_alone(captioner: PrefixCaptioner) -> None:
    both = generate(captioner, pictures(5), num_samples=2, greedy=True, max_length=LIMIT)
    alone = generate(captioner, pictures(5), num_samples=0, greedy=True, max_length=LIMIT)
    assert alone.greedy_captions == both.greedy_captions
    assert (alone.captions, alone.tokens.shape[0], alone.lengths.shape) == ((), 0, (0,))
    one = generate(captioner, pictures(5), num_samples=2, greedy=True, max_length=1)
    assert one.tokens.shape == (10, 1)
    assert one.lengths.tolist() == [1] * 10


@torch.no_grad()
def test_whole_captions_have_their_exact_probabilities(captioner: PrefixCaptioner) -> None:
    """Chi-square over whole captions of one picture, rare ones together; probabilities from full forwards."""
    count = 3000
    made = generate(
        captioner,
        pictures(1).expand(count, -1, -1),
        num_samples=1,
        greedy=False,
        max_length=2,
        seed=12,
        temperature=3.0,
    )
    seen: dict[tuple[int, ...], int] = {}
    for row, length in zip(made.tokens.tolist(), made.lengths.tolist(), strict=True):
        seen[tuple(row[:length])] = seen.get(tuple(row[:length]), 0) + 1
    expected = {
        ids: count * float(full_logprobs(captioner, pictures(1)[0], list(ids), 3.0).sum().exp()) for ids in seen
    }
    often = [ids for ids in seen if expected[ids] > 20]
    cells = [(seen[ids], expected[ids]) for ids in often]
    rest = count - sum(e for _, e in cells)
    cells.append((count - sum(n for n, _ in cells), rest))
    assert len(cells) > 5
    fit = sum((n - e) ** 2 / e for n, e in cells)
    freedom = len(cells) - 1
    assert fit < freedom + 3.5 * (2 * freedom) ** 0.5 + 4
