"""The prose that is written between a fact and its question is plain narrative, and knows no generated person."""

import json
import re
from importlib import resources
from itertools import pairwise

from remanence.data.biographies import split_of
from remanence.data.demo import PEOPLE, demo_files, make
from remanence.data.episodes import FACTS
from remanence.data.prose import paragraphs
from remanence.texts import paragraphs_of, read_questions, read_text


def test_there_are_enough_paragraphs_and_none_twice() -> None:
    assert len(paragraphs()) == len(set(paragraphs())) >= 350


def test_paragraphs_have_thirty_to_ninety_words() -> None:
    lengths = [len(paragraph.split()) for paragraph in paragraphs()]
    assert min(lengths) >= 30
    assert max(lengths) <= 90


def test_paragraphs_are_whole_sentences_without_dialogue_or_markup() -> None:
    strange = [p for p in paragraphs() if not re.fullmatch(r"[A-Z][A-Za-z ,.;:'!?-]*\.", p)]
    assert strange == []
    assert [p for p in paragraphs() if re.search(r"\b[A-Z]{2,}\b|(^| )'|'( |$)|--", p)] == []


def test_no_paragraph_names_a_generated_person() -> None:
    corpus = json.loads(resources.files("remanence.data").joinpath("biographies.json").read_text(encoding="utf-8"))
    first, last = {*corpus["female"], *corpus["male"]}, set(corpus["last"])
    for paragraph in paragraphs():
        words = re.findall(r"[A-Za-z]+", paragraph)
        assert [(a, b) for a, b in pairwise(words) if a in first and b in last] == []


def test_demo_files_are_what_the_generator_makes() -> None:
    text_file, questions_file = demo_files()
    texts, questions = make()
    assert paragraphs_of(read_text(text_file)) == texts
    assert [(q.text, q.truth) for q in read_questions(questions_file)] == [
        (q["question"], q["truth"]) for q in questions
    ]


def test_demo_asks_for_every_fact_of_held_out_people() -> None:
    texts, questions = make()
    assert len(texts) == len({q["person"] for q in questions}) == PEOPLE
    assert len(questions) == PEOPLE * FACTS
    for asked in questions:
        assert split_of(asked["person"]) == "test"
        assert asked["person"] in asked["question"]
        assert any(asked["person"] in text and asked["truth"] in text for text in texts)
