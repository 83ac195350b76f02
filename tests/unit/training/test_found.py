"""When a memory was told what it is asked: what is observed, and that the weights part the two."""

import random

import pytest

from remanence import MemoryModel
from remanence.config import RetrievalConfig
from remanence.errors import InvalidInputError
from remanence.training.found import Observation, fitted, observed, shares
from remanence.training.lessons import REFUSAL
from remanence.training.questions import Question
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
    assert fitted(RetrievalConfig(refusal=REFUSAL), seen).refusal == REFUSAL


def test_a_model_that_cannot_refuse_is_not_observed() -> None:
    with pytest.raises(InvalidInputError, match="refuse"):
        next(observed(model(), "towns", PASSAGES, []))


def test_weights_part_what_was_told_and_kinds_count_alike() -> None:
    rng = random.Random(0)

    def drawn(kind: str, told: bool, number: int) -> list[Observation]:
        low, high = (0.5, 0.9) if told else (0.1, 0.6)
        return [
            Observation(kind, told, rng.uniform(low, high), 1 - rng.uniform(low, high), told) for _ in range(number)
        ]

    seen = [*drawn("few", True, 30), *drawn("few", False, 30), *drawn("many", True, 300), *drawn("many", False, 300)]
    config = fitted(RetrievalConfig(refusal=REFUSAL), seen)
    assert config.score_weight > 0 and config.refusal_weight > 0
    figures = shares(config, [*seen, Observation("few", False, 0.0, 1.0)])
    assert all(value > 0.8 for kind in figures.values() for value in kind.values())
    again = fitted(RetrievalConfig(refusal=REFUSAL), seen + drawn("many", True, 300) + drawn("many", False, 300))
    assert again.found_bias == pytest.approx(config.found_bias, abs=0.15)
    with pytest.raises(InvalidInputError, match="add some"):
        fitted(config, [one for one in seen if one.told])
