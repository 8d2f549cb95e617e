"""Fuzzing against the real tokenizer: pieces of every difficult kind, glued at random. One JVM for each test.

The last test goes on from there: whole random corpora, raw strings in, against pycocoevalcap's scores.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raycap.metrics.ptb import tokenize
from raycap.metrics.score import score_captions

_PIECES = """
a man A The dog dog's Cats cannot CANNOT gonna Gonna gimme lemme wanna gotta 'tis 'Twas it's we'll don't DON'T doesn’t
can't shouldn't've I'd've y'all o'clock O'Brien d'Angelo l'oreal c'mon 'em 'til 'till 'cause 'n' rock'n'roll ma'am U.S.
u.s. U.K. a.m. P.M. p.m e.g. i.e. etc. Etc. Mr. mr. Mrs Dr. St. Ave. Inc. Co. Ltd. Corp. pty. PTY. pte. Ltd limited co.
jan. Sept. Mon. Tue. Ala. az. Az. Miss. miss. ore. Ore. Ph.D. ed.d. Jr. Fig. fig. no. No. nos. art. pp. op. prop. bldg.
ca. vs. cf. a.k.a. mtg. mfg. Natl. Dept. B. b. I. x. The This About an 1 2 10 5 12 100 1,000 1.5 .5 -5 +5 1,23 10:30
10:30am 1/2 1-1/2 12/25/2004 1-2-99 24/7 555-1234 (555) 555.123.4567 +44 7946 0958 1st 22nd 90s '90s 1990's 5'10" 5%
$5 $1.50 US$5 C$ # #1 #tag #日本 @user @ @@ £5 €5 ¥5 50¢ http://a.b/c?d=e&f=g https://x.y.z/ www.a.com
www.foo.co.uk/bar example.com Example.com foo.org/bar, foo@bar.com <foo@bar.com> file.txt a.py x.html. foo.jpg, :) :-)
;) :( :D =) <3 ^_^ -_- (^_^) T_T x_x >:( :'( ... .... . .. … - -- --- ---- ----- — – ― a-b well-known two-year-old
-foo foo- pro- anti- _ __ foo_bar __init__ * ** \\* ( ) [ ] { } (a) [b] {c} -LRB- `` '' ` ' \" “ ” ‘ ’ ‚ „ « » “a” ‘a’
'a' "a" ``a'' ! ? !! ?! ¿ ¡ , ; : / \\ // a/b a/b/c & && AT&T at&t R&B S&P S&P-500 S&Ls A+B c++ C++ C# &amp; &AMP; &lt;
&gt; &quot; &QUOT; &apos; &nbsp; &mdash; &#39; &eacute; caf&eacute; &foo; <b> </b> <br/> <br /> <a href='x y'>
<a href="x" b> <!-- c --> <?xml v?> <1> << >> < > = == + % ^ ~ | § ° © ® ™ • × ÷ ± µ ½ ¼ ⅓ ⅛ ² m² H₂O ₊₂ naïve café
Über ÉCOLE Straße İstanbul ΣΊΣΥΦΟΣ Москва 日本語 中文字 한국어 हिन्दी ไทย عربي עברית Ⅳ 😀 👍🏽 ★ ♥ a\u00adb \u00ad \u200b
\ufeff \u200d \x00 \x07 \x7f \x80 \x85 \x91 \x92 \x93 \x94 \x96 a.b a..b a.b.c a,b a;b a:b a!b 3-D 2x4 F-16 1990-2000
'12 007 1.2.3 .net C.D.s Cap'n c'est cont'd. Dunkin' somethin' ol' li'l nor'easter s'mores non-U.S. U.S.-U.K. EU-U.S.
Sino-U.S. ٣٤ ١/٢ a٣ 1٫5 、 。 ！ ＄ １２ ﬁ ǅ ß ſ ؟ x.[^x=abc<>] <_< (x_x) <:) ;-P
"""
PIECES = _PIECES.split()
SINGLE = list("abcdnstTAIUSy'’`\"“”.,;:!?-–—_/\\()[]{}<>&@#$%^*+=~|0123456789 é日😀£€½°²\u00ad\u00a0\u3000\u200b…x^")
LINE_BREAKS = re.compile("[\n\r\x0b\x0c\u2028\u2029]")


def _piece(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.55:
        piece = rng.choice(PIECES)
    elif kind < 0.7:
        piece = "".join(rng.choices(SINGLE, k=rng.randint(1, 6)))
    elif kind < 0.95:
        piece = rng.choice(PIECES) + rng.choice(["", rng.choice(SINGLE)]) + rng.choice(PIECES)
    elif kind < 0.97:
        spans = [(0x20, 0x250), (0x20, 0x3000), (0x20, 0xD800), (0xE000, 0x10000), (0x10000, 0x20000)]
        piece = "".join(chr(rng.randrange(*rng.choice(spans))) for _ in range(rng.randint(1, 3)))
    else:
        whole = rng.choice(PIECES)
        cut = rng.randrange(len(whole) + 1)
        piece = whole[:cut] + rng.choice(SINGLE) + whole[cut + rng.randint(0, 1) :]
    return rng.choice([str, str, str, str, str, str, str.upper, str.lower, str.capitalize])(piece)


def _caption(rng: random.Random) -> str:
    ends = [" "] * 8 + ["", "  ", " ,", ", ", ". ", " . "]
    caption = "".join(_piece(rng) + rng.choice(ends) for _ in range(rng.choice([1, 1, 2, 2, 3, 4, 6])))
    return LINE_BREAKS.sub(" ", caption.strip(" ") if rng.random() < 0.7 else caption)


def test_equals_the_java_tool_on_random_captions(java_tokenize: Callable[[Sequence[str]], list[str]]) -> None:
    rng = random.Random(20040725)
    captions = [_caption(rng) for _ in range(20_000)]
    expected = java_tokenize(captions)
    different = [
        (caption, theirs, ours)
        for caption, theirs in zip(captions, expected, strict=True)
        if (ours := " ".join(tokenize(caption))) != theirs
    ]
    assert not different[:5], f"{len(different)} of {len(captions)}"


def test_equals_the_java_tool_on_every_character(java_tokenize: Callable[[Sequence[str]], list[str]]) -> None:
    """Each character of the basic plane alone, inside a word, after a number's slash, and after an abbreviation."""
    characters = [
        chr(code) for code in range(0x10000) if not 0xD800 <= code < 0xE000 and not LINE_BREAKS.match(chr(code))
    ]
    patterns = ["%s", "a%sb", "1/%s", "a_%s", "etc. %s"]
    captions = [pattern % char for pattern in patterns for char in characters]
    expected = java_tokenize(captions)
    different = [
        (caption, theirs, ours)
        for caption, theirs in zip(captions, expected, strict=True)
        if (ours := " ".join(tokenize(caption))) != theirs
    ]
    assert not different[:5], f"{len(different)} of {len(captions)}"


Corpus = list[tuple[str, list[str]]]  # candidates, each with its references

ANYTHING = st.text(
    st.characters(exclude_categories=("Cs",)).filter(lambda char: not LINE_BREAKS.match(char)), max_size=24
)
WORDS = [
    "a",
    "man",
    "A",
    "dog",
    "runs",
    "on",
    "the",
    "beach",
    "two",
    "dogs",
    "é",
    "1/2",
    "1",
    "日本",
    ".",
    ",",
    "😀",
    "Mr.",
    "\u00a0",
    "example.com",
    "\u00a0example.com",
    "www.a.com\u00a0",
]
PLAIN = st.lists(st.sampled_from(WORDS), max_size=9)
RAW = st.one_of(ANYTHING, PLAIN.map(" ".join))
WRITTEN = RAW.map(lambda text: f"a {text}")  # a reference must not be empty
CORPORA = st.lists(
    st.lists(st.tuples(RAW, st.lists(WRITTEN, min_size=1, max_size=4)), min_size=1, max_size=5),
    min_size=20,
    max_size=60,
)


@settings(derandomize=True, max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(corpora=CORPORA)
def test_scores_of_anything_equal_the_reference_tools(
    java_tokenize: Callable[[Sequence[str]], list[str]], corpora: list[Corpus]
) -> None:
    """Unicode, emoji, empty candidates; a Java machine for each example, so an example is many corpora."""
    assert_equal_to_the_reference_tools(corpora, java_tokenize)


def test_scores_from_raw_strings_equal_the_reference_tools(
    java_tokenize: Callable[[Sequence[str]], list[str]],
) -> None:
    rng = random.Random(7)
    plain = ["a", "man", "A", "dog", "runs", "on", "the", "beach", "two", "dogs", "é", "1/2", "1 1/2", "日本"]
    plain += ["\u00a0", "example.com", "\u00a0example.com", "www.a.com\u00a0"]

    def caption() -> str:
        return (
            _caption(rng)
            if rng.random() < 0.3
            else " ".join(rng.choices(plain, k=rng.randint(0, 9))) + rng.choice(".  ")
        )

    corpora = [
        [(caption(), ["a " + caption() for _ in range(rng.randint(1, 4))]) for _ in range(rng.randint(1, 5))]
        for _ in range(150)
    ]
    assert_equal_to_the_reference_tools(corpora, java_tokenize)


def assert_equal_to_the_reference_tools(
    corpora: Sequence[Corpus], java_tokenize: Callable[[Sequence[str]], list[str]]
) -> None:
    bleu = pytest.importorskip("pycocoevalcap.bleu.bleu").Bleu
    rouge = pytest.importorskip("pycocoevalcap.rouge.rouge").Rouge
    cider = pytest.importorskip("pycocoevalcap.cider.cider").Cider
    lines = iter(java_tokenize([one for corpus in corpora for cand, several in corpus for one in [cand, *several]]))
    for corpus in corpora:
        candidates = {str(i): cand for i, (cand, _) in enumerate(corpus)}
        references = {str(i): several for i, (_, several) in enumerate(corpus)}
        res, gts = {}, {}
        for i, (_, several) in enumerate(corpus):
            res[str(i)], gts[str(i)] = [next(lines)], [next(lines) for _ in several]
        ours = score_captions(candidates, references)
        corpus_bleu, each_bleu = bleu().compute_score(gts, res, verbose=0)
        for key, (value, each) in {
            **{f"bleu_{n}": (corpus_bleu[n - 1], each_bleu[n - 1]) for n in range(1, 5)},
            "rouge_l": rouge().compute_score(gts, res),
            "cider_d": cider().compute_score(gts, res),
        }.items():
            assert ours.metrics[key] == pytest.approx(value, abs=1e-9)
            assert [ours.per_image[image][key] for image in candidates] == pytest.approx(list(each), abs=1e-9)
