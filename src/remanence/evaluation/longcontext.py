"""Long context: a document is written into a memory, chunk by chunk, and a question about it asked.

| condition | what the model has when it is asked |
|---|---|
| pool | the pool of the memory |
| longterm | the pool, and what is retrieved from long-term memory, where the model has a retriever |
| none | nothing |
| context | the end of the document, as much as the context holds |
| bm25 | the paragraphs of the document that BM25 ranks highest for the question, in the context |

Answers are scored by F1 and exact match (see `scores`), by the length of the document.
"""

import hashlib
from collections.abc import Callable, Sequence
from math import sqrt
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, get_args

from remanence.errors import InvalidInputError
from remanence.evaluation.answering import Context, continuations, row_continuations
from remanence.evaluation.bm25 import BestPassages, require_bm25
from remanence.evaluation.documents import Document, Task
from remanence.evaluation.resuming import identity, keep, kept
from remanence.evaluation.retention import Condition
from remanence.evaluation.scores import exact_match, f1
from remanence.memory import Memory, Storage
from remanence.model.model import MemoryModel
from remanence.texts import paragraphs_of

CONDITIONS: tuple[Condition, ...] = tuple(condition for condition in get_args(Condition) if condition != "fact")


def measure(
    model: MemoryModel,
    task: Task,
    *,
    conditions: Sequence[Condition] | None = None,
    storage: Storage | None = None,
    seed: int = 0,
    batch: int = 8,
    state: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """F1 and exact match under each condition at each length, answered greedily.

    Args:
        conditions: None: all that the model can be put under.
        storage: where long-term slots lie; None: in host memory, as they are.
        seed: of the memories.
        batch: documents that are written and asked about at once.
        state: folder in which finished batches are kept; a run that was cut goes on from there.
        progress: called with (documents done, documents in all).

    Returns:
        what `identity` gives, `seed`, `documents` (a digest); `points`: per condition a list of `length` (None: longer
        than all lengths named), `f1`, `exact_match`, their `f1_stderr` and `exact_match_stderr`, and `samples`.

    Raises:
        InvalidInputError: conditions or sizes that make no sense; a state folder of another run.
    """
    conditions = _require(model, conditions, batch)
    documents, total = task.documents, len(task.documents)
    run = {
        **identity(model),
        "seed": seed,
        "documents": _digest(documents),
        "conditions": conditions,
        "int8": storage is not None and storage.int8,
    }
    record = None if state is None else kept(state / "answers.json", run)
    answers: list[dict[str, str]] = [] if record is None else record["answers"]
    while len(answers) < total:
        start = len(answers)
        part = documents[start : start + batch]
        memories = [
            model.new_memory(seed + start + index, longterm="longterm" in conditions, storage=storage)
            for index in range(len(part))
        ]
        given = _answered(model, task, part, memories, conditions)
        answers = answers + [dict(zip(conditions, row, strict=True)) for row in zip(*given, strict=True)]
        if state is not None:
            keep(state / "answers.json", run, answers=answers)
        if progress is not None:
            progress(len(answers), total)
    lengths = dict.fromkeys(document.length for document in documents)
    pairs = list(zip(documents, answers, strict=True))
    points = {
        condition: [
            _point(length, [(d, said[condition]) for d, said in pairs if d.length == length]) for length in lengths
        ]
        for condition in conditions
    }
    return {**run, "points": points}


def _require(model: MemoryModel, conditions: Sequence[Condition] | None, batch: int) -> list[Condition]:
    if batch < 1:
        raise InvalidInputError(f"at least one document is asked about at once, not {batch}")
    if conditions is None:
        return _require(model, [c for c in CONDITIONS if c != "longterm" or model.retriever is not None], batch)
    if not conditions or set(conditions) - set(CONDITIONS):
        raise InvalidInputError(f"conditions are among {', '.join(CONDITIONS)}; got {', '.join(conditions) or 'none'}")
    if "longterm" in conditions and model.retriever is None:
        raise InvalidInputError("this model has no retriever, so there is no long-term memory to measure")
    if "bm25" in conditions:
        require_bm25()
    return [condition for condition in CONDITIONS if condition in conditions]


def _digest(documents: Sequence[Document]) -> str:
    return hashlib.sha256("\0".join(d.text + d.question.text for d in documents).encode()).hexdigest()[:16]


def _answered(
    model: MemoryModel,
    task: Task,
    documents: Sequence[Document],
    memories: Sequence[Memory],
    conditions: Sequence[Condition],
) -> list[list[str]]:  # [conditions][documents]
    tokens = task.answer_tokens
    prompts = [document.question.text for document in documents]
    blank = [Memory(model.spec) for _ in documents]
    if {"pool", "longterm"} & set(conditions):
        model.write(memories, [document.text for document in documents])

    def said(condition: Condition) -> list[str]:
        if condition == "longterm":
            return continuations(model, memories, prompts, tokens)
        if condition == "pool":
            return continuations(model, [memory.pool_only() for memory in memories], prompts, tokens)
        if condition == "none":
            return continuations(model, blank, prompts, tokens)
        return row_continuations(model, blank, [_shown(model, condition, d, tokens) for d in documents], tokens)

    return [[task.cut(text) for text in said(condition)] for condition in conditions]


def _shown(model: MemoryModel, condition: Condition, document: Document, tokens: int) -> list[int]:
    context: Context
    if condition == "context":
        context = Context(model, tokens)
        context.append(document.text)
    else:
        context = BestPassages(model, tokens)
        for paragraph in paragraphs_of(document.text):
            context.append(paragraph)
    return context.before(document.question.text)


def _point(length: int | None, answered: Sequence[tuple[Document, str]]) -> dict[str, Any]:
    point: dict[str, Any] = {"length": length}
    for score in (f1, exact_match):
        values = [score(answer, document.question.truths) for document, answer in answered]
        point |= {score.__name__: fmean(values), f"{score.__name__}_stderr": pstdev(values) / sqrt(len(values))}
    return point | {"samples": len(answered)}
