"""Questions whose answer takes several paragraphs: HotpotQA (Yang et al., 2018) and MuSiQue (Trivedi et al., 2022).

The paragraphs of all questions of a file are told into one memory, each with its title in front: those that hold one
question's answer stand among those of all others.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from remanence.errors import InvalidInputError
from remanence.evaluation.columns import Column
from remanence.evaluation.evidence import Asked, Corpus, Part, evaluation
from remanence.evaluation.harness import Evaluation
from remanence.evaluation.scores import f1
from remanence.model.model import MemoryModel
from remanence.texts import read_text

ANSWER_TOKENS = 16


def read_corpus(path: Path) -> Corpus:
    """The questions of a file and all their paragraphs, each once.

    Raises:
        FileNotFoundError: no such file.
        InvalidInputError: another format.
    """
    numbers: dict[str, int] = {}
    asked = []
    try:
        for number, record in enumerate(json.loads(read_text(path))):
            evidence = []
            for text, holds in _paragraphs(record):
                place = numbers.setdefault(text, len(numbers))
                if holds:
                    evidence.append(place)
            kind = record.get("type") or f"{record['id'].partition('hop')[0]} hops"
            also = tuple(record.get("answer_aliases", ()))
            answerable = bool(record.get("answerable", True))
            asked.append(
                Asked(
                    str(number),
                    record["question"],
                    kind,
                    record["answer"],
                    tuple(dict.fromkeys(evidence)),
                    answerable=answerable,
                    also=also,
                )
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(f"{path} is in the format neither of HotpotQA nor of MuSiQue: {error}") from error
    if not asked:
        raise InvalidInputError(f"{path} has no question")
    return Corpus(path.stem, tuple(Part(text) for text in numbers), tuple(asked))


def _paragraphs(record: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """Each paragraph, and whether it holds a part of the answer."""
    if "paragraphs" in record:
        for paragraph in record["paragraphs"]:
            yield f"{paragraph['title']}: {paragraph['paragraph_text']}", paragraph["is_supporting"]
        return
    holding = {title for title, _ in record["supporting_facts"]}
    for title, sentences in record["context"]:
        yield f"{title}: {''.join(sentences).strip()}", title in holding


def of_path(
    model: MemoryModel,
    path: Path,
    columns: Sequence[Column],
    *,
    count: int | None = None,
    folder: Path | None = None,
) -> Evaluation:
    """What is measured of a file; `count`: of its first questions, with the paragraphs of all.

    Raises:
        FileNotFoundError, InvalidInputError: as `read_corpus`.
    """
    corpus = read_corpus(path)
    settings = {"data": path.name, "digest": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}
    return evaluation(
        model, "multihop", settings, [corpus], columns, score, tokens=ANSWER_TOKENS, count=count, folder=folder
    )


def score(said: str, asked: Asked) -> float:
    """F1 as the SQuAD evaluation counts it."""
    return f1(said, [asked.truth, *asked.also])
