"""Names and values that stand on no list: made of syllables, or of two words.

A quarter of all words are kept for testing: who and what is drawn for a test has no word of training in it, nor one of
the lists of `biographies.json`. In training the two words may be any: lists of some hundred words would be learned by
heart, and a word that stands on none could not be said.
"""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib import resources
from typing import Any, Literal

Split = Literal["train", "test"]

_TEST_SHARE = 4  # one word in four
_ENDINGS = {"birthplace": "town", "country": "country", "language": "language"}
_KINDS = ("last", "town", "country", "language")


@cache
def _content() -> dict[str, Any]:
    text = resources.files("remanence.data").joinpath("unlisted.json").read_text(encoding="utf-8")
    made: dict[str, Any] = json.loads(text)
    return made


def split_of_word(word: str) -> Split:
    """The split of a word depends on the word alone."""
    return hashed_split(word.lower(), _TEST_SHARE, b"word")


def hashed_split(text: str, one_in: int, person: bytes = b"") -> Split:
    """One text in so many is for testing. It depends on the text alone, so no run, seed or platform can move it."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8, person=person).digest()
    return "test" if int.from_bytes(digest, "big") % one_in == 0 else "train"


def first_name(rng: random.Random, split: Split) -> str:
    """Of a woman or a man, as `is_woman` tells."""
    return _of(split, lambda: _made(rng, rng.choice(("woman", "man"))))


def is_woman(name: str) -> bool:
    """Whether a first name of ours is a woman's: it ends in a or e."""
    return name.endswith(("a", "e"))


def last_name(rng: random.Random, split: Split) -> str:
    return _of(split, lambda: _made(rng, "last"))


def value(attribute: str, rng: random.Random, split: Split) -> str:
    """What an attribute of `remanence.data.biographies` can be."""
    if attribute in _ENDINGS:
        return _of(split, lambda: _made(rng, _ENDINGS[attribute]))
    return " ".join(_of(split, partial(_word, rng, split, words)) for words in _content()["compounds"][attribute])


def _word(rng: random.Random, split: Split, words: Sequence[str]) -> str:
    """One of some words; in training half of the time any other word, common or made up, so that it must be read."""
    drawn = 0.0 if split == "test" else rng.random()
    if drawn < 0.5:
        return rng.choice(words)
    return rng.choice(_common()) if drawn < 0.75 else _made(rng, rng.choice(_KINDS)).lower()


def _made(rng: random.Random, ending: str) -> str:
    syllables = _content()["syllables"]
    middle = rng.choice(syllables["middle"]) if rng.random() < 0.5 else ""
    return str(rng.choice(syllables["start"]) + middle + rng.choice(syllables[ending]))


def _of(split: Split, draw: Callable[[], str]) -> str:
    while split_of_word(word := draw()) != split or word.lower() in _listed():
        pass
    return word


@cache
def _common() -> list[str]:
    """The commoner words of English of four letters or more."""
    text = resources.files("remanence.data").joinpath("word_frequencies.json").read_text(encoding="utf-8")
    return [word for word in json.loads(text)["frequencies"] if word.isalpha() and len(word) > 3]


@cache
def _listed() -> frozenset[str]:
    corpus = json.loads(resources.files("remanence.data").joinpath("biographies.json").read_text(encoding="utf-8"))
    values = [value for attribute in corpus["attributes"].values() for value in attribute["values"]]
    listed = [*corpus["female"], *corpus["male"], *corpus["last"], *values]
    return frozenset(word for text in listed for word in text.lower().split())
