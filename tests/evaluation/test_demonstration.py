"""A demonstration asks the same questions of one memory while it goes on being written."""

from typing import Any

import pytest

from remanence.evaluation.demonstration import Answered, Round, distances_up_to, report, rounds
from remanence.texts import Question
from tests.tiny import decoder, tokenizer, with_memory

QUESTIONS = [Question("Where was Alice Brown born?", "Oslo"), Question("Where was Bob Green born?", "Rome")]


@pytest.mark.parametrize(
    ("most", "expected"),
    [(300, [0, 4, 8, 16, 32, 64, 128, 256, 300]), (16, [0, 4, 8, 16]), (5, [0, 4, 5]), (0, [0])],
)
def test_distances_grow_up_to_the_last(most: int, expected: list[int]) -> None:
    assert distances_up_to(most, writes_per_pool=16) == expected


def test_every_question_is_asked_after_exactly_so_many_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_memory(decoder(vocab_size=300, num_hidden_layers=1), tokenizer=tokenizer())
    memory = model.new_memory()
    model.write(memory, "Alice Brown was born in Oslo.")
    asked: list[tuple[int, str]] = []

    def generate(memories: list[Any], prompts: list[str], **_: Any) -> list[str]:
        asked.append((memories[0].write_count - 1, prompts[0]))
        return [" Oslo"]

    monkeypatch.setattr(model, "generate", generate)
    seen: list[tuple[int, int]] = []
    made = rounds(model, memory, QUESTIONS, taken="", distances=[0, 2, 5], progress=lambda *steps: seen.append(steps))
    right = [one.right for one in made]
    prompts = [f"Question: {question.text} Answer:" for question in QUESTIONS]
    assert asked == [(distance, prompt) for distance in (0, 2, 5) for prompt in prompts]
    assert seen == [(done, 5) for done in range(1, 6)]
    assert right == [1, 1, 1]
    assert memory.write_count == 6


def test_report_is_the_pools_curve_and_the_survival_line() -> None:
    model = with_memory()
    right, wrong = Answered(QUESTIONS[0], "Oslo"), Answered(QUESTIONS[1], "Oslo")
    made = report(model, [Round(0, (right, right)), Round(2, (right, wrong))])
    assert [point["exact_match"] for point in made["curves"]["pool"]] == [1.0, 0.5]
    assert [point["line"] for point in made["survival"]] == [1.0, 0.75**2]
