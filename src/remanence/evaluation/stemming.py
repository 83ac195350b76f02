"""Porter's stemmer (An algorithm for suffix stripping, 1980), with the additions that LoCoMo's figures are taken with.

Additions of its author and of NLTK: short words ending in -ies and -ied keep their e; y becomes i behind consonants
only; -bli, -alli, -fulli and -logi have rules of their own; words of two letters stay; a few words are irregular.
"""

from collections.abc import Sequence
from functools import cache

Rule = tuple[str, str]  # a suffix, and what it becomes

_IRREGULAR = {
    "skies": "sky",
    "dying": "die",
    "lying": "lie",
    "tying": "tie",
    "innings": "inning",
    "outings": "outing",
    "cannings": "canning",
    **{word: word for word in ("sky", "news", "inning", "outing", "canning", "howe", "proceed", "exceed", "succeed")},
}
_DOUBLE: Sequence[Rule] = (  # step 2
    ("ational", "ate"),
    ("tional", "tion"),
    ("enci", "ence"),
    ("anci", "ance"),
    ("izer", "ize"),
    ("bli", "ble"),
    ("alli", "al"),
    ("entli", "ent"),
    ("eli", "e"),
    ("ousli", "ous"),
    ("ization", "ize"),
    ("ation", "ate"),
    ("ator", "ate"),
    ("alism", "al"),
    ("iveness", "ive"),
    ("fulness", "ful"),
    ("ousness", "ous"),
    ("aliti", "al"),
    ("iviti", "ive"),
    ("biliti", "ble"),
    ("fulli", "ful"),
)
_SINGLE: Sequence[Rule] = (  # step 3
    ("icate", "ic"),
    ("ative", ""),
    ("alize", "al"),
    ("iciti", "ic"),
    ("ical", "ic"),
    ("ful", ""),
    ("ness", ""),
)
_BARE = (  # step 4
    *("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion", "ou", "ism", "ate"),
    *("iti", "ous", "ive", "ize"),
)


@cache
def stem(word: str) -> str:
    """The stem of a word, in lower case."""
    word = word.lower()
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if len(word) <= 2:
        return word
    word = _without_y(_without_past(_without_plural(word)))
    return _without_e(_without_suffix(_replaced(_double(word), _SINGLE)))


def _shape(stem: str) -> str:
    """`c` for each consonant and `v` for each vowel; y is a vowel behind a consonant."""
    shape = ""
    for letter in stem:
        vowel = letter in "aeiou" or (letter == "y" and shape[-1:] == "c")
        shape += "v" if vowel else "c"
    return shape


def _measure(stem: str) -> int:
    """m: how often a vowel stands before a consonant."""
    return _shape(stem).count("vc")


def _short(stem: str) -> bool:
    """Whether it ends as a short syllable: *o, and two letters."""
    shape = _shape(stem)
    return shape == "vc" or (shape.endswith("cvc") and stem[-1] not in "wxy")


def _doubled(stem: str) -> bool:
    return len(stem) > 1 and stem[-1] == stem[-2] and _shape(stem)[-1] == "c"


def _without_plural(word: str) -> str:  # step 1a
    if word.endswith("ies") and len(word) == 4:
        return word[:-1]
    if word.endswith(("sses", "ies")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _without_past(word: str) -> str:  # step 1b
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) > 0 else word
    suffix = next((suffix for suffix in ("ed", "ing") if word.endswith(suffix)), None)
    if suffix is None or "v" not in _shape(word[: -len(suffix)]):
        return word
    word = word[: -len(suffix)]
    if word.endswith(("at", "bl", "iz")):
        return word + "e"
    if _doubled(word):
        return word if word[-1] in "lsz" else word[:-1]
    return word + "e" if _measure(word) == 1 and _short(word) else word


def _without_y(word: str) -> str:  # step 1c
    return word[:-1] + "i" if word.endswith("y") and len(word) > 2 and _shape(word)[-2] == "c" else word


def _double(word: str) -> str:  # step 2
    if word.endswith("alli") and _measure(word[:-4]) > 0:
        return _double(word[:-2])
    if word.endswith("logi"):  # the l counts to the stem
        return word[:-1] if _measure(word[:-3]) > 0 else word
    return _replaced(word, _DOUBLE)


def _replaced(word: str, rules: Sequence[Rule]) -> str:
    """By the first rule whose suffix it has, if m > 0 of what stands before; no other rule is tried."""
    for suffix, new in rules:
        if word.endswith(suffix):
            start = word[: -len(suffix)]
            return start + new if _measure(start) > 0 else word
    return word


def _without_suffix(word: str) -> str:  # step 4
    for suffix in _BARE:
        if word.endswith(suffix):
            start = word[: -len(suffix)]
            allowed = suffix != "ion" or start.endswith(("s", "t"))
            return start if allowed and _measure(start) > 1 else word
    return word


def _without_e(word: str) -> str:  # step 5
    if word.endswith("e"):
        start = word[:-1]
        if _measure(start) > 1 or (_measure(start) == 1 and not _short(start)):
            word = start
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word
