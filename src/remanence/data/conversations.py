"""Turns of invented conversations, made of posts in the first person and of what was asked about them.

Questions about conversations name who spoke, and the turn that answers says "I". Posts on the web have questions about
"the author" or "the poster": there the speaker's name is put in their place.
"""

import random
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

_NAMES = """
Alice Ben Carla David Emma Frank Grace Henry Isla Jack Kate Liam Maya Nathan Olivia Paul Quinn Rachel Sam Tina Umar
Vera Will Xenia Yusuf Zoe Anna Brian Chloe Diego Ella Felix Gina Hugo Irene Jonas Karen Leo Marta Nick Oscar Priya
Ruth Steve Tara Victor Wendy Amir Bella Carl Dana Eric Fiona George Hannah Ian Julia Kevin Laura Mike Nora Peter
Rosa Simon Tess Tom Lena Max Sara
"""
_SPEAKER = (
    r"\b(?:the |this |that )?(?:author|narrator|OP|original poster|speaker|writer|poster|user|storyteller|redditor|"
    r"person|individual|man|woman|girl|guy|gamer|player)"
)
_OWN = re.compile(_SPEAKER + r"'s\b", re.IGNORECASE)
_NAMED = re.compile(_SPEAKER + r"\b(?! of| who| that|s\b|')", re.IGNORECASE)
_FIRST_PERSON = re.compile(r"\b(I|I'm|my|me|we|our|I've)\b")
_SENTENCES = re.compile(r"(?<=[.!?])\s+|\n+")
_LONGEST = 70  # words of a turn
_KEPT_UNNAMED = 0.6  # of questions that name nobody
_BESIDES = 2  # turns of a post that nothing asks about


class Post(NamedTuple):
    """A post, and questions about it with their answers, one of which stands in it."""

    text: str
    questions: Sequence[tuple[str, Sequence[str]]]


class Turn(NamedTuple):
    """What one of two said in a conversation, with what is asked about it."""

    conversation: int
    text: str
    questions: list[str]


def conversations(posts: Sequence[Post], *, turns: int, seed: int = 0, length: int = 120) -> Iterator[Turn]:
    """About so many turns, in conversations of about `length` each; other posts than those in the first person are
    left out."""
    rng = random.Random(f"conversations {seed}")
    own = [post for post in posts if _FIRST_PERSON.search(post.text)]
    rng.shuffle(own)
    made, number, left = 0, -1, 0
    pair, now = ["", ""], datetime(2020, 1, 1)
    for post in own:
        if made >= turns:
            return
        if left <= 0:
            number, left, pair = number + 1, length, rng.sample(_NAMES.split(), 2)
            now = datetime(rng.randrange(2015, 2027), rng.randrange(1, 13), rng.randrange(1, 28), rng.randrange(24))
        now += timedelta(days=rng.randrange(4), minutes=rng.randrange(300))
        for text, questions in _said(rng, post, rng.choice(pair), now):
            yield Turn(number, text, questions)
            made, left = made + 1, left - 1


def _said(rng: random.Random, post: Post, name: str, now: datetime) -> list[tuple[str, list[str]]]:
    parts = _parts(rng, post.text)
    asked: dict[int, list[str]] = {}
    for question, answers in post.questions:
        place = next((at for at, part in enumerate(parts) if any(answer in part for answer in answers)), None)
        named = _NAMED.sub(name, _OWN.sub(f"{name}'s", question))
        if place is None or (named == question and rng.random() > _KEPT_UNNAMED):
            continue
        if named == question and rng.random() < 0.25:
            named = rng.choice([f"What did {name} say: {question}", f"{question.rstrip('?')}, {name}?"])
        asked.setdefault(place, []).append(named)
    others = [at for at, part in enumerate(parts) if at not in asked and len(part.split()) > 3]
    places = [*asked, *rng.sample(others, min(len(others), _BESIDES))]
    return [(_turn(rng, now, name, parts[at]), asked.get(at, [])) for at in places]


def _parts(rng: random.Random, text: str) -> list[str]:
    """One to three sentences each."""
    sentences = [part for part in _SENTENCES.split(text) if part.strip()]
    parts: list[str] = []
    while sentences:
        count = rng.choice([1, 1, 2, 3])
        parts.append(" ".join(" ".join(sentences[:count]).split()[:_LONGEST]))
        sentences = sentences[count:]
    return parts


def _turn(rng: random.Random, now: datetime, name: str, text: str) -> str:
    """With when and by whom it was said, as one of the ways in which chats are written down has it."""
    day = f"{now.day} {now:%B}, {now.year}"
    clock = f"{(now.hour - 1) % 12 + 1}:{now.minute:02d} {'am' if now.hour < 12 else 'pm'} on {day}"
    when = rng.choice([clock, clock, clock, day, f"{now:%Y-%m-%d}", f"{now:%B} {now.day}, {now.year}"])
    forms = (f"{when}; {name}: {text}", f"{name} ({when}): {text}", f"[{when}] {name}: {text}", f"{name}: {text}")
    return rng.choices(forms, weights=(13, 3, 2, 2))[0]
