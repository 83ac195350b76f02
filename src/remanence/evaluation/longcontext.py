"""Long context: a document is told, whole, and a question about it asked. Rows of the report: by its length."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from remanence.evaluation.columns import Column
from remanence.evaluation.documents import LENGTHS, Document, parse_lengths, read_documents
from remanence.evaluation.evidence import Asked, Corpus, Part, of_corpora
from remanence.evaluation.harness import Evaluation, digest_of
from remanence.evaluation.registry import Command
from remanence.evaluation.scores import f1
from remanence.model.model import MemoryModel
from remanence.texts import paragraphs_of

ANSWER_TOKENS = 32
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

    A memory is told the document in one write; bm25 and fits give paragraphs of it.
    """
    documents = read_documents(data, model.tokenizer, parse_lengths(lengths), count, seed)
    settings = {"data": data.name, "digest": digest_of(data), "lengths": lengths, "seed": seed}
    corpora = [_corpus(number, document) for number, document in enumerate(documents)]
    return of_corpora(model, "longcontext", settings, corpora, columns, score, tokens=ANSWER_TOKENS, folder=folder)


def _corpus(number: int, document: Document) -> Corpus:
    kind = "longer" if document.length is None else f"{document.length:,} tokens"
    asked = Asked("0", document.question.text, kind, document.question.truths)
    return Corpus(str(number), tuple(map(Part, paragraphs_of(document.text))), (asked,), whole=True)


def score(said: str, asked: Asked) -> float:
    """F1 as the SQuAD evaluation counts it."""
    return f1(said, asked.truths)
