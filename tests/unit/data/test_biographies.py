from __future__ import annotations

import json
import random
import re
from collections import Counter
from importlib import resources
from typing import Any

import pytest

from remanence.data.biographies import (
    ATTRIBUTES,
    Person,
    biography,
    question,
    sample_person,
    split_of,
    vocabulary,
)

CORPUS: dict[str, Any] = json.loads(
    resources.files("remanence.data").joinpath("biographies.json").read_text(encoding="utf-8")
)


def people(count: int, seed: int = 0) -> list[Person]:
    rng = random.Random(seed)
    return [sample_person(rng, "train") for _ in range(count)]


def has_word(word: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def test_there_are_eight_attributes_each_with_a_pool() -> None:
    assert len(ATTRIBUTES) == len(set(ATTRIBUTES)) == 8
    assert set(CORPUS["attributes"]) == set(ATTRIBUTES)


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_each_pool_has_enough_values_templates_and_questions(attribute: str) -> None:
    entry = CORPUS["attributes"][attribute]
    assert len(entry["values"]) >= 100
    assert len(set(entry["templates"])) == len(entry["templates"]) >= 20
    assert len(set(entry["questions"])) == len(entry["questions"]) >= 6


def test_there_are_enough_names() -> None:
    assert len(CORPUS["female"]) >= 60
    assert len(CORPUS["male"]) >= 60
    assert len(CORPUS["last"]) >= 150


def test_no_word_stands_in_two_pools() -> None:
    repeated = [word for word, n in Counter(w.casefold() for w in vocabulary()).items() if n > 1]
    assert repeated == []


def test_every_word_is_single() -> None:
    assert [word for word in vocabulary() if not re.fullmatch(r"[A-Za-z]+", word)] == []


def test_no_wording_gives_away_or_imitates_a_value() -> None:
    words = set(vocabulary())
    for entry in CORPUS["attributes"].values():
        for wording in entry["templates"] + entry["questions"]:
            assert not words & set(re.findall(r"[A-Za-z]+", wording)), wording


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_each_template_places_the_person_once_as_subject_object_or_possessor(attribute: str) -> None:
    for template in CORPUS["attributes"][attribute]["templates"]:
        slots = re.findall(r"\{(\w+)\}", template)
        assert set(slots) <= {"S", "O", "P", "V", "they", "them", "their"}, template
        assert slots.count("V") == 1, template
        assert sum(slots.count(slot) for slot in "SOP") == 1, template
        assert template.endswith("."), template


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_sentences_are_neither_clipped_nor_long(attribute: str) -> None:
    lengths = [len(t.split()) + 1 for t in CORPUS["attributes"][attribute]["templates"]]
    assert min(lengths) >= 5
    assert max(lengths) <= 16
    assert 8 <= sum(lengths) / len(lengths) <= 11


@pytest.mark.parametrize("attribute", ATTRIBUTES)
def test_each_question_wording_names_the_person_once(attribute: str) -> None:
    for wording in CORPUS["attributes"][attribute]["questions"]:
        assert re.findall(r"\{(\w+)\}", wording) == ["name"], wording
        assert wording.endswith("?"), wording


def test_a_biography_holds_every_value_and_no_unfilled_slot() -> None:
    rng = random.Random(1)
    for person in people(500):
        text = biography(person, rng)
        assert "{" not in text and "}" not in text
        assert "  " not in text and text == text.strip()
        assert text.count(".") == len(ATTRIBUTES)
        for value in person.facts.values():
            assert has_word(value, text), (value, text)


def test_every_sentence_starts_with_a_capital() -> None:
    rng = random.Random(2)
    for person in people(300):
        for sentence in biography(person, rng, pronouns=1.0).split(". "):
            assert sentence[0].isupper(), sentence


def test_the_first_sentence_has_the_full_name() -> None:
    rng = random.Random(3)
    for person in people(300):
        first, *rest = biography(person, rng, pronouns=1.0).split(". ")
        assert person.name in first
        assert all(person.name not in sentence for sentence in rest)


def test_without_pronouns_every_sentence_has_the_full_name() -> None:
    rng = random.Random(4)
    for person in people(300):
        assert biography(person, rng, pronouns=0.0).count(person.name) == len(ATTRIBUTES)


def test_pronouns_follow_the_first_name() -> None:
    rng = random.Random(5)
    female = set(CORPUS["female"])
    for person in people(500):
        words = set(re.findall(r"[a-z]+", biography(person, rng, pronouns=1.0).lower()))
        wrong = {"he", "him", "his"} if person.name.split()[0] in female else {"she", "her"}
        assert not words & wrong


def test_articles_agree_with_the_word_that_follows() -> None:
    rng = random.Random(6)
    for person in people(2000):
        text = biography(person, rng)
        assert not re.search(r"\b[Aa] (?!uni|use|one\b|euro)[aeiouAEIOU]", text), text
        assert not re.search(r"\b[Aa]n (?!hour|honest|heir)[^aeiouAEIOU]", text), text


def test_only_the_attributes_asked_for_are_told() -> None:
    rng = random.Random(7)
    for person in people(200):
        text = biography(person, rng, ["job", "pet"])
        assert text.count(".") == 2
        told = {a for a, value in person.facts.items() if has_word(value, text)}
        assert told == {"job", "pet"}


def test_no_template_is_repeated_within_a_paragraph() -> None:
    rng = random.Random(8)
    count = len(CORPUS["attributes"]["food"]["templates"])
    person = people(1)[0]
    sentences = biography(person, rng, ["food"] * count, pronouns=0.0).split(". ")
    assert len({sentence.rstrip(".") for sentence in sentences}) == count
    with pytest.raises(ValueError, match="more often"):
        biography(person, rng, ["food"] * (count + 1))


def test_no_attributes_give_an_empty_paragraph() -> None:
    assert biography(people(1)[0], random.Random(0), []) == ""


def test_train_and_test_names_never_overlap() -> None:
    rng = random.Random(9)
    train = {sample_person(rng, "train").name for _ in range(2000)}
    test = {sample_person(rng, "test").name for _ in range(2000)}
    assert not train & test
    assert {split_of(name) for name in train} == {"train"}
    assert {split_of(name) for name in test} == {"test"}


def test_about_a_tenth_of_all_names_is_for_test() -> None:
    names = [f"{a} {b}" for a in CORPUS["female"] + CORPUS["male"] for b in CORPUS["last"]]
    share = sum(split_of(name) == "test" for name in names) / len(names)
    assert 0.08 < share < 0.12


def test_the_split_does_not_change_between_versions() -> None:
    names = [f"Alice {last}" for last in CORPUS["last"]]
    assert [n for n in names if split_of(n) == "test"][:3] == [
        "Alice Anderson",
        "Alice Barnes",
        "Alice Bryant",
    ]


def test_the_same_seed_gives_the_same_text() -> None:
    def draw(seed: int) -> list[str]:
        rng = random.Random(seed)
        person = sample_person(rng, "test")
        return [biography(person, rng), question(person, "hobby", rng)]

    assert draw(11) == draw(11)
    assert draw(11) != draw(12)


def test_the_same_person_is_told_in_different_words() -> None:
    person = people(1)[0]
    assert len({biography(person, random.Random(seed)) for seed in range(50)}) == 50


def test_a_question_names_the_person_and_leaves_the_answer_open() -> None:
    rng = random.Random(12)
    for person in people(200):
        for attribute in ATTRIBUTES:
            text = question(person, attribute, rng)
            assert re.fullmatch(r"Question: [^?]+\? Answer:", text)
            assert person.name in text
            assert not has_word(person.facts[attribute], text)


def test_unknown_attributes_and_splits_are_refused() -> None:
    rng = random.Random(13)
    person = people(1)[0]
    with pytest.raises(ValueError, match="unknown attribute"):
        biography(person, rng, ["shoe"])
    with pytest.raises(ValueError, match="unknown attribute"):
        question(person, "shoe", rng)
    with pytest.raises(ValueError, match="split"):
        sample_person(rng, "valid")  # type: ignore[arg-type]


def test_biography_names_its_person_before_it_gives_a_value() -> None:
    rng = random.Random(3)
    for _ in range(300):
        person = sample_person(rng, "train")
        text = biography(person, rng)
        assert text.index(person.name) < min(text.index(value) for value in person.facts.values())
