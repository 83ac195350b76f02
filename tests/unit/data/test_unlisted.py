"""Names and values on no list: no word of a test is one of training, and biographies of such people read as others."""

import random
import re

from remanence.data import unlisted
from remanence.data.biographies import ATTRIBUTES, Person, biography, sample_person, values, vocabulary
from remanence.data.episodes import Episode
from remanence.data.unlisted import is_woman, split_of_word
from remanence.evaluation.retention import people_of


def words_of(person: Person) -> set[str]:
    return {word for text in (person.name, *person.facts.values()) for word in text.split()}


def test_no_word_of_a_test_is_one_of_training() -> None:
    rng = random.Random(0)
    trained = {word for _ in range(400) for word in words_of(sample_person(rng, "train", open_share=1.0))}
    tested = {word for _ in range(400) for word in words_of(sample_person(rng, "test", open_share=1.0))}
    assert len(trained) > 1000 and len(tested) > 400 and not trained & tested
    assert all(split_of_word(word) == "train" for word in trained)
    assert len({sample_person(rng, "test", open_share=1.0).name for _ in range(400)}) > 350
    listed = {word for text in vocabulary() for word in text.lower().split()}
    assert not listed & {word.lower() for word in trained | tested}


def test_compounds_of_training_are_of_any_words_and_those_of_tests_of_the_lists() -> None:
    rng = random.Random(4)
    on_lists = {word for lists in unlisted._content()["compounds"].values() for words in lists for word in words}
    shares = {}
    for split in ("train", "test"):
        drawn = [unlisted.value("pet", rng, split).split() for _ in range(400)]  # type: ignore[arg-type]
        shares[split] = sum(word in on_lists for words in drawn for word in words) / 800
    assert 0.4 < shares["train"] < 0.65 and shares["test"] == 1


def test_shares_of_names_and_values_are_unlisted() -> None:
    rng, listed = random.Random(1), {*vocabulary()}
    half = [sample_person(rng, "train", open_share=0.5) for _ in range(200)]
    share = sum(person.facts[a] not in values(a) for person in half for a in ATTRIBUTES) / 200 / len(ATTRIBUTES)
    assert 0.4 < share < 0.6
    assert 0.3 < sum(set(person.name.split()) <= listed for person in half) / 200 * 2 < 0.8
    twins = [sample_person(rng, "train", open_share=1.0) for _ in range(2)]
    mixed = sample_person(rng, "train", namesakes=twins, open_share=1.0)
    assert set(mixed.name.split()) <= {word for twin in twins for word in twin.name.split()}


def test_people_that_are_listed_are_drawn_as_before() -> None:
    one, other = random.Random(2), random.Random(2)
    assert sample_person(one, "test") == sample_person(other, "test", open_share=0.0)
    assert one.random() == other.random()


def test_a_biography_has_the_pronouns_of_its_first_name() -> None:
    rng = random.Random(3)
    women = set()
    for _ in range(200):
        person = sample_person(rng, "test", open_share=1.0)
        said = set(re.findall(r"[a-z]+", biography(person, rng, pronouns=1.0).lower()))
        woman = is_woman(person.name.split()[0])
        women.add(woman)
        assert not said & ({"he", "him", "his"} if woman else {"she", "her"})
        assert all(value in biography(person, rng) for value in person.facts.values())
    assert women == {True, False}


def test_episodes_of_unlisted_people_are_told_and_asked_alike() -> None:
    told = people_of(0, 3, unlisted=True).episode(0, 1)
    assert isinstance(told, Episode)
    asked = told.question(3)
    assert asked.truth in told.fact and asked.truth not in values(told.attributes[0])
    assert set(told.person.name.split()).isdisjoint(vocabulary())
    others = [next(told.unrelated) for _ in range(8)]
    assert not any(first in text for text in others for first in ("Alice ", "John ", "Mary ", "David "))
    assert [people_of(0, 3, unlisted=kind).name for kind in (True, False)] == ["unlisted", "listed"]
