"""The handbook that the demonstration tells, its questions, and files of one's own."""

from collections import Counter
from itertools import pairwise

import pytest

from remanence.data.handbook import Book, Paragraph, among_unrelated, book_of, handbook
from remanence.data.prose import paragraphs
from remanence.demo.handbook import holds
from remanence.errors import InvalidInputError
from remanence.texts import Question


def test_handbook_has_about_sixty_paragraphs_of_forty_to_ninety_words() -> None:
    told = handbook().paragraphs
    assert 55 <= len(told) <= 65
    assert [one.number for one in told] == list(range(1, len(told) + 1))
    lengths = [len(one.text.split()) for one in told]
    assert min(lengths) >= 40 and max(lengths) <= 90
    assert {one.source for one in told} == {"handbook.md"}
    assert not any(one.text.startswith("#") for one in told)
    assert len({one.text for one in told}) == len(told)


def test_handbook_answers_each_question_in_the_paragraph_that_is_named() -> None:
    book = handbook()
    assert len(book.questions) == len({asked.text for asked in book.questions}) == 20
    for asked in book.questions:
        assert asked.number is not None
        assert holds(book.paragraphs[asked.number - 1].text, asked.truths), asked.text
        assert not any(holds(asked.text, [truth]) for truth in asked.truths)


def test_handbook_has_three_questions_that_it_does_not_answer() -> None:
    book = handbook()
    assert len(book.not_told) == 3
    assert all(asked.truths == () and asked.number is None for asked in book.not_told)


def test_handbook_forgets_a_paragraph_that_one_question_is_about_and_no_other_answers() -> None:
    book = handbook()
    [asked] = [asked for asked in book.questions if asked.number == book.forget]
    holding = [one.number for one in book.paragraphs if holds(one.text, asked.truths)]
    assert holding == [book.forget]


def test_book_of_takes_headings_for_no_paragraphs() -> None:
    text = "# Title\n\nOne.\n\n## Part\n\nTwo,\nwrapped.\n\n#hashtag is text\n\n####### seven marks\n"
    book = book_of("notes.md", text)
    assert [(one.text, one.number) for one in book.paragraphs] == [
        ("One.", 1),
        ("Two, wrapped.", 2),
        ("#hashtag is text", 3),
        ("####### seven marks", 4),
    ]
    with pytest.raises(InvalidInputError, match="headings only"):
        book_of("notes.md", "# Title\n")


def test_book_asked_has_these_questions_only() -> None:
    book = handbook().asked([Question("Who?", "Ann", ("Anna",))])
    assert [(asked.text, asked.truths, asked.number) for asked in book.questions] == [("Who?", ("Ann", "Anna"), None)]
    assert (book.not_told, book.forget) == ((), None)
    assert book.paragraphs == handbook().paragraphs


def test_among_unrelated_keeps_the_books_order_and_mixes_it_with_novels() -> None:
    told = among_unrelated(handbook(), 200)
    own = [one for one in told if one.source == "handbook.md"]
    others = [one for one in told if one.source == "prose.txt"]
    assert tuple(own) == handbook().paragraphs
    assert len(others) == len({one.number for one in others}) == 200
    assert all(paragraphs()[one.number - 1] == one.text for one in others)
    runs = Counter(first.source != second.source for first, second in pairwise(told))
    assert runs[True] > 40
    assert told == among_unrelated(handbook(), 200) != among_unrelated(handbook(), 200, seed=1)


def test_among_unrelated_refuses_more_than_there_are() -> None:
    book = Book("notes.md", (Paragraph("One.", "notes.md", 1),))
    assert among_unrelated(book, 0) == [book.paragraphs[0]]
    with pytest.raises(InvalidInputError, match="ask for fewer"):
        among_unrelated(book, len(paragraphs()) + 1)
