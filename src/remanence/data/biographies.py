"""English paragraphs about invented people, and questions whose answers stand in them.

A model that has read a paragraph can only answer by remembering it: the facts are drawn at random, so nothing
learned about one person says anything about another.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TypedDict

from remanence.data import unlisted
from remanence.data.unlisted import Split

ATTRIBUTES: tuple[str, ...] = (
    "birthplace",
    "job",
    "pet",
    "food",
    "hobby",
    "language",
    "country",
    "collection",
)

_TEST_SHARE = 10  # one name in ten


class _Attribute(TypedDict):
    values: list[str]
    templates: list[str]
    questions: list[str]


class _Corpus(TypedDict):
    female: list[str]
    male: list[str]
    last: list[str]
    attributes: dict[str, _Attribute]


@dataclass(frozen=True)
class Person:
    name: str
    facts: Mapping[str, str]


@dataclass(frozen=True)
class _Pronouns:
    they: str
    them: str
    their: str


_SHE = _Pronouns("she", "her", "her")
_HE = _Pronouns("he", "him", "his")


@functools.cache
def _corpus() -> _Corpus:
    text = resources.files("remanence.data").joinpath("biographies.json").read_text(encoding="utf-8")
    corpus: _Corpus = json.loads(text)
    return corpus


@functools.cache
def _first_names() -> dict[str, _Pronouns]:
    corpus = _corpus()
    return dict.fromkeys(corpus["female"], _SHE) | dict.fromkeys(corpus["male"], _HE)


@functools.cache
def _first_name_list() -> list[str]:
    return list(_first_names())


def split_of(name: str) -> Split:
    """The split hangs on the name alone, so no run, seed or platform can put a test person into training."""
    return unlisted.hashed_split(name, _TEST_SHARE)


def sample_person(
    rng: random.Random,
    split: Split,
    *,
    names: int | None = None,
    values: int | None = None,
    namesakes: Sequence[Person] = (),
    open_share: float = 0.0,
) -> Person:
    """Draw a person.

    Args:
        open_share: with this probability each name and each value is one that stands on no list.
        names, values: keep to the first so many of each list, for an easy start of training.
        namesakes: people to take the first name from, and from another the last: someone easily mistaken for them.
    """
    if split not in ("train", "test"):
        raise ValueError(f"split must be 'train' or 'test', not {split!r}")
    corpus = _corpus()
    first, last = _first_name_list()[:names], corpus["last"][:names]
    if namesakes:
        first, last = (list(half) for half in zip(*(person.name.split(" ", 1) for person in namesakes), strict=True))
    while True:
        name = f"{rng.choice(first)} {rng.choice(last)}"
        if split_of(name) == split:
            break
    facts = {attribute: rng.choice(corpus["attributes"][attribute]["values"][:values]) for attribute in ATTRIBUTES}
    if open_share:
        name, facts = _opened(rng, split, name, facts, names=0.0 if namesakes else open_share, values=open_share)
    return Person(name, facts)


def _opened(
    rng: random.Random, split: Split, name: str, facts: dict[str, str], *, names: float, values: float
) -> tuple[str, dict[str, str]]:
    """With other names and values in the place of some, at these probabilities."""
    first, last = name.split(" ", 1)
    first = unlisted.first_name(rng, split) if rng.random() < names else first
    last = unlisted.last_name(rng, split) if rng.random() < names else last
    drawn = {a: unlisted.value(a, rng, split) if rng.random() < values else value for a, value in facts.items()}
    return f"{first} {last}", drawn


def biography(
    person: Person,
    rng: random.Random,
    attributes: Sequence[str] | None = None,
    *,
    pronouns: float = 0.5,
) -> str:
    """One sentence per attribute, in random order.

    The first sentence has the full name, and has it before the value: a decoder reads from left to right, so that a
    value in front of any name would belong to nobody. Each later sentence has a pronoun instead of the name with
    probability `pronouns`.
    """
    order = list(ATTRIBUTES if attributes is None else attributes)
    rng.shuffle(order)
    used: list[str] = []
    sentences: list[str] = []
    for attribute in order:
        templates = [t for t in _attribute(attribute)["templates"] if t not in used and (used or _name_first(t))]
        if not templates:
            raise ValueError(f"attribute {attribute!r} is asked for more often than it has templates")
        template = rng.choice(templates)
        by_pronoun = rng.random() < pronouns and bool(used)
        used.append(template)
        sentences.append(_sentence(template, person, person.facts[attribute], by_pronoun))
    return " ".join(sentences)


def question(person: Person, attribute: str, rng: random.Random) -> str:
    """The answer is `" " + person.facts[attribute]`."""
    wording = rng.choice(_attribute(attribute)["questions"])
    return f"Question: {wording.format(name=person.name)} Answer:"


def values(attribute: str) -> list[str]:
    """Everything that an attribute can be."""
    return list(_attribute(attribute)["values"])


def vocabulary() -> list[str]:
    corpus = _corpus()
    words = [*corpus["female"], *corpus["male"], *corpus["last"]]
    for attribute in ATTRIBUTES:
        words += corpus["attributes"][attribute]["values"]
    return words


def _attribute(attribute: str) -> _Attribute:
    if attribute not in ATTRIBUTES:
        raise ValueError(f"unknown attribute {attribute!r}; known: {', '.join(ATTRIBUTES)}")
    return _corpus()["attributes"][attribute]


def _name_first(template: str) -> bool:
    return template.index("{V}") > min(template.find(slot) for slot in ("{S}", "{O}", "{P}") if slot in template)


def _sentence(template: str, person: Person, value: str, by_pronoun: bool) -> str:
    """Fill a template: {S}, {O}, {P} are the person as subject, object, possessor, by name or by pronoun;
    {they} and {their} are pronouns always; {V} is the value."""
    first = person.name.partition(" ")[0]
    pronoun = _first_names().get(first) or (_SHE if unlisted.is_woman(first) else _HE)
    text = template.format(
        S=pronoun.they if by_pronoun else person.name,
        O=pronoun.them if by_pronoun else person.name,
        P=pronoun.their if by_pronoun else f"{person.name}'s",
        they=pronoun.they,
        them=pronoun.them,
        their=pronoun.their,
        V=value,
    )
    return text[0].upper() + text[1:]
