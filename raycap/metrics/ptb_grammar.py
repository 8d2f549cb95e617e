"""The tokens of English captions as coco-caption's Penn Treebank tokenizer sees them.

Behaviour, not text, is taken from Stanford's PTBTokenizer 3.4.1 with -preserveLines -lowerCase: what is a token, what
wins when two readings are possible (the longest, then the first listed here), and how a token is written. Letter case
is ignored in literal words and kept in character ranges, as there: "AT&T" is one token and "at&t" three. Much looks odd
("U.S." but "fig ." before a word); none of it is ours to improve, because scores are compared across papers.
"""

from __future__ import annotations

from raycap.metrics.longest_match import Rule
from raycap.metrics.patterns import (
    Choice,
    Pattern,
    either,
    many,
    maybe,
    none_of,
    one_of,
    some,
    times,
    word,
    words,
)
from raycap.metrics.ptb_characters import ANY, CAPITAL, DIGIT, LETTER, SYMBOL, WORD_MARK
from raycap.metrics.ptb_spelling import (
    bound_spaces,
    bracket,
    dashes,
    face,
    fraction,
    greater_than,
    less_than,
    money,
    no_soft_hyphens,
    nothing,
    phone,
    quote,
    with_ampersand,
)

# --- characters -------------------------------------------------------------------------------------------------------
_LATIN = one_of("a..z", "A..Z")
_UPPER = one_of("A..Z")
_LATIN_OR_DIGIT = one_of("a..z", "A..Z", "0..9")
_BLANK = one_of(" \t\u00a0\u3000", "\u2000..\u200a")
_LINE_END = one_of("\r\n\u2028\u2029\x0b\x0c\x85")
_GAP = either(_BLANK, _LINE_END)
_HYPHEN = one_of("-_\u058a\u2010\u2011")
_CLAUSE_END = one_of(",;:\u3001")
_APOSTROPHE: Pattern = one_of("'\u0092\u2019") | word("&apos;")
_APOSTROPHE_LIKE: Pattern = _APOSTROPHE | one_of("`\u0091\u2018\u201b")
_AMPERSAND_ENTITY = word("&amp;")
_SOFT_HYPHEN = one_of("\u00ad")

# --- words ------------------------------------------------------------------------------------------------------------
_ACCENT_ENTITY = one_of("&") + one_of("aeiouAEIOU") + words("acute grave uml") + one_of(";")
_WORD_LETTER: Pattern = either(LETTER, WORD_MARK) | _ACCENT_ENTITY
_WORD_CHARACTER: Pattern = _WORD_LETTER | DIGIT
_WORD = _WORD_LETTER + many(_WORD_CHARACTER) + many(one_of(".!?") + _WORD_LETTER + many(_WORD_CHARACTER))
_PLAIN_CHARACTER = either(LETTER, DIGIT)
_PLAIN = maybe(one_of("dDoOlL") + _APOSTROPHE_LIKE + _PLAIN_CHARACTER) + some(_PLAIN_CHARACTER)
_COMPOUND = _PLAIN + many(_HYPHEN + _PLAIN)
_CAPITALS_JOINED = some(_UPPER) + some((one_of("&+") | _AMPERSAND_ENTITY) + some(_UPPER))
_SLASHED_PART = some(_LATIN_OR_DIGIT) + times(one_of("-") + some(_LATIN), 0, 2)
_SLASHED = _SLASHED_PART + times(maybe(one_of("\\")) + one_of("/") + _SLASHED_PART, 1, 2)

# clitics: 's 'm 'd 're 've 'll, and n't with the verb before it
_CLITIC = _APOSTROPHE + (one_of("msdMSD") | words("re ve ll"))
_NEGATION = one_of("nN") + _APOSTROPHE_LIKE + one_of("tT")
_NEGATED_VERB = many(either(_LATIN, _SOFT_HYPHEN)) + one_of("a..m", "o..z", "A..M", "O..Z") + many(_SOFT_HYPHEN)

_WITH_APOSTROPHE = Choice(
    (
        _APOSTROPHE + word("n") + maybe(_APOSTROPHE),
        (one_of("lLdDjJ") | words("dunkin somethin ol")) + _APOSTROPHE,
        _APOSTROPHE + (words("em til till cause") | (one_of("2..9") + word("0s"))),
        one_of("A..H", "J..X", "Zn") + _APOSTROPHE_LIKE + LETTER + some(LETTER),
        some(LETTER) + one_of("aeiouyAEIOUY") + _APOSTROPHE_LIKE + one_of("aeiou", "A..Z") + many(LETTER),
        words("cont'd cont'd. 'twas nor'easter c'mon e'er s'mores ev'ry li'l nat'l"),
        word("o") + _APOSTROPHE_LIKE + word("o"),
    )
)

# --- abbreviations ----------------------------------------------------------------------------------------------------
_LETTERS_DOTTED: Pattern = _LATIN + some(one_of(".") + _LATIN)
_US_COMPOUND: Pattern = words("canada-u.s sino-u.s korean-u.s eu-u.s japan-u.s non-u.s u.s.-u.k u.s.-u.s.s.r")
_ACRONYM = _LATIN | _LETTERS_DOTTED | _US_COMPOUND

# keep their period whatever follows; those with a capital in front are case-sensitive in that letter
_CLOSING = words(
    "al ala apr ariz assn aug bancorp bhd bldg blvd bros calif co colo conn corp cos ct dak dec esq est etc ext feb fla"
    " fri ga inc ind intl jan jr jul jun kan kans ky ltd mar md mich minn mo mon mont neb nev nov oct okla penn plc rd"
    " rt sep seq sept sq sr sys tel tenn thu thurs tue tues univ va vt wed wis wisc wyo ed.d ph.d"
) | Choice(
    tuple(
        one_of(name[0]) + word(name[1:])
        for name in ("Az", "Ark", "Del", "Ill", "La", "Mass", "Miss", "Ore", "Pa", "Tex", "Wash")
    )
)
_PARTY = word("p") + maybe(word("p")) + word("t") + one_of("ye") + maybe(word("s"))
_CLOSING_ABBREVIATION = (_CLOSING | _PARTY) + one_of(".")

_TITLE = words(
    "mr mrs ms dr drs prof profs sen sens rep reps atty attys lt col gen messrs gov govs adm rev maj sgt cpl pvt capt"
    " st ste ave pres lieut hon brig cmdr comdr pfc spc supt supts det mt ft adj adv asst assoc ens insp mlle mme msgr"
    " sfc vs alex wm jos cie a.k.a cf treas ph invt elec natl dept"
)
_OPENING = _TITLE | (one_of("M") + word("iss")) | (word("m") + one_of("ft") + word("g")) | _ACRONYM
_BEFORE_NUMBERS = words("ca fig figs prop no nos art bldg pp op") + one_of(".")

# --- the web ----------------------------------------------------------------------------------------------------------
_NO_URL = ' \t\n\f\r"<>|'
_URL_LAST = none_of(_NO_URL, ".!?(){},-")
_URL = word("http") + maybe(word("s")) + word("://") + some(none_of(_NO_URL, "(){}")) + _URL_LAST
_WWW_HOST = word("www.") + some(some(none_of(_NO_URL, ".!?(){},")) + one_of(".")) + times(_LATIN, 2, 4)
# the tool's exclusion "," to "_" takes capitals, digits and most punctuation along
_BARE_HOST = some(some(none_of(_NO_URL, "`'.!?(){}$", ",.._")) + one_of(".")) + words("com net org edu")
_URL_PATH = one_of("/") + some(none_of(_NO_URL, "()")) + _URL_LAST
_LIKELY_URL = (_WWW_HOST | _BARE_HOST) + maybe(_URL_PATH)
_MAIL_HOST = some(none_of(_NO_URL, "(){}.\u00a0"))
_MAIL = (
    maybe(words("< &lt;"))
    + _LATIN_OR_DIGIT
    + many(none_of(_NO_URL, "(){}\u00a0"))
    + one_of("@")
    + many(_MAIL_HOST + one_of("."))
    + _MAIL_HOST
    + maybe(words("> &gt;"))
)
_HANDLE = one_of("@") + one_of("a..z", "A..Z", "_") + many(one_of("a..z", "A..Z", "0..9", "_"))
_HASHTAG = one_of("#") + some(_WORD_LETTER)
_EXTENSION = words(
    "bat bmp c class cgi cpp dll doc docx exe gif gz h htm html jar java jpeg jpg mov mp3 pdf php pl png ppt ps py sql"
    " tar txt wav x xml zip"
)
_FILE = some(_WORD_CHARACTER) + many(one_of(".") + some(_WORD_CHARACTER)) + one_of(".") + _EXTENSION

_TAG_NAME = _LATIN + many(one_of("a..z", "A..Z", "0..9", "_:.-"))
_QUOTED = (one_of("'") + many(none_of("'")) + one_of("'")) | (one_of('"') + many(none_of('"')) + one_of('"'))
_SPACES = many(one_of(" "))
_ATTRIBUTE = some(one_of(" ")) + _TAG_NAME + maybe(_SPACES + one_of("=") + _SPACES + _QUOTED)
_TAG = (
    one_of("<")
    + Choice(
        (
            one_of("!?") + one_of("a..z", "A..Z", "-") + many(none_of(">\r\n")),
            _TAG_NAME + many(_ATTRIBUTE) + _SPACES + maybe(one_of("/")),
            one_of("/") + _TAG_NAME,
        )
    )
    + _SPACES
    + one_of(">")
)

# --- numbers ----------------------------------------------------------------------------------------------------------
_DIGITS = some(DIGIT)
_NUMBER = maybe(one_of("-+")) + (_DIGITS | (many(DIGIT) + some(one_of(".:,\u00ad\u066b\u066c") + _DIGITS)))
_RAISED = maybe(one_of("\u207a\u207b\u208a\u208b")) + (
    some(one_of("\u2070\u00b9\u00b2\u00b3", "\u2074..\u2079")) | some(one_of("\u2080..\u2089"))
)
_SHORT_NUMBER = times(DIGIT, 1, 4)
_FRACTION = (
    maybe(_SHORT_NUMBER + one_of("- \u00a0"))
    + _SHORT_NUMBER
    + ((maybe(one_of("\\")) + one_of("/")) | one_of("\u2044"))
    + _SHORT_NUMBER
)
_DATE = times(DIGIT, 1, 2) + one_of("-/") + times(DIGIT, 1, 2) + one_of("-/") + times(DIGIT, 2, 4)
_ASCII_DIGIT = one_of("0..9")
_PHONE_GAP = one_of("- \u00a0")
_DIAL_PREFIX = one_of("+") + maybe(one_of("+"))
_PHONE = (
    (
        (one_of("(") + times(_ASCII_DIGIT, 2, 3) + one_of(")") + maybe(one_of(" \u00a0")))
        | (maybe(_DIAL_PREFIX) + maybe(times(_ASCII_DIGIT, 2, 4) + _PHONE_GAP) + times(_ASCII_DIGIT, 2, 4) + _PHONE_GAP)
    )
    + times(_ASCII_DIGIT, 3, 4)
    + maybe(_PHONE_GAP)
    + times(_ASCII_DIGIT, 3, 5)
) | (
    maybe(maybe(_DIAL_PREFIX) + times(_ASCII_DIGIT, 2, 4) + one_of("."))
    + times(_ASCII_DIGIT, 2, 4)
    + one_of(".")
    + times(_ASCII_DIGIT, 3, 4)
    + one_of(".")
    + times(_ASCII_DIGIT, 3, 5)
)
_HYPHENATED = (
    _LATIN_OR_DIGIT
    + many(either(_LATIN_OR_DIGIT, one_of(".,\u00ad")))
    + some(
        one_of("-") + (some(either(_LATIN_OR_DIGIT, _SOFT_HYPHEN)) | ((_LETTERS_DOTTED | _US_COMPOUND) + one_of(".")))
    )
)

# --- faces, quotes, dashes --------------------------------------------------------------------------------------------
_FACE = maybe(one_of("<>")) + one_of(":;=") + maybe(one_of("-o*'")) + one_of("()DPdpO\\{@|[]")
_EYE = one_of("-^x=~<>'")
# the last option is what the tool's own specification says by a slip of its author: x.[^x= ... <>]
_EASTERN_FACE = Choice(
    (
        _EYE + one_of("_") + _EYE,
        one_of("(") + _EYE + maybe(one_of("_.")) + _EYE + one_of(")"),
        one_of("(") + one_of("^x=~<>'") + one_of("-") + one_of("^x=~<>'`") + one_of(")"),
        one_of("^x=~<>") + word(".[^x=") + many(none_of("<")) + word("<>]"),
    )
)
_QUOTE = Choice(
    (
        _APOSTROPHE,
        word("''"),
        times(one_of("`\u2039\u203a\u00ab\u00bb", "\u2018..\u201f", "\u0091..\u0094"), 1, 2),
    )
)
_DOTS = (times(one_of("."), 3, 5) | (times(one_of(".") + one_of(" \u00a0"), 2, 4) + one_of("."))) | one_of("\x85\u2026")


# a single letter with its period loses the period before these words: "Plan B. The dog" ends a sentence
_OPENERS = (
    "A About According Additionally After An As At But Earlier He Her Here However If In It Last Many More Mr. Ms. Now"
    " Once One Other Our She Since So Some Such That The Their Then There These They This We What When While Yet You"
)
_SENTENCE_OPENER = Choice(tuple(one_of(opener[0]) + word(opener[1:]) for opener in _OPENERS.split()))

RULES: tuple[Rule, ...] = (
    # words that are cut in two
    Rule(words("c++ c# f#")),
    Rule(words("cannot 'twas"), give_back=3),
    Rule(words("'tis gonna gotta lemme gimme wanna"), give_back=2),
    # markup
    Rule(_TAG, emit=bound_spaces),
    Rule(words("&md; &mdash; &ndash;") | one_of("\x96\x97\u2013\u2014\u2015"), emit=nothing),
    Rule(_AMPERSAND_ENTITY, emit=with_ampersand),
    Rule(words("&ht; &tl; &ur; &lr; &qc; &ql; &qr; &odq; &cdq;") | (word("&#") + some(_ASCII_DIGIT) + one_of(";"))),
    # words
    Rule(_WORD, ahead=_CLITIC, emit=no_soft_hyphens),
    Rule(_NEGATED_VERB, ahead=_NEGATION, emit=no_soft_hyphens),
    Rule(_WORD, emit=no_soft_hyphens),
    Rule(_WITH_APOSTROPHE),
    Rule(word("y") + _APOSTROPHE, ahead=LETTER),
    # the web
    Rule(_URL),
    Rule(_LIKELY_URL),
    Rule(_MAIL),
    Rule(_HANDLE | _HASHTAG),
    Rule(_CLITIC, ahead=none_of("a..z", "A..Z"), emit=quote),
    Rule(_NEGATION, ahead=none_of("a..z", "A..Z"), emit=quote),
    # numbers
    Rule(_DATE),
    Rule(_NUMBER, emit=no_soft_hyphens),
    Rule(_RAISED),
    Rule(_FRACTION, emit=bound_spaces),
    Rule(one_of("¼½¾", "\u2153..\u215e"), emit=fraction),
    Rule(
        words("-rrb- -lrb- -rcb- -lcb- -rsb- -lsb- c.d.s pro- anti- s&p-500 s&amp;p-500 s&ls s&amp;ls")
        | (word("cap") + _APOSTROPHE + word("n"))
        | (word("c") + _APOSTROPHE + word("est")),
        emit=with_ampersand,
    ),
    Rule(_SLASHED),
    Rule((many(_UPPER) + one_of("$")) | one_of("#")),
    Rule(
        one_of("\u00a2..\u00a5", "\x80\u20a0\u20ac\u060b\u0e3f\u20a4\uffe0\uffe1\uffe5\uffe6"),
        emit=money,
    ),
    # abbreviations
    Rule(_LATIN + one_of("."), ahead=some(_GAP) + (_SENTENCE_OPENER | _TAG) + _GAP, give_back=1),
    Rule(_BEFORE_NUMBERS, ahead=maybe(_GAP) + DIGIT),
    Rule((word("pt") + one_of("eyEY") | word("co")) + one_of("."), ahead=_BLANK + words("ltd lim")),
    Rule(_CLOSING_ABBREVIATION, ahead=_GAP + (either(_GAP, CAPITAL) | _TAG)),
    Rule(_CLOSING_ABBREVIATION, ahead=ANY + ANY),
    Rule(_OPENING + one_of(".")),
    Rule(_OPENING, ahead=_BLANK),
    Rule(_ACRONYM, ahead=_GAP),
    Rule(_APOSTROPHE + _ASCII_DIGIT + _ASCII_DIGIT, ahead=_GAP),
    Rule(_FILE, ahead=either(_GAP, one_of(".?!,"))),
    Rule(_WORD + one_of("."), ahead=_CLAUSE_END, emit=no_soft_hyphens),
    Rule(_PHONE, emit=phone),
    # signs
    Rule(one_of('"') | word("&quot;"), emit=quote),
    Rule(one_of("\x7f"), emit=nothing),
    Rule(words("< &lt;"), emit=less_than),
    Rule(words("> &gt;"), emit=greater_than),
    Rule(_FACE, ahead=none_of("a..z", "A..Z", "0..9"), emit=face),
    Rule(_EASTERN_FACE, emit=face),
    Rule(one_of("()[]{}"), emit=bracket),
    Rule(some(one_of("-")), emit=dashes),
    Rule(_DOTS, emit=nothing),
    Rule(some(one_of("@")) | some(one_of("#")) | some(one_of("_"))),
    Rule(some(one_of("*")) | times(word("\\*"), 1, 3)),
    Rule(_CLAUSE_END),
    Rule(some(one_of("?!"))),
    Rule(one_of(".¡¿\u037e\u0589\u061f\u06d4\u0700\u0701\u0702\u07fa\u3002=/")),
    # compounds
    Rule(_HYPHENATED + one_of("."), ahead=_CLAUSE_END, emit=no_soft_hyphens),
    Rule(_HYPHENATED, emit=no_soft_hyphens),
    Rule(_COMPOUND + one_of("."), ahead=_CLAUSE_END),
    Rule(_COMPOUND),
    Rule(_CAPITALS_JOINED + one_of("."), ahead=_CLAUSE_END, emit=with_ampersand),
    Rule(_CAPITALS_JOINED, emit=with_ampersand),
    # what is left of quotes
    Rule(one_of("'"), ahead=_LATIN + none_of(" \t\n\r\u00a0"), emit=nothing),
    Rule(_CLITIC | _NEGATION, emit=quote),
    Rule(_QUOTE, emit=quote),
    Rule(words("<< >>")),
    Rule(SYMBOL),
    # a run of blanks goes at once: a no-break space after a blank cannot begin a web address
    Rule(some(_BLANK), emit=nothing),
    Rule(word("&nbsp;"), emit=nothing),
)
