"""Text to token ids and back: word vocabularies made from captions, BPE made from captions, a pretrained LM's own.

A vocabulary is made from the captions that the trial may read (its labelled part) and from nothing else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from raycap.errors import CheckpointError, DataError, RecipeError
from raycap.metrics.ptb import tokenize

FILE = "raycap_tokenizer.json"
# PTB cuts "don't" into "do n't"; a caption for people has them joined again. Tokenising the joined form cuts it back.
_CLITICS = ("'s", "n't", "'re", "'ve", "'ll", "'d", "'m", "'")


class Tokenizer(Protocol):
    """Ids of a caption without its EOS, and the caption of ids (from the first EOS on they are ignored)."""

    vocab_size: int
    eos_id: int
    pad_id: int
    unknown_id: int | None

    def encode(self, caption: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def save(self, folder: Path) -> None: ...


class WordTokenizer:
    """One id a PTB word. Ids 0, 1, 2 are padding, end of sequence and the unknown word."""

    pad_id, eos_id = 0, 1

    def __init__(self, words: Sequence[str]) -> None:
        self.unknown_id: int | None = 2
        self.words = tuple(words)
        self._ids = {word: index + 3 for index, word in enumerate(self.words)}
        self.vocab_size = len(self.words) + 3

    @classmethod
    def train(cls, captions: Iterable[str], *, min_count: int = 1) -> WordTokenizer:
        """The words that occur at least `min_count` times, most frequent first, ties in alphabetical order."""
        counts = Counter(word for caption in captions for word in tokenize(caption))
        words = [word for word, count in counts.items() if count >= min_count]
        if not words:
            raise DataError("no word occurs often enough", key="captioner.vocabulary.min_count", value=min_count,
                            remedy="lower it, or give more captions")  # fmt: skip
        return cls(sorted(words, key=lambda word: (-counts[word], word)))

    def encode(self, caption: str) -> list[int]:
        return [self._ids.get(word, 2) for word in tokenize(caption)]

    def decode(self, ids: Sequence[int]) -> str:
        words: list[str] = []
        for index in ids:
            if index == self.eos_id:
                break
            if index < 3:
                continue
            word = self.words[index - 3]
            if words and word in _CLITICS:
                words[-1] += word
            else:
                words.append(word)
        return " ".join(words)

    def save(self, folder: Path) -> None:
        content = json.dumps({"kind": "word", "words": self.words}, ensure_ascii=False)
        (folder / FILE).write_text(content, encoding="utf-8")


class HFTokenizer:
    """A Hugging Face tokenizer: BPE made from captions here, or the one that a pretrained LM brings.

    Where a tokenizer has no pad, or pad equals EOS, padding is known by length and never by id.
    """

    unknown_id: int | None = None

    def __init__(self, inner: Any, *, lead: str = "") -> None:
        if inner.eos_token_id is None:
            what, remedy = "its tokenizer has no end-of-sequence token", "choose an LM whose tokenizer has one"
            raise RecipeError(what, key="captioner.lm", value=inner.name_or_path, remedy=remedy)
        self.inner, self.lead = inner, lead
        self.eos_id = int(inner.eos_token_id)
        self.pad_id = int(inner.pad_token_id) if inner.pad_token_id is not None else self.eos_id
        self.vocab_size = len(inner)

    @classmethod
    def train_bpe(cls, captions: Iterable[str], *, vocab_size: int) -> HFTokenizer:
        """Byte-level BPE (Sennrich et al. 2016) on lower-cased captions, with pad 0 and EOS 1."""
        from tokenizers import Tokenizer as Fast
        from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
        from transformers import PreTrainedTokenizerFast

        fast = Fast(models.BPE())
        fast.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        fast.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=["<pad>", "<eos>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        fast.train_from_iterator((" ".join(caption.split()).rstrip(" .") for caption in captions), trainer)
        return cls(PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="<pad>", eos_token="<eos>"))

    def encode(self, caption: str) -> list[int]:
        text = self.lead + " ".join(caption.split())
        return list(self.inner(text, add_special_tokens=False)["input_ids"])

    def decode(self, ids: Sequence[int]) -> str:
        kept: list[int] = []
        for index in ids:
            if index == self.eos_id:
                break
            kept.append(int(index))
        return str(self.inner.decode(kept, skip_special_tokens=True)).strip()

    def save(self, folder: Path) -> None:
        self.inner.save_pretrained(folder)
        (folder / FILE).write_text(json.dumps({"kind": "hf", "lead": self.lead}))


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer that a checkpoint holds.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    file = folder / FILE
    if not file.is_file():
        raise CheckpointError("holds no tokenizer", key="checkpoint", value=str(folder),
                              remedy=f"a captioner's folder has a {FILE}")  # fmt: skip
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        if stored["kind"] == "word":
            return WordTokenizer(stored["words"])
        from transformers import AutoTokenizer

        return HFTokenizer(AutoTokenizer.from_pretrained(str(folder)), lead=stored["lead"])
    except Exception as error:  # the tokenizers library raises bare ones
        what = f"cannot be read: {type(error).__name__}: {str(error)[:200]}"
        raise CheckpointError(what, key="checkpoint", value=str(file),
                              remedy="take the checkpoint before it, or train the stage again") from error  # fmt: skip
