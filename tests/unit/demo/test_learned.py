"""A demonstration asks the same questions of one memory while it goes on being written."""

from typing import Any

import pytest
import torch

from remanence.config import LongTermConfig
from remanence.demo.learned import Answered, Round, distances_up_to, report, rounds
from remanence.texts import Question
from tests.support.tiny import decoder, tokenizer, with_memory

QUESTIONS = [Question("Where was Alice Brown born?", "Oslo"), Question("Where was Bob Green born?", "Rome")]


@pytest.mark.parametrize(
    ("most", "expected"),
    [(300, [0, 4, 8, 16, 32, 64, 128, 256, 300]), (16, [0, 4, 8, 16]), (5, [0, 4, 5]), (0, [0])],
)
def test_distances_grow_up_to_the_last(most: int, expected: list[int]) -> None:
    assert distances_up_to(most, writes_per_pool=16) == expected


class Clerk:
    """Stands in for `generate`: notes which memory is asked what, and answers as told."""

    def __init__(self, answer: str = " Oslo") -> None:
        self.answer = answer
        self.asked: list[tuple[int, bool, Any]] = []

    def __call__(self, memories: list[Any], prompts: list[Any], **_: Any) -> Any:
        for memory, prompt in zip(memories, prompts, strict=True):
            self.asked.append((memory.write_count, memory.longterm is not None, prompt))
        if isinstance(prompts[0], str):
            return [self.answer] * len(prompts)
        width = max(map(len, prompts)) + 1
        return torch.zeros(len(prompts), width, dtype=torch.long)


@pytest.mark.parametrize("longterm", [None, LongTermConfig(retrieved=4, key_size=8)])
def test_every_question_is_asked_after_exactly_so_many_writes(
    monkeypatch: pytest.MonkeyPatch, longterm: LongTermConfig | None
) -> None:
    hf = decoder(vocab_size=300, num_hidden_layers=1)
    model = with_memory(hf, tokenizer=tokenizer(), longterm=longterm)
    memory = model.new_memory()
    model.write(memory, "Alice Brown was born in Oslo.")
    clerk = Clerk()
    monkeypatch.setattr(model, "generate", clerk)
    seen: list[tuple[int, int]] = []
    texts = ["Alice Brown was born in Oslo."]
    made = rounds(model, memory, QUESTIONS, texts=texts, distances=[0, 2, 5], progress=lambda *s: seen.append(s))
    right = [one.right for one in made]
    prompts = [f"Question: {question.text} Answer:" for question in QUESTIONS]
    whole = [(count - 1, prompt) for count, kept, prompt in clerk.asked if kept == (longterm is not None) and count]
    assert whole == [(distance, prompt) for distance in (0, 2, 5) for prompt in prompts]
    blank = [prompt for count, _, prompt in clerk.asked if not count]
    assert [prompt for prompt in blank if isinstance(prompt, str)] == prompts * 3
    contexts = [model.tokenizer.decode(prompt) for prompt in blank if not isinstance(prompt, str)]
    assert all(text.startswith(texts[0]) for text in contexts[:2])  # later ones are cut to what the context holds
    assert all(text.endswith("Answer:") for text in contexts)
    assert len(contexts[-1]) > len(contexts[0])
    assert seen == [(done, 5) for done in range(1, 6)]
    assert right == [1, 1, 1]
    assert memory.write_count == 6


def test_report_has_a_row_for_each_distance_and_column() -> None:
    model = with_memory()
    right, wrong = Answered(QUESTIONS[0], "Oslo"), Answered(QUESTIONS[1], "Oslo")
    first = Round(0, {"longterm": (right, right), "pool": (right, right)})
    second = Round(2, {"longterm": (right, right), "pool": (right, wrong)})
    made = report(model, [first, second])
    found = {(row["group"], row["column"]): row["metrics"]["right"]["value"] for row in made.rows}
    assert found == {
        ("0 writes later", "longterm"): 1.0,
        ("0 writes later", "pool"): 1.0,
        ("2 writes later", "longterm"): 1.0,
        ("2 writes later", "pool"): 0.5,
    }
    assert (made.settings["slots"], made.settings["slots_per_write"]) == (24, 6) and second.right == 2
