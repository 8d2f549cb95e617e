"""coco-caption's tokenisation of a caption in pure Python, with no JVM.

The reference is Stanford's PTBTokenizer 3.4.1 with -preserveLines -lowerCase as pycocoevalcap calls it, its punctuation
tokens dropped. The Java tool sees one long text, so the end of a caption can depend on the next one; here a caption
stands alone and is read as if a lower-case caption followed.
"""

from __future__ import annotations

import re

from raycap.metrics.longest_match import Lexer
from raycap.metrics.ptb_grammar import RULES

PUNCTUATION = frozenset(["''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"])
"""The tokens that coco-caption drops. (-LRB- and its kin are in its list too, but in capitals, so they stay.)"""

_LEXER = Lexer(RULES)
_LINE_BREAKS = str.maketrans(dict.fromkeys("\n\r\x0b\x0c\u2028\u2029", " "))
_FOLLOWING = "\na"  # the context after the caption: a line end and a lower-case letter
# What keeps a capital sigma from seeing the letters on its other side, in Java's lower case.
_JAVA_WORD_BREAK = re.compile(r"((?:[!-&(-,/:-@\[-^`{-~\u3040-\u30ff\u3400-\u9fff]|(?<=\d)-)+)")
# Most captions: blank-separated chunks of ASCII letters and the marks that never bind two chunks together (digits,
# brackets and inner periods can), and perhaps a final period. Their chunks are cut once and remembered.
_EASY = re.compile(r"[A-Za-z ,;:!?\"'&-]*\.? *")
_CHUNKS_REMEMBERED = 200_000


class _Chunks(dict[str, tuple[str, ...]]):
    """Chunk of an easy caption → its tokens, cut on first use."""

    def __missing__(self, chunk: str) -> tuple[str, ...]:
        tokens = tuple(_cut(chunk))
        if len(self) < _CHUNKS_REMEMBERED:
            self[chunk] = tokens
        return tokens


_CHUNKS = _Chunks()


def tokenize(caption: str) -> list[str]:
    """The lower-case PTB tokens of one caption, punctuation dropped.

    Args:
        caption: any text; line breaks of every kind count as white space.

    Returns:
        Tokens without plain blanks; `" ".join(tokens)` is the line that coco-caption scores. A token may hold a
        no-break space ("1 1/2"), which coco-caption's BLEU and CIDEr later cut at (see `ngrams.words_of`).

    Source: Chen et al. 2015, "Microsoft COCO Captions: Data Collection and Evaluation Server", section 3.1.
    """
    if _EASY.fullmatch(caption):
        return [token for chunk in caption.split() for token in _CHUNKS[chunk]]
    return _cut(caption)


def _cut(caption: str) -> list[str]:
    text = caption.translate(_LINE_BREAKS)
    tokens = [_lower(token) for token in _LEXER.tokens(text + _FOLLOWING, len(text))]
    # coco-caption strips the line before it splits it: white space at the end of a last token (a URL's) goes too
    if tokens and tokens[-1][-1:].isspace():
        tokens = " ".join(tokens).rstrip().split(" ")
    return [token for token in tokens if token not in PUNCTUATION]


def _lower(token: str) -> str:
    """Lower case as Java has it: which sigma is a final one is decided over hyphens, periods and digits."""
    if "\u03a3" not in token:
        return token.lower()
    parts = _JAVA_WORD_BREAK.split(token)
    return "".join(_final_sigma(part) if index % 2 == 0 else part.lower() for index, part in enumerate(parts))


def _final_sigma(part: str) -> str:
    cased = [position for position, char in enumerate(part) if char.lower() != char.upper()]
    final = len(cased) > 1 and part[cased[-1]] == "\u03a3"
    lowered = [char.lower() for char in part]
    if final:
        lowered[cased[-1]] = "\u03c2"
    return "".join(lowered)
