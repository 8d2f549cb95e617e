"""Beam search against Hugging Face's on the same model, and against looking at every caption there is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from raycap.decoding.beam import beam_captions, beam_search
from raycap.decoding.filters import Filters
from raycap.decoding.sample import generate
from raycap.errors import Refused, WorkFailed
from raycap.models.prefix import PrefixCaptioner
from raycap.models.readout import Readout

EOS, PAD, LIMIT = 1, 0, 7


class ShortVocabulary:
    """Five tokens, spelt as numbers."""

    pad_id, eos_id, vocab_size = 0, 1, 5
    unknown_id = None

    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, itertools.takewhile(lambda i: i != 1, ids)))


def pictures(count: int, seed: int = 5) -> Tensor:
    return torch.randn(count, 4, 8, generator=torch.Generator().manual_seed(seed))


def biased(captioner: PrefixCaptioner, factor: float) -> PrefixCaptioner:
    with torch.no_grad():
        captioner.lm.get_output_embeddings().weight[EOS] *= factor  # type: ignore[operator]
    return captioner


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def captioner(request: pytest.FixtureRequest, make_captioner: Callable[..., PrefixCaptioner]) -> PrefixCaptioner:
    made = make_captioner(request.param, seed=3, spread=0.25, lm_config={"tie_word_embeddings": False})
    return biased(made, 2.0)


def hugging_face(captioner: PrefixCaptioner, features: Tensor, beams: int, penalty: float) -> list[tuple[str, float]]:
    prefix = captioner.encode(features)
    out: Any = captioner.lm.generate(  # type: ignore[operator]
        inputs_embeds=prefix, attention_mask=torch.ones(prefix.shape[:2], dtype=torch.int64), max_new_tokens=LIMIT,
        do_sample=False, num_beams=beams, early_stopping=False, length_penalty=penalty, eos_token_id=EOS,
        pad_token_id=PAD, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    texts = []
    for row in out.sequences.tolist():
        ids = row[: row.index(EOS)] if EOS in row else row
        texts.append(" ".join(map(str, ids)))
    return list(zip(texts, out.sequences_scores.tolist(), strict=True))


@torch.no_grad()
@pytest.mark.parametrize("penalty", [1.0, 0.0, 0.6, 2.0, -0.5])
@pytest.mark.parametrize("beams", [2, 3, 5])
def test_equal_to_hugging_face(captioner: PrefixCaptioner, beams: int, penalty: float) -> None:
    features = pictures(80)
    ours = beam_search(captioner, features, beam_size=beams, max_length=LIMIT, length_penalty=penalty)
    theirs = hugging_face(captioner, features, beams, penalty)
    different = [(i, o, t) for i, (o, t) in enumerate(zip(ours, theirs, strict=True)) if o[0] != t[0]]
    assert not different, f"{len(different)} of 80 captions differ, first {different[:2]}"
    torch.testing.assert_close(
        torch.tensor([s for _, s in ours]), torch.tensor([s for _, s in theirs]), rtol=0, atol=1e-4
    )


@torch.no_grad()
def test_the_comparison_is_no_easy_one(captioner: PrefixCaptioner) -> None:
    """Captions of many lengths, some cut by the limit, some unlike the greedy ones."""
    features = pictures(80)
    beam = [text for text, _ in beam_search(captioner, features, beam_size=3, max_length=LIMIT)]
    greedy = generate(captioner, features, num_samples=0, greedy=True, max_length=LIMIT).greedy_captions
    lengths = [len(text.split()) for text in beam]
    assert len(set(lengths)) > 4
    assert lengths.count(LIMIT) >= 3
    assert sum(a != b for a, b in zip(beam, greedy, strict=True)) > 10


@torch.no_grad()
@pytest.mark.parametrize("penalty", [1.0, 2.0])
def test_a_caption_does_not_depend_on_batch_mates(captioner: PrefixCaptioner, penalty: float) -> None:
    features = pictures(40)
    options: dict[str, Any] = {"beam_size": 3, "max_length": LIMIT, "length_penalty": penalty}
    whole = beam_search(captioner, features, **options)
    alone = [beam_search(captioner, features[n : n + 1], **options)[0] for n in range(40)]
    assert [text for text, _ in whole] == [text for text, _ in alone]
    torch.testing.assert_close(
        torch.tensor([s for _, s in whole]), torch.tensor([s for _, s in alone]), rtol=0, atol=1e-5
    )


@torch.no_grad()
def test_one_beam_is_greedy(captioner: PrefixCaptioner) -> None:
    features = pictures(30)
    beam = [text for text, _ in beam_search(captioner, features, beam_size=1, max_length=LIMIT, length_penalty=0.0)]
    assert beam == list(generate(captioner, features, num_samples=0, greedy=True, max_length=LIMIT).greedy_captions)


@torch.no_grad()
def test_enough_beams_find_the_likeliest_caption_of_all(make_captioner: Callable[..., PrefixCaptioner]) -> None:
    """Every caption of up to three tokens over a vocabulary of five, through full forwards."""
    captioner = make_captioner("gpt2", tokenizer=ShortVocabulary(), seed=1, spread=0.2)
    features, limit = pictures(10), 3
    ours = beam_search(captioner, features, beam_size=25, max_length=limit, length_penalty=0.0)
    captions = [
        ids for n in (1, 2, 3) for ids in itertools.product(range(5), repeat=n)
        if EOS not in ids[:-1] and (n == limit or ids[-1] == EOS)
    ]  # fmt: skip
    tokens = torch.tensor([[*ids, *[PAD] * (limit - len(ids))] for ids in captions])
    mask = torch.tensor([[float(t < len(ids)) for t in range(limit)] for ids in captions])
    words = captioner.lm.get_input_embeddings()(tokens)  # type: ignore[operator]
    for picture, (text, score) in zip(features, ours, strict=True):
        prefix = captioner.encode(picture[None]).expand(len(captions), -1, -1)
        logits = captioner.lm(inputs_embeds=torch.cat([prefix, words], dim=1), use_cache=False).logits[:, 3:-1]
        picked = torch.log_softmax(logits, dim=-1).gather(2, tokens[:, :, None])[:, :, 0]
        total = (picked * mask).sum(dim=1)
        assert float(total.logsumexp(dim=0)) == pytest.approx(0.0, abs=1e-4)
        best = int(total.argmax())
        assert text == ShortVocabulary().decode(list(captions[best]))
        assert score == pytest.approx(float(total[best]), abs=1e-4)


def diverse_by_hand(
    captioner: PrefixCaptioner, picture: Tensor, *, groups: int, size: int, diversity: float, limit: int
) -> list[tuple[str, float]]:
    """Diverse beam search of one picture as the paper has it: groups one after the other, lists, no cache."""
    words = captioner.lm.get_input_embeddings()  # type: ignore[operator]

    def next_logprobs(ids: list[int]) -> list[float]:
        known = words(torch.tensor([ids], dtype=torch.int64)) if ids else torch.zeros(1, 0, 16)
        inputs = torch.cat([captioner.encode(picture[None]), known], dim=1)
        logits = captioner.lm(inputs_embeds=inputs, use_cache=False).logits[0, -1]
        return list(torch.log_softmax(logits, dim=0).tolist())

    beams: list[list[tuple[float, list[int]]]] = [[(0.0, [])] for _ in range(groups)]
    found: list[list[tuple[float, list[int]]]] = [[] for _ in range(groups)]
    closed = [False] * groups
    for length in range(1, limit + 1):
        said: list[int] = []  # by earlier groups in this place
        for group in range(groups):
            candidates = [
                (score + logprob - diversity * said.count(word), [*ids, word])
                for score, ids in beams[group] for word, logprob in enumerate(next_logprobs(ids))
            ]  # fmt: skip
            candidates = sorted(candidates, key=lambda c: -c[0])[: 2 * size]
            ended = [(score / length, ids) for score, ids in candidates[:size] if ids[-1] == EOS]
            if not closed[group]:
                found[group] = sorted(found[group] + ended, key=lambda c: -c[0])[:size]
            beams[group] = [c for c in candidates if c[1][-1] != EOS][:size]
            said += [ids[-1] for _, ids in beams[group]]
            full = len(found[group]) == size
            closed[group] = closed[group] or (full and found[group][-1][0] >= beams[group][0][0] / length)
    for group in range(groups):
        if not closed[group]:
            cut = [(score / len(ids), ids) for score, ids in beams[group]]
            found[group] = sorted(found[group] + cut, key=lambda c: -c[0])[:size]
    ranked = sorted((c for group in found for c in group), key=lambda c: -c[0])
    return [(" ".join(map(str, itertools.takewhile(lambda i: i != EOS, ids))), score) for score, ids in ranked]


@torch.no_grad()
@pytest.mark.parametrize(("groups", "size", "diversity"), [(1, 3, 0.0), (2, 2, 0.5), (3, 1, 1.5), (4, 2, 0.2)])
def test_diverse_beams_are_those_of_the_slow_search(
    captioner: PrefixCaptioner, groups: int, size: int, diversity: float
) -> None:
    features = pictures(12)
    ours = beam_captions(
        captioner, features, beam_size=groups * size, max_length=5, groups=groups, diversity=diversity
    )  # fmt: skip
    for picture, captions in zip(features, ours, strict=True):
        slow = diverse_by_hand(captioner, picture, groups=groups, size=size, diversity=diversity, limit=5)
        assert [text for text, _ in captions] == [text for text, _ in slow]
        assert [score for _, score in captions] == pytest.approx([score for _, score in slow], abs=1e-4)


@torch.no_grad()
def test_groups_say_different_things_where_it_costs_to_agree(captioner: PrefixCaptioner) -> None:
    features = pictures(20)
    options: dict[str, Any] = {"beam_size": 4, "max_length": LIMIT, "groups": 4, "filters": Filters(min_length=2)}
    alike = beam_captions(captioner, features, **options)
    apart = beam_captions(captioner, features, **options, diversity=9.0)
    assert all(len({text for text, _ in captions}) == 1 for captions in alike), "nothing keeps the groups apart"
    firsts = [len({text.split(" ")[0] for text, _ in captions}) for captions in apart]
    assert min(firsts) == 4


def test_groups_that_do_not_divide_the_beams_are_refused(captioner: PrefixCaptioner) -> None:
    with pytest.raises(Refused, match="groups = 2"):
        beam_search(captioner, pictures(1), beam_size=3, max_length=LIMIT, groups=2)
    for limits in ({"top_k": -1}, {"top_p": 0.0}):
        with pytest.raises(Refused):
            Filters(**limits)  # type: ignore[arg-type]


@torch.no_grad()
def test_beams_keep_to_the_filters(captioner: PrefixCaptioner) -> None:
    filters = Filters(min_length=4, no_repeat_ngram=2)
    free = beam_search(captioner, pictures(30), beam_size=3, max_length=LIMIT)
    kept = beam_search(captioner, pictures(30), beam_size=3, max_length=LIMIT, filters=filters)
    assert min(len(text.split()) for text, _ in free) < 4
    for text, _ in kept:
        words = text.split()
        assert len(words) >= 4
        pairs = list(itertools.pairwise(words))
        assert len(set(pairs)) == len(pairs)


@torch.no_grad()
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize(("beams", "groups"), [(1, 1), (3, 1), (4, 2)])
def test_nothing_is_searched_in_what_is_no_number(
    captioner: PrefixCaptioner, monkeypatch: pytest.MonkeyPatch, value: float, beams: int, groups: int
) -> None:
    """The logits of one row break after its first word; other images' captions are not handed out either."""
    _ = captioner.shares_prefix  # found out by steps too
    plain, steps = captioner.step, []

    def breaks(state: Any, tokens: Tensor) -> Any:
        readout, state = plain(state, tokens)
        steps.append(len(tokens))
        logits = readout.logits.clone()
        logits[-1, EOS] = value
        state.readout = Readout(logits)
        return readout, state

    monkeypatch.setattr(captioner, "step", breaks)
    with pytest.raises(WorkFailed, match=r"logits = nan.*weights or features are not finite"):
        beam_search(captioner, pictures(20), beam_size=beams, groups=groups, diversity=0.5, max_length=LIMIT)
    assert len(steps) == 1
