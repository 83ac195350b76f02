"""Episodes: a held-out person's fact, unrelated paragraphs around it, questions that depend on nothing else."""

import random
from itertools import islice, pairwise

import pytest

from remanence.data.biographies import sample_person, split_of
from remanence.data.episodes import Episode, unrelated
from remanence.data.prose import paragraphs
from remanence.errors import InvalidInputError


def test_the_fact_is_about_a_held_out_person_and_holds_every_answer() -> None:
    for index in range(20):
        episode = Episode(0, index)
        assert split_of(episode.person.name) == "test"
        for distance in range(10):
            question = episode.question(distance)
            assert episode.person.name in question.text
            assert question.truth in episode.fact


def test_fewer_facts_are_still_all_that_is_asked_about() -> None:
    episode = Episode(0, 1, facts=2)
    assert len(episode.attributes) == 2
    assert {episode.question(distance).truth for distance in range(40)} == {
        episode.person.facts[attribute] for attribute in episode.attributes
    }


def test_a_question_depends_on_its_distance_and_not_on_the_paragraphs_drawn_before() -> None:
    one, other = Episode(3, 7), Episode(3, 7)
    list(islice(one.unrelated, 11))
    one.question(0)
    assert one.question(5) == other.question(5)
    assert len({one.question(distance).text for distance in range(20)}) > 1


def test_another_seed_or_index_is_another_episode() -> None:
    assert len({Episode(seed, index).fact for seed in range(3) for index in range(3)}) == 9


def test_unrelated_paragraphs_alternate_between_biographies_and_prose_and_either_comes_first() -> None:
    first = set()
    for seed in range(10):
        kinds = [text in paragraphs() for text in islice(unrelated(random.Random(seed), set()), 8)]
        assert all(a != b for a, b in pairwise(kinds))
        first.add(kinds[0])
    assert first == {True, False}


def test_nobody_whose_name_is_taken_occurs() -> None:
    def biographies(taken: set[str]) -> list[str]:
        return [text for text in islice(unrelated(random.Random(5), taken), 40) if text not in paragraphs()]

    rng = random.Random(0)
    everyone: set[str] = set()
    while len(everyone) < 400:
        everyone.add(sample_person(rng, "test").name)
    met = {name for name in everyone if any(name in text for text in biographies(set()))}
    assert met
    assert not [name for name in met if any(name in text for text in biographies(met))]


@pytest.mark.parametrize("facts", [0, 9])
def test_an_impossible_number_of_facts_is_refused(facts: int) -> None:
    with pytest.raises(InvalidInputError, match="1 to 8 facts"):
        Episode(0, 0, facts=facts)
