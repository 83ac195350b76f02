"""Questions whose answer takes several paragraphs: HotpotQA (Yang et al., 2018) and MuSiQue (Trivedi et al., 2022).

The paragraphs of all questions of a file are told into one memory, each with its title in front: those that hold one
question's answer stand among those of all others.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from remanence.errors import InvalidInputError
from remanence.evaluation.columns import Column
from remanence.evaluation.evidence import Asked, Corpus, Part, of_corpora, plain_score
from remanence.evaluation.harness import Evaluation, settings_of
from remanence.evaluation.registry import Command
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
            truths = (record["answer"], *record.get("answer_aliases", ()))
            answerable = bool(record.get("answerable", True))
            evidence = list(dict.fromkeys(evidence))
            asked.append(Asked(str(number), record["question"], kind, truths, tuple(evidence), answerable=answerable))
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


COMMAND = Command(
    columns="nothing,oracle,bm25_1,bm25_4",
    also=("fits",),
    examples=(
        "--data hotpot_dev_distractor_v1.json --count 100",
        "--data musique.json --columns bm25_4,slots --resume runs/musique --json musique.json",
    ),
)


def evaluation(
    model: MemoryModel,
    columns: Sequence[Column],
    *,
    data: Annotated[Path, typer.Option(help="A file of HotpotQA or MuSiQue, a JSON list.")],
    count: Annotated[int | None, typer.Option(min=1, help="Questions, the first ones. Default: every one.")] = None,
    folder: Path | None = None,
) -> Evaluation:
    """Questions whose answer takes several paragraphs, which stand among those of all other questions of the file.

    recall 5 is the share of these paragraphs among the five best.
    """
    corpora, settings, score = [read_corpus(data)], settings_of(data), plain_score
    return of_corpora(
        model, "multihop", settings, corpora, columns, tokens=ANSWER_TOKENS, score=score, count=count, folder=folder
    )
