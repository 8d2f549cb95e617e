"""Batches for the cross-entropy: a function of (seed, step), tokens and masks as the slow way makes them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from raycap.errors import DataError
from raycap.models.tokenizer import HFTokenizer, WordTokenizer
from raycap.train.labelled import LabelledSet
from raycap.types import LabelledBatch

WORDS = WordTokenizer(["a", "red", "dog", "runs", "far"])  # ids 3 to 7; 0 pad, 1 EOS, 2 unknown
CAPTIONS = {
    "i0": ("a red dog", "a dog"),
    "i1": ("a zebra runs",),
    "i2": ("a red dog runs far", "dog", "a red red dog"),
    "i3": ("dog runs", "a dog runs"),
    "i4": ("far", "red", "a", "runs", "dog"),
}


def made(max_length: int = 10) -> LabelledSet:
    return LabelledSet(CAPTIONS, WORDS, max_length)


def captions_of(batch: LabelledBatch) -> list[str]:
    return [WORDS.decode(row.tolist()) for row in batch.tokens]


def test_tokens_and_masks_by_hand() -> None:
    batch = made().take([1, 0], 2)
    assert batch.image_ids == ("i1", "i0")
    rows = {tuple(row): tuple(mask) for row, mask in zip(batch.tokens.tolist(), batch.loss_mask.tolist(), strict=True)}
    assert rows == {
        (3, 2, 6, 1): (1, 0, 1, 1),  # an unknown word is read, and never learned
        (3, 4, 5, 1): (1, 1, 1, 1),
        (3, 5, 1, 0): (1, 1, 1, 0),
    }
    assert (batch.tokens.dtype, batch.loss_mask.dtype) == (np.int64, np.float32)


def test_a_caption_that_is_cut_has_no_end_to_learn() -> None:
    batch = made(max_length=3).take([0, 2], 3)
    for row, mask in zip(batch.tokens.tolist(), batch.loss_mask.tolist(), strict=True):
        length = int(sum(mask))
        assert (1 in row[:length]) == (length < 3 or row[2] == 1)
    assert [3, 4, 5] in batch.tokens.tolist()
    assert batch.tokens.shape[1] == 3


def test_a_batch_hangs_on_seed_and_step_alone() -> None:
    options = {"batch_size": 2, "captions_per_image": 2}
    forwards = [made().batch(step, seed=1, **options) for step in range(8)]
    again = made()
    for step in (7, 0, 3, 5):
        batch = again.batch(step, seed=1, **options)
        assert batch.image_ids == forwards[step].image_ids
        np.testing.assert_array_equal(batch.tokens, forwards[step].tokens)
        np.testing.assert_array_equal(batch.loss_mask, forwards[step].loss_mask)
    other = [made().batch(step, seed=2, **options) for step in range(8)]
    assert [b.image_ids for b in other] != [b.image_ids for b in forwards]


def test_an_epoch_shows_no_image_twice_and_leaves_out_others_each_time() -> None:
    labelled = made()
    assert labelled.steps_per_epoch(2) == 2
    left_out = set()
    for epoch in range(12):
        shown = [i for step in (2 * epoch, 2 * epoch + 1)
                 for i in labelled.batch(step, batch_size=2, captions_per_image=1, seed=0).image_ids]  # fmt: skip
        assert len(set(shown)) == 4
        left_out |= set(CAPTIONS) - set(shown)
    assert left_out == set(CAPTIONS)


def test_a_batch_larger_than_the_set_is_the_set() -> None:
    labelled = made()
    assert labelled.steps_per_epoch(99) == 1
    assert sorted(labelled.batch(3, batch_size=99, captions_per_image=1, seed=0).image_ids) == sorted(CAPTIONS)


def test_an_image_gives_its_captions_in_turn_and_repeats_only_when_it_has_fewer() -> None:
    labelled = made()
    for epoch in range(4):
        batch = labelled.take(range(5), 3, seed=0, epoch=epoch)
        said = captions_of(batch)
        for place, image_id in enumerate(batch.image_ids):
            mine = Counter(said[3 * place : 3 * place + 3])
            known = {WORDS.decode(WORDS.encode(text)) for text in CAPTIONS[image_id]}
            assert set(mine) <= known
            assert max(mine.values()) == -(-3 // len(known))
    shown = {captions_of(labelled.take([4], 1, seed=0, epoch=epoch))[0] for epoch in range(40)}
    assert shown == set(CAPTIONS["i4"]), "over the epochs every caption should be read"


def test_images_draw_their_captions_independently() -> None:
    """One order for all images would show them all their first caption at once."""
    same = {f"i{n}": ("a", "red", "dog") for n in range(30)}
    first = captions_of(LabelledSet(same, WORDS, 5).take(range(30), 1, seed=0, epoch=0))
    assert set(first) == {"a", "red", "dog"}


def test_a_tokenizer_without_an_unknown_word_learns_every_token() -> None:
    bpe = HFTokenizer.train_bpe(["a red dog"], vocab_size=270)
    batch = LabelledSet({"i": ("a zebra",)}, bpe, 50).take([0], 1)
    assert batch.loss_mask.all()
    assert batch.tokens[0, -1] == bpe.eos_id
    assert bpe.decode(batch.tokens[0].tolist()) == "a zebra"


def test_an_image_without_captions_is_refused() -> None:
    with pytest.raises(DataError, match=r"image_id = 'empty'"):
        LabelledSet({"full": ("a",), "empty": ()}, WORDS, 5)
