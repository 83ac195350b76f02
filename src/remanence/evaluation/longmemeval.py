"""LongMemEval (Wu et al., ICLR 2025): each question has a history of its own, of chats with an assistant.

Its published score is the judgement of a large model; records hold what was said, as `said`, by `question_id`, for
whoever has one. Counted here are evidence, hits, and F1 as the SQuAD evaluation counts it.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from remanence.errors import InvalidInputError
from remanence.evaluation.columns import Column
from remanence.evaluation.evidence import Asked, Corpus, Part, of_corpora, plain_score, told_as
from remanence.evaluation.harness import Evaluation, settings_of
from remanence.evaluation.registry import Command
from remanence.model.model import MemoryModel
from remanence.texts import read_text

ANSWER_TOKENS = 32


def read_histories(path: Path) -> list[Corpus]:
    """The questions of a published file (`longmemeval_s.json`, `…_m.json`, `…_oracle.json`), each with its history.

    Sessions are put in the order of time. A question whose id ends in `_abs` was never told.

    Raises:
        FileNotFoundError: no such file.
        InvalidInputError: another format.
    """
    try:
        return [_history(record) for record in json.loads(read_text(path))]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        fields = '"question_id", "question", "haystack_sessions", "haystack_dates", …'
        raise InvalidInputError(
            f"{path} is not in the format of LongMemEval (a list with {fields}): {error}"
        ) from error


def _history(record: dict[str, Any]) -> Corpus:
    names, dates, contents = (record[f"haystack_{part}"] for part in ("session_ids", "dates", "sessions"))
    turns: list[Part] = []
    evidence: list[int] = []
    for date, session, content in sorted(zip(dates, names, contents, strict=True), key=lambda one: str(one[0])):
        for turn in content:
            if turn["content"].strip():
                if turn.get("has_answer"):
                    evidence.append(len(turns))
                turns.append(Part(told_as(date, turn["role"], turn["content"]), session))
    asked = Asked(
        "0",
        f"Current date: {record['question_date']}. {record['question']}",
        record["question_type"],
        (str(record["answer"]),),
        tuple(evidence),
        tuple(record["answer_session_ids"]),
        answerable=not record["question_id"].endswith("_abs"),
    )
    return Corpus(record["question_id"], tuple(turns), (asked,))


COMMAND = Command(
    columns="nothing,oracle,bm25_1,bm25_4",
    also=("fits",),
    examples=(
        "--data longmemeval_oracle.json --count 20",
        "--data longmemeval_s.json --columns slots --resume runs/longmemeval",
    ),
)


def evaluation(
    model: MemoryModel,
    columns: Sequence[Column],
    *,
    data: Annotated[Path, typer.Option(help="A file of LongMemEval.")],
    count: Annotated[int | None, typer.Option(min=1, help="Questions, the first ones. Default: every one.")] = None,
    folder: Path | None = None,
) -> Evaluation:
    """Questions about chats with an assistant, each with a history of its own: evidence found, hits and F1.

    The published score is a large model's judgement. With --resume, what was said is kept for one, by question.
    """
    histories, settings, score = read_histories(data), settings_of(data), plain_score
    return of_corpora(
        model, "longmemeval", settings, histories, columns, tokens=ANSWER_TOKENS, score=score, count=count
    )
