"""Which characters the reference tokenizer takes for letters, digits and capitals.

coco-caption's jar (Stanford PTBTokenizer 3.4.1) was generated with the character tables of Unicode 6.2, works on the
basic plane only, and counts many marks as parts of a word. Its answers for all 65,536 characters were read off the
running tool; here they are expressed as differences to Python's tables. Code points are hexadecimal.
"""

from __future__ import annotations

from unicodedata import category

from raycap.metrics.patterns import Chars


def _code_points(listed: str) -> frozenset[str]:
    """`"41-43 61"` → {"A", "B", "C", "a"}."""
    found: set[str] = set()
    for item in listed.split():
        first, _, last = item.partition("-")
        found.update(map(chr, range(int(first, 16), int(last or first, 16) + 1)))
    return frozenset(found)


# Letters that came after Unicode 6.2, up to Unicode 17: the tool does not know them.
_LATER_LETTERS = _code_points(
    "37F 528-52F 560 588 5EF 860-86A 870-887 889-88F 8A1 8AD-8C9 978 980 9FC AF9 C34 C5A C5C-C5D C80 CDC-CDD D04"
    " D54-D56 D5F E86 E89 E8C E8E-E93 E98 EA0 EA8-EA9 EAC 13F5 13F8-13FD 16F1-16F8 170D 171F 1878 191D-191E 19B0-19C0"
    " 19C8-19C9 1B4C 1C80-1C8A 1C90-1CBA 1CBD-1CBF 1CF2-1CF3 1CFA 2C2F 2C5F 312E-312F 31BB-31BF 4DB6-4DBF 9FCD-9FFF"
    " A698-A69D A78F A794-A79F A7AB-A7DC A7F1-A7F7 A8FD-A8FE A9E0-A9E4 A9E6-A9EF A9FA-A9FE AA7E-AA7F AB30-AB5A"
    " AB5C-AB69 AB70-ABBF"
)
_FORMER_LETTERS = _code_points("1885-1886")
_LATER_DIGITS = _code_points("DE6-DEF A9F0-A9F9")

# No letters, but the tool takes them for parts of a word: soft hyphen, tone and combining marks, vowel signs ...
_WORD_MARKS = _code_points(
    "AD 2C2-2C5 2D2-2DF 2E5-2EB 2ED 2EF-36F 375 378-379 384-385 3F6 483-487 55A-55F 591-5BD 5BF 5C1-5C2 5C4-5C5 5C7"
    " 615-61A 64B-65E 670 6D6-6E4 6E7-6ED 6FD-6FE 70F 711 730-74C 7A6-7B0 7EB-7F3 900-903 93C 93E-94E 951-955 962-963"
    " 981-983 9BC 9BE-9C4 9C7-9C8 9CB-9CD 9D7 9E2-9E3 A01-A03 A3C A3E-A4F A81-A83 ABC ABE-ACF B82 BBE-BC2 BC6-BC8"
    " BCA-BCD C01-C03 C3E-C56 D3E-D44 D46-D48 E31 E34-E3A E47-E4E EB1 EB4-EBC EC8-ECD"
)
_CAPITALS_BESIDE_LU = _code_points("2160-216F 24B6-24CF")
_CHEROKEE = _code_points("13A0-13F4")  # letters without case until Unicode 8

# Symbols that are tokens of their own.
_SYMBOLS = _code_points(
    "25-26 2B 5C 5E 7C 7E A6-A9 AC AE-B4 B5-BA D7 F7 387 5BE 5C0 5C3 5C6 5F3-5F4 600-603 606-60A 60C 614 61B 61E 66A"
    " 66D 703-70D 7F6-7F8 964-965 E4F 1FBD 2016-2017 2020-2023 2030-2038 203B 203E-2042 2044 207A-207E 208A-208E"
    " 2100-214F 2190-21FF 2200-2BFF 3012 30FB FF01-FF0F FF1A-FF20 FF3B-FF40 FF5B-FF65"
)


def _is_letter(char: str) -> bool:
    known = category(char)[0] == "L" and char not in _LATER_LETTERS
    return char <= "\uffff" and (known or char in _FORMER_LETTERS)


def _is_digit(char: str) -> bool:
    return char <= "\uffff" and category(char) == "Nd" and char not in _LATER_DIGITS


def _is_capital(char: str) -> bool:
    known = category(char) == "Lu" and char not in _LATER_LETTERS and char not in _CHEROKEE
    return char <= "\uffff" and (known or char in _CAPITALS_BESIDE_LU)


LETTER = Chars(_is_letter)
DIGIT = Chars(_is_digit)
CAPITAL = Chars(_is_capital)
WORD_MARK = Chars(_WORD_MARKS.__contains__)
SYMBOL = Chars(_SYMBOLS.__contains__)
ANY = Chars(lambda char: True)
