"""What the demonstration tells a memory of text slots: a bundled handbook with questions, or a file of one's own."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from typing import Self

from remanence.data.prose import paragraphs
from remanence.errors import InvalidInputError
from remanence.texts import Question, paragraphs_of


@dataclass(frozen=True)
class Paragraph:
    """One paragraph to tell: where it is from, and its number there, from 1."""

    text: str
    source: str
    number: int


@dataclass(frozen=True)
class Asked:
    """One question.

    Attributes:
        truths: answers that are right; () where the text does not answer it.
        number: of the paragraph that answers it; None where that is not known, or there is none.
    """

    text: str
    truths: tuple[str, ...] = ()
    number: int | None = None


@dataclass(frozen=True)
class Book:
    """A text to tell, and what to ask about it.

    Attributes:
        source: what the text is called.
        questions: of the text; not_told: which it does not answer.
        forget: the number of the paragraph that is taken out at the end; None: none is.
    """

    source: str
    paragraphs: tuple[Paragraph, ...]
    questions: tuple[Asked, ...] = ()
    not_told: tuple[Asked, ...] = ()
    forget: int | None = None

    def asked(self, questions: Sequence[Question]) -> Self:
        """The same with other questions, of which it is not known which paragraph answers them."""
        asked = tuple(Asked(one.text, one.truths) for one in questions)
        return replace(self, questions=asked, not_told=(), forget=None)


def handbook() -> Book:
    """The bundled handbook of an observatory that does not exist."""
    folder = resources.files("remanence.data")
    book = book_of("handbook.md", (folder / "handbook.md").read_text(encoding="utf-8"))
    about = json.loads((folder / "handbook_questions.json").read_text(encoding="utf-8"))
    asked = tuple(Asked(one["question"], tuple(one["answers"]), one["paragraph"]) for one in about["questions"])
    return replace(book, questions=asked, not_told=tuple(map(Asked, about["not_told"])), forget=about["forget"])


def book_of(source: str, text: str) -> Book:
    """The paragraphs of a text, without questions. Headings of Markdown are no paragraphs.

    Raises:
        InvalidInputError: it holds nothing but headings.
    """
    parts = [part for part in paragraphs_of(text) if not _heading(part)]
    if not parts:
        raise InvalidInputError(f"{source} holds headings only, so there is nothing in it to tell")
    told = tuple(Paragraph(part, source, number) for number, part in enumerate(parts, 1))
    return Book(source, told)


def _heading(text: str) -> bool:
    marks = len(text) - len(text.lstrip("#"))
    return 1 <= marks <= 6 and text[marks : marks + 1] in (" ", "")


def among_unrelated(book: Book, unrelated: int, seed: int = 0) -> list[Paragraph]:
    """The paragraphs of a book in their order, with paragraphs of novels between them at random places.

    Of the novels the shortest paragraphs, since each takes time to tell.

    Raises:
        InvalidInputError: there are not so many.
    """
    if unrelated > len(paragraphs()):
        raise InvalidInputError(f"there are {len(paragraphs())} unrelated paragraphs, not {unrelated:,}; ask for fewer")
    rng = random.Random(seed)
    shortest = sorted(range(len(paragraphs())), key=lambda number: len(paragraphs()[number]))[:unrelated]
    numbers = rng.sample(shortest, unrelated)
    own = iter(book.paragraphs)
    others = iter([Paragraph(paragraphs()[number], "prose.txt", number + 1) for number in numbers])
    places = [own] * len(book.paragraphs) + [others] * unrelated
    rng.shuffle(places)
    return [next(place) for place in places]
