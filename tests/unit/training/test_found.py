"""When a memory was told what it is asked: what is observed, and that the weights part the two."""

import random

import pytest

from remanence import MemoryModel
from remanence.config import RetrievalConfig
from remanence.errors import InvalidInputError
from remanence.training.found import Observation, fitted, observed, shares
from remanence.training.questions import Question
from remanence.training.tasks.reader_data import REFUSAL
from tests.support import tiny
from tests.support.tiny import decoder
from tests.unit.model.test_chat import TEMPLATE

PASSAGES = ["Alice Brown was born in Oslo.", "Bob Green was born in Lima."]


def model(**retrieval: object) -> MemoryModel:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    return MemoryModel.attach(
        decoder(vocab_size=300), tokenizer, retrieval=RetrievalConfig(min_score=0.0, **retrieval), chunk=64
    )


def test_questions_are_asked_with_and_without_what_answers_them() -> None:
    asked = [Question("Where was Alice born?", ("Oslo",), (0,)), Question("Where was Alice wed?", (), (0,))]
    seen = list(observed(model(refusal=REFUSAL), "towns", PASSAGES, asked))
    assert [one.told for one in seen] == [True, False, False]
    assert [one.first for one in seen] == [True, False, False]
    assert seen[0].score > seen[1].score > 0
    assert seen[2].score > seen[1].score  # Alice's birth was not forgotten there
    assert all(0 < one.refusing < 1 for one in seen)


def test_a_model_that_cannot_refuse_is_not_observed() -> None:
    with pytest.raises(InvalidInputError, match="refuse"):
        next(observed(model(), "towns", PASSAGES, []))


def test_what_stands_elsewhere_too_is_not_asked_without_its_passage() -> None:
    asked = [Question("Where was Alice born?", ("Oslo",), (0,))]
    seen = list(observed(model(refusal=REFUSAL), "towns", [*PASSAGES, "Carol lives in Oslo."], asked))
    assert [one.told for one in seen] == [True]


def test_weights_part_what_was_told_and_kinds_count_alike() -> None:
    rng = random.Random(0)

    def drawn(kind: str, told: bool, number: int, low: float) -> list[Observation]:
        pairs = [(rng.uniform(low, low + 0.4), rng.uniform(low, low + 0.4)) for _ in range(number)]
        return [Observation(kind, told, score, 1 - other, told) for score, other in pairs]

    few = [*drawn("few", True, 60, 0.3), *drawn("few", False, 60, 0.05)]  # lower scores, told or not
    many = [*drawn("many", True, 600, 0.55), *drawn("many", False, 600, 0.25)]
    config = fitted(RetrievalConfig(refusal=REFUSAL), few + many)
    assert config.score_weight > 0 and config.refusal_weight > 0
    figures = shares(fitted(config, many), [*many, Observation("nothing was read", False, 0.0, 1.0)])
    assert all(value > 0.85 for value in figures["many"].values())
    assert figures["nothing was read"]["not told"] == 1.0
    balanced = fitted(RetrievalConfig(refusal=REFUSAL), 10 * few + many)
    assert config.found_bias == pytest.approx(balanced.found_bias, abs=0.05)
    with pytest.raises(InvalidInputError, match="add some"):
        fitted(config, [one for one in few if one.told])
