"""Editing scores what it says it scores, asks about every edit made, and a run that was cut goes on."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from remanence import MemoryModel
from remanence.data.edits import Edit, biography_edits
from remanence.errors import InvalidInputError
from remanence.evaluation import editing
from remanence.evaluation.editing import METHODS, harmonic, measure, summary
from tests.support.tiny import decoder, tokenizer, with_memory, with_text

EDIT = Edit("Ann speaks Thai.", "Ann speaks", "Thai", "Dutch", ("Ann talks", "Ann says"), (("Bob speaks", "Dutch"),))


@pytest.fixture(scope="module")
def model() -> MemoryModel:
    return with_memory(decoder(vocab_size=300, num_hidden_layers=1), tokenizer=tokenizer())


def answering(monkeypatch: pytest.MonkeyPatch, answers: dict[str, str], model: MemoryModel) -> list[list[str]]:
    """Let prompts be answered as told; returns the batches in which they are asked."""
    batches: list[list[str]] = []

    def answer(_: MemoryModel, memories: list[Any], rows: list[list[int]]) -> list[str]:
        assert len(memories) == len(rows)
        batches.append([model.tokenizer.decode(row) for row in rows])
        return [answers.get(prompt, "nothing") for prompt in batches[-1]]

    monkeypatch.setattr(editing, "answer_rows", answer)
    return batches


def test_the_score_is_a_harmonic_mean() -> None:
    assert harmonic([1.0, 0.5, 0.25]) == pytest.approx(3 / 7)
    assert harmonic([0.9, 0.0, 0.9]) == 0.0
    found = summary([[1.0, 0.0], [1.0, 1.0], [0.5, 0.5]])
    assert found["efficacy"] == {"rate": 0.5, "stderr": pytest.approx((0.25 / 2) ** 0.5)}
    assert (found["samples"], found["score"]) == (2, pytest.approx(0.6))


@pytest.mark.parametrize(
    ("likely", "efficacy", "generalisation", "specificity"),
    [("Thai", 1.0, 1.0, 0.0), ("Dutch", 0.0, 0.0, 1.0)],
)
def test_counterfact_compares_the_new_answer_with_the_old(
    model: MemoryModel,
    monkeypatch: pytest.MonkeyPatch,
    likely: str,
    efficacy: float,
    generalisation: float,
    specificity: float,
) -> None:
    def likelihoods(_: Any, pairs: list[tuple[str, str]]) -> list[tuple[float, float]]:
        return [(-1.0 if answer == likely else -2.0, 0.0) for _, answer in pairs]

    monkeypatch.setattr(editing._Editor, "_likelihoods", likelihoods)
    (found,) = measure(model, [EDIT], "counterfact", counts=[1], samples=1, methods=["none"])["results"]
    assert [found[name]["rate"] for name in editing.METRICS] == [efficacy, generalisation, specificity]


def test_zsre_counts_tokens_of_the_answer_that_stands_in_the_file(
    model: MemoryModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = {("Ann speaks", "Thai"): 1.0, ("Ann talks", "Thai"): 0.5, ("Bob speaks", "Dutch"): 0.25}

    def likelihoods(_: Any, pairs: list[tuple[str, str]]) -> list[tuple[float, float]]:
        return [(0.0, shares.get(pair, 0.0)) for pair in pairs]

    monkeypatch.setattr(editing._Editor, "_likelihoods", likelihoods)
    (found,) = measure(model, [EDIT], "zsre", counts=[1], samples=1, methods=["none"])["results"]
    assert [found[name]["rate"] for name in editing.METRICS] == [1.0, 0.25, 0.25]


def test_likelihoods_are_those_of_the_answer_alone_whatever_the_batch(model: MemoryModel) -> None:
    memory = model.new_memory()
    model.write(memory, "Alice Brown was born in Oslo.")
    editor = editing._Editor(model, memory, "none", 0.0, 0.0)
    pairs = [("Ann speaks", "Thai"), ("In the end, Bob speaks", "a little Dutch")]
    together = editor._likelihoods(pairs)
    for pair, found in zip(pairs, together, strict=True):
        both = model.tokenizer(" ".join(pair))["input_ids"]
        start = len(model.tokenizer(pair[0])["input_ids"])
        logits, answer = model.read(memory, both).logits[0, start - 1 : -1], torch.tensor(both[start:])
        chosen = logits.log_softmax(-1).gather(1, answer[:, None])
        expected = float(chosen.mean()), float((logits.argmax(-1) == answer).float().mean())
        assert found == pytest.approx(expected, abs=1e-5)
        assert editor._likelihoods([pair])[0] == pytest.approx(expected, abs=1e-5)


def test_the_answer_is_no_part_of_what_a_memory_is_asked() -> None:
    words = tokenizer()
    reading = with_text(decoder(vocab_size=len(words)), words)
    memory = reading.new_memory()
    for text in ("Ann speaks well.", "Thai is Dutch."):
        reading.write(memory, text)
    asked: list[str] = []
    queries = reading.writer.queries

    def noted(prompt: Any, head: Any) -> Any:
        asked.append(words.decode(prompt.query))
        return queries(prompt, head)

    reading.writer.queries = noted
    editing._Editor(reading, memory, "none", 0.0, 0.0)._likelihoods([("Ann speaks", "Thai")])
    assert asked == ["Ann speaks"]


@pytest.mark.parametrize("method", METHODS)
def test_every_edit_of_a_sequence_is_asked_about_after_the_last(
    model: MemoryModel, monkeypatch: pytest.MonkeyPatch, method: editing.Method
) -> None:
    edits = biography_edits(3)
    made: list[Edit] = []
    make = editing._Editor._make
    monkeypatch.setattr(
        editing._Editor, "_make", lambda self, edit, weights: made.append(edit) or make(self, edit, weights)
    )
    right = {edit.prompt: edit.new for edit in edits[:2]} | {edits[2].neighbours[0][0]: edits[2].neighbours[0][1]}
    asked_after: list[int] = []

    def answer(_: MemoryModel, memories: list[Any], rows: list[list[int]]) -> list[str]:
        asked_after.append(len(made))
        prompts = [model.tokenizer.decode(row) for row in rows]
        return [next((right[p] for p in right if prompt.endswith(p)), "nothing") for prompt in prompts]

    monkeypatch.setattr(editing, "answer_rows", answer)
    (found,) = measure(model, edits, "biographies", counts=[3], samples=1, methods=[method])["results"]
    assert made == edits
    assert set(asked_after) == {3}
    assert found["samples"] == 3
    assert [found[name]["rate"] for name in editing.METRICS] == pytest.approx([2 / 3, 0, 1 / 3])


def test_samples_are_split_into_groups_that_start_anew(model: MemoryModel, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[tuple[int, str]] = []
    write = model.write
    monkeypatch.setattr(model, "write", lambda memory, text: written.append((id(memory), text)) or write(memory, text))
    batches = answering(monkeypatch, {}, model)
    edits = biography_edits(4)
    (found,) = measure(model, edits, "biographies", counts=[2], samples=5, methods=["memory"], batch=3)["results"]
    assert found["samples"] == 4
    expected = [text for start in (0, 2) for edit in edits[start : start + 2] for text in edit.known]
    assert [text for _, text in written if text not in {edit.statement for edit in edits}] == expected
    assert [text for _, text in written[:6]][4:] == [edit.statement for edit in edits[:2]]
    assert max(map(len, batches)) == 3


def test_in_context_editing_reads_known_facts_and_statements_as_text(
    model: MemoryModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "write", lambda *_: pytest.fail("wrote"))
    rows: list[list[int]] = []
    monkeypatch.setattr(editing, "answer_rows", lambda _, memories, asked: rows.extend(asked) or [""] * len(asked))
    edit = Edit("Ann has Thai.", "Q:", "Thai", "Dutch", ("Q:",), (("Q:", "Dutch"),), known=("Bob is Finn.",))
    measure(model, [edit], "biographies", counts=[1], samples=1, methods=["context"])
    assert model.tokenizer.decode(rows[0]) == "Bob is Finn.</s>Ann has Thai.</s>Q:"


@pytest.mark.slow
def test_a_cut_run_goes_on_to_the_same_result(model: MemoryModel, tmp_path: Path) -> None:
    edits, sizes = biography_edits(4), {"counts": [1, 2], "samples": 4, "methods": METHODS}
    whole = measure(model, edits, "zsre", **sizes)
    fingerprint = model.fingerprint()
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if done == 4 * 4 + 2:  # within ft_all, with changed weights
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(model, edits, "zsre", **sizes, state=tmp_path, progress=stop)
    assert model.fingerprint() == fingerprint
    assert list(json.loads((tmp_path / "editing.json").read_text())["results"]) == [f"{m}/1" for m in METHODS[:4]]
    seen.clear()
    again = measure(model, edits, "zsre", **sizes, state=tmp_path, progress=lambda done, total: seen.append(done))
    assert seen[:5] == [4, 8, 12, 16, 17] and seen[-1] == 48
    assert again == whole == json.loads(json.dumps(whole))
    assert [path.name for path in tmp_path.iterdir()] == ["editing.json"]


def test_state_of_another_run_is_refused(model: MemoryModel, tmp_path: Path) -> None:
    edits = biography_edits(2)
    measure(model, edits, "zsre", counts=[1], samples=2, methods=["none"], state=tmp_path)
    with pytest.raises(InvalidInputError, match="another seed"):
        measure(model, edits, "zsre", counts=[1], samples=2, methods=["none"], seed=1, state=tmp_path)
    with pytest.raises(InvalidInputError, match="another edits"):
        measure(model, edits[::-1], "zsre", counts=[1], samples=2, methods=["none"], state=tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"methods": ["rome"]}, "methods are among none, memory"),
        ({"methods": []}, "got none"),
        ({"counts": []}, "counts of edits"),
        ({"counts": [0]}, "counts of edits"),
        ({"samples": 0}, "at least one sample"),
        ({"counts": [2]}, "2 edits are needed, but there are 1"),
    ],
)
def test_what_makes_no_sense_is_refused(model: MemoryModel, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        measure(model, [EDIT], "zsre", **{"counts": [1], "samples": 1, **settings})
