"""Conversations of two friends, written for this project, with names and dates drawn: what a reader is trained on.

Some questions name the other speaker, who never said what is asked: they have no answer. `talks.jsonl` holds the texts.
{A} and {B} stand for the names, and {date-1} for the day before a session.
"""

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

_NAMES = {
    "f": """Alice Amina Bella Carla Chloe Dana Elena Fatima Fiona Gwen Hanna Ines Irene Isla Jana Kate Keiko Lena Leila
    Lucia Maya Mei Mila Nadia Nora Olga Paula Petra Priya Rachel Rosa Ruth Sara Selma Sofia Tara Tess Ursula Vera
    Wendy Yara Zoe""",
    "m": """Adam Amir Ben Brian Carl Daniel Diego Emil Erik Felix Frank George Hassan Henry Hugo Ian Ivan Jack Jonas
    Karim Kofi Lars Leo Liam Luca Marco Max Milan Nathan Noah Oscar Pablo Paul Peter Ravi Samir Simon Steve Theo Tom
    Victor Yusuf""",
}
_STAMPS = (
    *('({clock} on {day.day} {day:%B}, {day.year}) {who} said, "{said}"',) * 3,
    "[{day:%B} {day.day}, {day.year}, {clock}] {who}: {said}",
    "{who} ({day.day} {day:%B} {day.year}): {said}",
    "{day.day} {day:%B}, {day.year}; {who}: {said}",
)
_WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_PLACEHOLDER = re.compile(r"{(date|month|year|weekday)(?:-([a-z]+)|([+-]\d+))?}")


@dataclass(frozen=True)
class Talk:
    """A conversation.

    Attributes:
        turns: in the order of time, each with who said it and when.
        questions: each with its answer and the turns that it is about; None: nobody told it.
    """

    turns: tuple[str, ...]
    questions: tuple[tuple[str, str | None, tuple[int, ...]], ...]


def talk(content: Mapping[str, Any], rng: random.Random) -> Talk:
    """A conversation of `talks.jsonl`, or of a file like it, between two people who are drawn."""
    names: dict[str, str] = {}
    for letter, gender in zip("AB", content["genders"], strict=True):
        names[letter] = rng.choice([name for name in _NAMES[gender].split() if name not in names.values()])
    stamp = rng.choice(_STAMPS)
    day, turns, days = date(2015, 1, 1) + timedelta(days=rng.randrange(4000)), list[str](), list[date]()
    for session in content["sessions"]:
        day += timedelta(days=rng.randint(12, 45))
        clock = f"{rng.randint(1, 12)}:{rng.randrange(60):02d} {rng.choice(['am', 'pm'])}"
        for turn in session["turns"]:
            said = _named(turn["text"], names["A"], names["B"]).strip()
            turns.append(stamp.format(day=day, clock=clock, who=names[turn["speaker"]], said=said))
            days.append(day)
    asked = list[tuple[str, str | None, tuple[int, ...]]]()
    for one in content["questions"]:
        places = tuple(one["turns"])
        answer = _named(_timed(one["answer"], days[places[0]]), names["A"], names["B"])
        asked.append((_named(one["question"], names["A"], names["B"]), answer, places))
        if one["swap"]:
            asked.append((_named(one["question"], names["B"], names["A"]), None, places))
    return Talk(tuple(turns), tuple(asked))


def _named(text: str, first: str, second: str) -> str:
    return text.replace("{A}", first).replace("{B}", second)


def _timed(text: str, day: date) -> str:
    """With times in the place of placeholders, as they are in a session of some day."""
    return _PLACEHOLDER.sub(lambda found: _time(found, day), text)


def _time(found: re.Match[str], day: date) -> str:
    kind, weekday, shift = found[1], found[2], int(found[3] or 0)
    if kind == "weekday":
        back = (day.weekday() - _WEEKDAYS.index(weekday) - 1) % 7 + 1
        return _spelled(day - timedelta(days=back))
    if kind == "date":
        return _spelled(day + timedelta(days=shift))
    if kind == "year":
        return str(day.year + shift)
    months = 12 * day.year + day.month - 1 + shift
    return f"{date(months // 12, months % 12 + 1, 1):%B %Y}"


def _spelled(day: date) -> str:
    return f"{day.day} {day:%B %Y}"
