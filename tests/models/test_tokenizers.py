from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raycap.errors import CheckpointError, DataError, RecipeError
from raycap.metrics.ptb import tokenize
from raycap.models.tokenizer import FILE, HFTokenizer, WordTokenizer, load_tokenizer

CAPTIONS = [
    "A man doesn't walk his dog .",
    "The man's dog can't swim , they say .",
    "We're sure they've seen it , and they'll say I'd win ; I'm glad .",
    "Two dogs' toys : a red ball & a well-known bone ( $ 5 ) !",
    "He cannot go , gonna stay at 5:30 with a 1/2 pizza .",
]


@pytest.fixture(scope="module")
def words() -> WordTokenizer:
    return WordTokenizer.train(CAPTIONS)


@pytest.mark.parametrize("caption", CAPTIONS)
def test_decoding_gives_a_caption_with_the_same_words(words: WordTokenizer, caption: str) -> None:
    """A metric that tokenises the decoded caption must see the tokens that the captioner said."""
    ids = words.encode(caption)
    assert tokenize(words.decode(ids)) == tokenize(caption)
    assert words.encode(words.decode(ids)) == ids
    assert not {words.pad_id, words.eos_id, words.unknown_id} & set(ids)


def test_clitics_are_joined_for_people(words: WordTokenizer) -> None:
    assert words.decode(words.encode("The man's dog doesn't swim")) == "the man's dog doesn't swim"
    assert words.decode(words.encode("we're sure I'd win")) == "we're sure i'd win"
    assert words.decode(words.encode("'s dog")) == "'s dog"


@given(st.lists(st.sampled_from(sorted({w for c in CAPTIONS for w in c.split() if w.isalpha()})), max_size=8))
def test_any_order_of_known_words_survives(chosen: list[str]) -> None:
    tokenizer = WordTokenizer.train(CAPTIONS)
    caption = " ".join(chosen)
    assert tokenize(tokenizer.decode(tokenizer.encode(caption))) == tokenize(caption)


def test_special_ids_and_unknown_words(words: WordTokenizer) -> None:
    assert (words.pad_id, words.eos_id, words.unknown_id) == (0, 1, 2)
    ids = words.encode("a zebra walk")
    assert ids[1] == 2
    assert 2 not in (ids[0], ids[2])
    assert words.decode(ids) == "a walk"
    dog = words.encode("dog")
    assert words.decode([*dog, 1, *dog]) == "dog"
    assert words.decode([0, *dog, 0]) == "dog"
    assert words.decode([]) == words.decode([1]) == ""
    assert words.vocab_size == 3 + len(words.words)
    assert max(words.encode(" ".join(CAPTIONS))) < words.vocab_size


def test_the_vocabulary_is_by_frequency_then_alphabet_and_its_order_of_input_does_not_matter() -> None:
    texts = ["b a", "c a", "b d"]
    assert WordTokenizer.train(texts).words == ("a", "b", "c", "d")
    assert WordTokenizer.train(texts[::-1]).words == ("a", "b", "c", "d")
    assert WordTokenizer.train(texts, min_count=2).words == ("a", "b")
    with pytest.raises(DataError, match=r"min_count = 3"):
        WordTokenizer.train(texts, min_count=3)


@pytest.fixture(scope="module")
def bpe() -> HFTokenizer:
    return HFTokenizer.train_bpe(CAPTIONS * 3, vocab_size=320)


def test_bpe_spells_everything_and_keeps_pad_apart_from_eos(bpe: HFTokenizer) -> None:
    assert (bpe.pad_id, bpe.eos_id) == (0, 1)
    for caption in ("a man walks his zebra", "a café at 5:30, naïve?", "don't — stop"):
        ids = bpe.encode(caption)
        assert bpe.decode(ids) == caption
        assert not {0, 1} & set(ids)
        assert max(ids) < bpe.vocab_size <= 320
        assert bpe.decode([*ids, 1, *ids]) == caption
    assert bpe.decode(bpe.encode("  A  MAN ")) == "a man"
    assert len(bpe.encode("the man's dog")) < len("the man's dog"), "merges should be learned"


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_saved_and_loaded(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    tokenizer = request.getfixturevalue(kind)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert type(again) is type(tokenizer)
    for caption in [*CAPTIONS, "a zebra's café"]:
        assert again.encode(caption) == tokenizer.encode(caption)
        assert again.decode(again.encode(caption)) == tokenizer.decode(tokenizer.encode(caption))
    for name in ("vocab_size", "eos_id", "pad_id", "unknown_id"):
        assert getattr(again, name) == getattr(tokenizer, name), name


def test_a_folder_without_a_tokenizer_or_with_a_broken_one_is_a_checkpoint_error(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    for broken in ("{", "[]", '{"kind": "word"}', '{"kind": "hf", "lead": ""}'):
        (tmp_path / FILE).write_text(broken)
        with pytest.raises(CheckpointError):
            load_tokenizer(tmp_path)


def test_a_tokenizer_without_eos_is_refused() -> None:
    class Inner:
        eos_token_id = None
        name_or_path = "some/model"

    with pytest.raises(RecipeError, match=r"captioner.lm = 'some/model'"):
        HFTokenizer(Inner())


def test_pad_equal_to_eos_is_kept_and_the_lead_is_put_before_the_caption(bpe: HFTokenizer) -> None:
    class Inner:
        eos_token_id, pad_token_id, name_or_path = 1, None, "x"

        def __len__(self) -> int:
            return 10

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            assert not add_special_tokens
            assert text == " a dog"
            return {"input_ids": [5, 6]}

    tokenizer = HFTokenizer(Inner(), lead=" ")
    assert (tokenizer.pad_id, tokenizer.eos_id) == (1, 1)
    assert tokenizer.encode("a  dog ") == [5, 6]
