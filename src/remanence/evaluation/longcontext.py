"""Long context: a document is told, whole, and a question about it asked. Rows of the report: by its length."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from remanence.evaluation.columns import Column
from remanence.evaluation.documents import LENGTHS, parse_lengths, read_documents
from remanence.evaluation.evidence import Asked, Corpus, Part, of_corpora, plain_score
from remanence.evaluation.harness import Evaluation, settings_of
from remanence.evaluation.registry import Command
from remanence.model.model import MemoryModel
from remanence.texts import paragraphs_of

ANSWER_TOKENS = 32
_LONGEST = 1000  # characters of a part that is shown as text
_PIECES = re.compile(
    "|".join(f".{{1,{_LONGEST}}}{end}" for end in (r"(?:$|(?<=[.!?])(?=\s))", r"(?=\s)", "")), re.DOTALL
)
COMMAND = Command(
    columns="nothing,bm25_4,fits",
    learned=True,
    examples=(
        "--data hotpotqa.jsonl --lengths 4k,8k,16k --resume runs/hotpotqa",
        "--data qa1_single-supporting-fact_test.txt --lengths 1k,4k,16k --json babi.json",
    ),
)


def evaluation(
    model: MemoryModel,
    columns: Sequence[Column],
    *,
    data: Annotated[
        Path, typer.Option(help="A LongBench or RULER file, or a bAbI file to hide among paragraphs of novels.")
    ],
    lengths: Annotated[str, typer.Option(help="In tokens; LongBench documents are sorted into them.")] = LENGTHS,
    count: Annotated[int, typer.Option(min=1, help="Documents of each length.")] = 50,
    seed: Annotated[int, typer.Option(help="Another seed, other documents.")] = 0,
    folder: Path | None = None,
) -> Evaluation:
    """Long documents with a question each: F1, exact match and hits, by their length.

    A memory is told the document in one write; bm25 and fits give paragraphs of it, long ones cut behind sentences.
    """
    corpora, numbers, longest = [], dict[str, int](), parse_lengths(lengths)[-1]
    for document in read_documents(data, model.tokenizer, parse_lengths(lengths), count, seed):
        kind = f"> {longest:,} tokens" if document.length is None else f"{document.length:,} tokens"
        number = numbers[kind] = numbers.get(kind, -1) + 1
        asked = Asked("0", document.question.text, kind, document.question.truths)
        parts = tuple(Part(part) for paragraph in paragraphs_of(document.text) for part in pieces(paragraph))
        corpora.append(Corpus(f"{kind}/{number}", parts, (asked,), whole=document.text))
    settings = {**settings_of(data), "lengths": lengths, "seed": seed}
    return of_corpora(
        model, "longcontext", settings, corpora, columns, tokens=ANSWER_TOKENS, score=plain_score, folder=folder
    )


def pieces(paragraph: str) -> Iterator[str]:
    """A paragraph, or parts of a long one that end where sentences end."""
    return (part.strip() for part in _PIECES.findall(paragraph) if part.strip())
