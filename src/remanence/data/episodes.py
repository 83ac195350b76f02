"""A fact about a person whom the model has never met, what is written after it, and questions about it."""

import random
from collections.abc import Container, Iterator

from remanence.data.biographies import ATTRIBUTES, biography, question, sample_person
from remanence.data.prose import paragraphs
from remanence.errors import InvalidInputError
from remanence.texts import Question

FACTS = 3  # per biography: the middle of what the bundled checkpoint was trained on


def unrelated(
    rng: random.Random, taken: Container[str], facts: int = FACTS, *, unlisted: bool = False
) -> Iterator[str]:
    """Biographies of held-out people and paragraphs of novels in turn, without end; either may come first.

    Args:
        taken: full names that must not occur: a set of names, or a text that they stand in.
        facts: facts per biography.
        unlisted: names and values of the people stand on no list.
    """
    telling = rng.random() < 0.5
    while True:
        if telling:
            person = sample_person(rng, "test", open_share=float(unlisted))
            while person.name in taken:
                person = sample_person(rng, "test", open_share=float(unlisted))
            yield biography(person, rng, rng.sample(ATTRIBUTES, facts))
        else:
            yield rng.choice(paragraphs())
        telling = not telling


class Episode:
    """One held-out person's biography, what is written before and after it, and one question per distance.

    A question hangs on seed, index and distance alone: it does not matter which other distances are asked, nor under
    which condition.

    Attributes:
        fact: the biography, one paragraph.
        unrelated: the paragraphs around it, endless.
    """

    def __init__(self, seed: int, index: int, facts: int = FACTS, *, unlisted: bool = False) -> None:
        """`unlisted`: names and values of all people stand on no list, and no word of them was trained on."""
        if not 1 <= facts <= len(ATTRIBUTES):
            raise InvalidInputError(f"a biography has 1 to {len(ATTRIBUTES)} facts, not {facts}")
        self._key = f"{seed}/{index}"
        rng = random.Random(self._key)
        self.person = sample_person(rng, "test", open_share=float(unlisted))
        self.attributes = rng.sample(ATTRIBUTES, facts)
        self.fact = biography(self.person, rng, self.attributes)
        self.unrelated = unrelated(rng, {self.person.name}, facts, unlisted=unlisted)

    def question(self, distance: int) -> Question:
        rng = random.Random(f"{self._key}/{distance}")
        attribute = rng.choice(self.attributes)
        return Question(question(self.person, attribute, rng), self.person.facts[attribute])
