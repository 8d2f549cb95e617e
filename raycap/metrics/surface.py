"""What can be seen on a caption's surface: length, how it ends, whether it repeats itself, whom it calls man or woman.

Cheap signs of reward hacking (Guo et al. 2018 on bad endings) and of bias (Hendricks et al. 2018, "Women also
Snowboard"). All functions take tokenised captions.
"""

from __future__ import annotations

from collections.abc import Sequence

from raycap.metrics.reference_index import Tokens

_DETERMINERS = "a an the this that these those his its their our my your some any every each several no"
_PREPOSITIONS = (
    "with in on of at to for from into onto upon over under through across against along among beneath beside besides"
    " between beyond near toward towards within without about after during amid like as than next"
)
_CONJUNCTIONS = "and or but nor while because if so who whose whom which when where"
_AUXILIARIES = (
    "is are was were be been being am has have had do does did could will would may might must shall should very n't"
)
BAD_ENDINGS = frozenset(" ".join([_DETERMINERS, _PREPOSITIONS, _CONJUNCTIONS, _AUXILIARIES]).split())
"""A caption that ends in one of these was cut off in the middle.

Each ends less than 1 % of its occurrences in 46,000 human captions; "on" (2 %: "with the lights on") is the exception,
because captions that were cut off end in it most. Particles that people do end with (up, down, out, off, by, around,
behind, below, inside, outside) are not here, nor is "her".
"""

_MALE = (
    "man men boy boys male males gentleman gentlemen guy guys he him his himself father fathers dad daddy son sons"
    " brother brothers grandfather grandpa husband groom king prince uncle nephew boyfriend policeman fireman"
)
_FEMALE = (
    "woman women girl girls female females lady ladies she her hers herself mother mothers mom mommy daughter daughters"
    " sister sisters grandmother grandma wife bride queen princess aunt niece girlfriend policewoman"
)
MALE, FEMALE = frozenset(_MALE.split()), frozenset(_FEMALE.split())


def mean_length(captions: Sequence[Tokens]) -> float:
    """(1/C) Σ tokens of a caption, after PTB tokenisation (van Miltenburg et al. 2018); 0 for none."""
    return sum(map(len, captions)) / len(captions) if captions else 0.0


def has_bad_ending(caption: Tokens) -> bool:
    """[last word ∈ BAD_ENDINGS]: it ends in a word that cannot end a caption; an empty caption does not.

    (The symptom is that of Guo et al. 2018; the list of words is our own, see there.)
    """
    # a single letter keeps its period when it is tokenised: "next to a."
    return bool(caption) and caption[-1].rstrip(".") in BAD_ENDINGS


def bad_ending_rate(captions: Sequence[Tokens]) -> float:
    """(1/C) Σ `has_bad_ending`, the share of captions cut off (Guo et al. 2018: RL without EOS); 0 for none."""
    return sum(map(has_bad_ending, captions)) / len(captions) if captions else 0.0


def repetition(caption: Tokens, n: int = 2) -> float:
    """Share of a caption's n-grams that it has said before: 1 − distinct / all (Welleck et al. 2020, seq-rep-n).

    0 where the caption is shorter than n words.
    """
    ngrams = [tuple(caption[i : i + n]) for i in range(len(caption) - n + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def mean_repetition(captions: Sequence[Tokens], n: int = 2) -> float:
    """(1/C) Σ of `repetition`, 1 − distinct n-grams / n-grams (Welleck et al. 2020, seq-rep-n); 0 for none.

    The mean is taken over captions, each by itself.
    """
    return sum(repetition(caption, n) for caption in captions) / len(captions) if captions else 0.0


def unsupported_gender(caption: Tokens, references: Sequence[Tokens]) -> list[str]:
    """The gender words of a caption, in order, for whose gender no reference has any word (Hendricks et al. 2018).

    [w ∈ c : w ∈ G, G ∩ ∪_r r = ∅], G = MALE, FEMALE; the error of Hendricks et al., by references and not by a label.
    A caption that says "man" is supported by a reference with "his"; one that names both genders needs both.
    """
    seen = {token for tokens in references for token in tokens}
    unsupported = [gender for gender in (MALE, FEMALE) if not gender & seen]
    return [token for token in caption if any(token in gender for gender in unsupported)]


def unsupported_gender_rate(captions: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> float:
    """(1/C) |{c : unsupported_gender(c) ≠ ∅}|, the share of captions with such a word; 0 for no captions.

    (The error rate of Hendricks et al. 2018, by references and not by a label of the person.)
    """
    flags = [bool(unsupported_gender(caption, several)) for caption, several in zip(captions, references, strict=True)]
    return sum(flags) / len(flags) if flags else 0.0
