"""Long context is scored under every condition by length, and a run that was cut goes on as if it had not been."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from remanence import MemoryModel
from remanence.config import LongTermConfig
from remanence.errors import InvalidInputError
from remanence.evaluation.documents import Document, Task
from remanence.evaluation.longcontext import measure
from remanence.texts import Question, answer_of, prompt_of
from tests.support.tiny import decoder, tokenizer, with_memory

TASK = Task(
    [
        Document("The key is red.", Question(prompt_of("What is the key?"), "red"), 10),
        Document("The box is blue.", Question(prompt_of("What is the box?"), "dark blue", ("navy",)), 10),
        Document(
            "The hat is green.\n" + "So it goes on and on.\n" * 30, Question(prompt_of("The hat?"), "green"), None
        ),
    ],
    answer_tokens=5,
    cut=answer_of,
)


def model_of(**settings: Any) -> MemoryModel:
    hf = decoder(vocab_size=300, num_hidden_layers=1, max_position_embeddings=200)
    return with_memory(hf, tokenizer=tokenizer(), **settings)


class Reader:
    """Stands in for a model: answers with the colour that stands in its memory or its prompt."""

    def __init__(self, model: MemoryModel, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model, self.limits = model, set[int]()
        self.texts: dict[int, str] = {}
        self.kept: list[Any] = []  # so that no two memories are given the same id
        monkeypatch.setattr(model, "write", self._write)
        monkeypatch.setattr(model, "generate", self._generate)

    def _write(self, memories: list[Any], texts: list[str]) -> None:
        self.kept += memories
        self.texts |= {id(memory): text for memory, text in zip(memories, texts, strict=True)}

    def _generate(self, memories: list[Any], prompts: list[Any], *, max_new_tokens: int, **_: Any) -> Any:
        self.limits.add(max_new_tokens)
        tokens = self.model.tokenizer
        texts = [prompt if isinstance(prompt, str) else tokens.decode(prompt) for prompt in prompts]
        known = [self.texts.get(id(memory), "") + text for memory, text in zip(memories, texts, strict=True)]
        said = [" " + next((c for c in ("red", "blue", "green") if c in k), "no idea") + ". And" for k in known]
        if isinstance(prompts[0], str):
            return said
        rows = [[0] * max(map(len, prompts)) + tokens(text)["input_ids"] for text in said]
        longest = max(map(len, rows))
        return torch.tensor([row + [tokens.pad_token_id] * (longest - len(row)) for row in rows])


def test_each_condition_is_scored_at_each_length(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("bm25s")
    reader = Reader(model := model_of(), monkeypatch)
    seen: list[tuple[int, int]] = []
    report = measure(model, TASK, batch=2, progress=lambda done, total: seen.append((done, total)))
    scores = {c: [(p["f1"], p["exact_match"]) for p in points] for c, points in report["points"].items()}
    short = (pytest.approx((1 + 2 / 3) / 2), 0.5)
    assert scores == {
        "pool": [short, (1, 1)],
        "none": [(0, 0), (0, 0)],
        "context": [short, (0, 0)],
        "bm25": [short, (1, 1)],
    }
    assert [(p["length"], p["samples"]) for p in report["points"]["pool"]] == [(10, 2), (None, 1)]
    assert report["points"]["pool"][0]["exact_match_stderr"] == pytest.approx((0.25 / 2) ** 0.5)
    assert seen == [(2, 3), (3, 3)]
    assert reader.limits == {5}
    assert json.loads(json.dumps(report)) == report


def test_each_document_has_a_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[int] = []
    model = model_of()
    write = model.write

    def note(memories: list[Any], texts: list[str]) -> Any:
        written.extend(memory.write_count for memory in memories)
        return write(memories, texts)

    monkeypatch.setattr(model, "write", note)
    measure(model, TASK, conditions=("pool",), batch=2)
    assert written == [0, 0, 0]


@pytest.mark.parametrize("batch", [1, 2])
def test_a_memory_does_not_depend_on_the_batch(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, seeds = model_of(), list[int]()
    new = model.new_memory

    def note(seed: int, **settings: Any) -> Any:
        seeds.append(seed)
        return new(seed, **settings)

    monkeypatch.setattr(model, "new_memory", note)
    measure(model, TASK, conditions=("pool",), batch=batch, seed=4)
    assert seeds == [4, 5, 6]


def test_a_cut_run_goes_on_where_its_last_batch_ended(tmp_path: Path) -> None:
    model = model_of(longterm=LongTermConfig(retrieved=8), retrieval_size=8)
    settings: Any = {"conditions": ("pool", "longterm", "none"), "batch": 1}
    whole = measure(model, TASK, **settings)
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(model, TASK, **settings, state=tmp_path, progress=stop)
    seen.clear()
    again = measure(model, TASK, **settings, state=tmp_path, progress=lambda done, total: seen.append(done))
    assert seen == [3]
    assert again == whole
    with pytest.raises(InvalidInputError, match="another seed"):
        measure(model, TASK, **settings, seed=1, state=tmp_path)
    other = Task(TASK.documents[:2], answer_tokens=5, cut=answer_of)
    with pytest.raises(InvalidInputError, match="another documents"):
        measure(model, other, **settings, state=tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"conditions": ()}, "are among"),
        ({"conditions": ("fact",)}, "are among"),
        ({"conditions": ("longterm",)}, "no retriever"),
        ({"batch": 0, "conditions": ("none",)}, "at least one"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        measure(model_of(), TASK, **wrong)
