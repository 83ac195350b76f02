"""Synthetic notes to train a reader on, with questions about them.

Facts of one kind stand beside each other (two medicines, two times), and names are made of syllables. Templates and
words: `notes.json`.
"""

import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Note:
    """A text and what can be asked about it, with the answers.

    Attributes:
        template: which template it was made of; two notes of one template answer the same questions.
    """

    text: str
    questions: tuple[tuple[str, str], ...]
    template: int


@cache
def _content() -> dict[str, Any]:
    text = resources.files("remanence.data").joinpath("notes.json").read_text(encoding="utf-8")
    made: dict[str, Any] = json.loads(text)
    return made


def note(rng: random.Random) -> Note:
    """A note of somebody's household or work."""
    template = rng.randrange(len(_content()["notes"]))
    made = _content()["notes"][template]
    values: dict[str, str] = {}
    for key in sorted(set(re.findall(r"{(\w+)}", made["text"]))):
        for _ in range(20):
            value = _value(rng, key.rstrip("0123456789"))
            if value not in values.values():
                break
        values[key] = value
    text = made["text"].format(**values)
    asked = tuple((question.format(**values), values[key]) for question, key in made["questions"])
    return Note(text[0].upper() + text[1:], asked, template)


def general_prompt(rng: random.Random) -> str:
    """What a person may ask that no memory answers."""
    content = _content()["general"]
    if rng.random() < 0.6:
        topic, other = rng.sample(content["topics"], 2)
        return str(rng.choice(content["about_topics"])).format(t=topic, u=other)
    return str(rng.choice(content["others"])).format(a=rng.randint(2, 99), b=rng.randint(2, 99))


def _name(rng: random.Random, syllables: int = 0, *, capital: bool = True) -> str:
    parts = [rng.choice(_content()["values"]["syllable"]) for _ in range(syllables or rng.randint(2, 3))]
    made = "".join(parts) + rng.choice(["", "n", "r", "s", "l", "x", "t", "nd", "m"])
    return made.capitalize() if capital else made


def _person(rng: random.Random) -> str:
    return f"{_value(rng, 'first')} {_name(rng)}"


def _clock(rng: random.Random) -> str:
    hour, minute = rng.randint(6, 21), rng.choice([0, 10, 15, 20, 30, 40, 45, 50])
    if rng.random() < 0.6:
        return f"{hour}:{minute:02d}"
    half = f"{(hour - 1) % 12 + 1}" + (f":{minute:02d}" if minute else "")
    return f"{half} {'am' if hour < 12 else 'pm'}"


def _date(rng: random.Random) -> str:
    day, month = rng.randint(1, 28), rng.choice(_content()["values"]["month"])
    return rng.choice([f"{day} {month}", f"{month} {day}", f"{day} {month} {rng.randint(2019, 2026)}"])


def _money(rng: random.Random) -> str:
    amount = rng.choice(
        [str(rng.randint(3, 99)), str(rng.randint(100, 2500)), f"{rng.randint(3, 90)}.{rng.randint(10, 99)}"]
    )
    return rng.choice(["${}", "{} euros", "£{}", "{} dollars"]).format(amount)


def _code(rng: random.Random) -> str:
    return rng.choice(
        [
            str(rng.randint(1000, 9999)),
            f"{_name(rng, 2, capital=False)}{rng.randint(10, 99)}",
            f"{rng.choice('ABCDEFGH')}{rng.randint(100, 999)}",
        ]
    )


def _street(rng: random.Random) -> str:
    return f"{rng.randint(1, 180)} {_name(rng, 2)} {rng.choice(_content()['values']['street'])}"


_MADE: dict[str, Callable[[random.Random], str]] = {
    "first": lambda rng: rng.choice(_content()["values"]["first"]) if rng.random() < 0.7 else _name(rng, 2),
    "last": _name,
    "person": _person,
    "clock": _clock,
    "date": _date,
    "money": _money,
    "med": lambda rng: _name(rng, 3),
    "word": lambda rng: _name(rng, 3),
    "town": _name,
    "street": _street,
    "phone": lambda rng: " ".join(str(rng.randint(10, 999)) for _ in range(3)),
    "code": _code,
    "n": lambda rng: str(rng.randint(2, 60)),
    "year": lambda rng: str(rng.randint(1950, 2025)),
}


def _value(rng: random.Random, kind: str) -> str:
    if kind in _MADE:
        return _MADE[kind](rng)
    return str(rng.choice(_content()["values"][kind]))
