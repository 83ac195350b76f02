"""Long context: a document is told, whole, and a question about it asked. Rows of the report: by its length.

Documents are those of LongBench and RULER files, or bAbI's facts hidden among paragraphs of novels.
"""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from remanence.data.prose import paragraphs
from remanence.errors import InvalidInputError
from remanence.evaluation.babi import LENGTHS, Story, parse_lengths, read_stories
from remanence.evaluation.columns import Column
from remanence.evaluation.evidence import Asked, Corpus, Part, of_corpora, plain_score
from remanence.evaluation.harness import Evaluation, settings_of
from remanence.evaluation.registry import Command
from remanence.model.model import MemoryModel
from remanence.texts import Question, json_lines, paragraphs_of, read_text, texts_of, token_ids

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


@dataclass(frozen=True)
class Document:
    """`length`: what it is counted under, in tokens: at most so many, or None for more than every length named."""

    text: str
    question: Question
    length: int | None


def read_documents(path: Path, tokenizer: Any, lengths: Sequence[int], count: int, seed: int = 0) -> list[Document]:
    """`count` documents of each length; of a LongBench file as many of them as there are. Fewer are the first of more.

    Args:
        path: LongBench, one JSON object per line with `context`, `input` and `answers`; or a bAbI file, whose lines
            are numbered. In a file without `context`, the last line of `input` is the question (RULER).
        lengths: in tokens. LongBench documents are sorted into them; bAbI facts are hidden in documents of each.

    Raises:
        FileNotFoundError: no such file.
        InvalidInputError: another format; no questions; facts too long for the lengths.
    """

    def tokens(part: str) -> int:
        return len(token_ids(tokenizer, part))

    if re.match(r"1 \w", text := read_text(path)):
        documents = _hidden(read_stories(path), tokens, lengths, count, seed)
    else:
        asked = list(_longbench(text, path))
        if not asked:
            raise InvalidInputError(f'{path} has no question: "input" or the answers are empty in all records')
        documents = _sorted_in(asked, tokens, lengths, count, seed)
    if not documents:
        raise InvalidInputError(f"{path} has no question that can be asked at the lengths {list(lengths)}")
    return documents


def _longbench(text: str, path: Path) -> Iterator[tuple[str, Question]]:
    """Documents with a question each. RULER's answers are all asked for, but for those of its `qa` tasks."""
    ruler_all = "qa" not in path.stem.split("_")
    number = -1
    try:
        for record in json_lines(text, path):
            number += 1
            yield from _asked(record, ruler_all)
    except (InvalidInputError, KeyError, TypeError) as error:
        what = f"record {number} lacks {error}" if isinstance(error, KeyError) else f"record {number}: {error}"
        raise InvalidInputError(
            f'{path} is neither in the format of LongBench (lines of JSON with "context", "input", "answers") nor a '
            f"bAbI file (numbered lines): {error if number < 0 else what}"
        ) from error


def _asked(record: Any, ruler_all: bool) -> Iterator[tuple[str, Question]]:
    """A question about a document; none where there is no question or no answer."""

    def text_of(name: str) -> str:
        if not isinstance(record[name], str):
            raise TypeError(f"{name!r} is {record[name]!r:.60} and no text")
        return str(record[name])

    if not isinstance(record, dict):
        raise TypeError(f"{record!r:.60} is no JSON object")
    if "context" in record:
        context, question, answers = text_of("context"), text_of("input"), texts_of(record["answers"])
        ruler_all = False
    else:
        context, _, question = text_of("input").rpartition("\n")
        answers = texts_of(record["outputs"])
    if question.strip() and (answers := [answer for answer in answers if answer.strip()]):
        yield context, Question(question, answers[0], tuple(answers[1:]), ruler_all and len(answers) > 1)


def _sorted_in(
    asked: list[tuple[str, Question]], tokens: Callable[[str], int], lengths: Sequence[int], count: int, seed: int
) -> list[Document]:
    found: dict[int | None, list[Document]] = {length: [] for length in [*lengths, None]}
    for context, question in random.Random(seed).sample(asked, len(asked)):
        size = tokens(context)
        length = next((length for length in lengths if size <= length), None)
        found[length].append(Document(context, question, length))
    return [document for documents in found.values() for document in documents[:count]]


def _hidden(
    stories: list[Story], tokens: Callable[[str], int], lengths: Sequence[int], count: int, seed: int
) -> list[Document]:
    """The same questions at every length, their facts in order at random places among paragraphs of novels.

    A story whose facts fill more than half of the shortest length is not asked about.
    """
    mixed = random.Random(seed).sample(stories, len(stories))
    chosen = list(islice((one for one in mixed if tokens("\n".join(one.facts)) <= lengths[0] // 2), count))
    documents = []
    for length in lengths:
        for number, story in enumerate(chosen):
            rng = random.Random(f"{seed}/{length}/{number}")
            around, room = [], length - tokens("\n".join(story.facts))
            for paragraph in _prose(rng):
                room -= tokens(paragraph + "\n")
                if room < 0:
                    break
                around.append(paragraph)
            places = sorted(rng.randint(0, len(around)) for _ in story.facts)
            for place, fact in reversed(list(zip(places, story.facts, strict=True))):
                around.insert(place, fact)
            documents.append(Document("\n".join(around), Question(story.question, story.answer), length))
    return documents


def _prose(rng: random.Random) -> Iterator[str]:
    """Paragraphs of novels in random order, and again when all were given."""
    while True:
        yield from rng.sample(paragraphs(), len(paragraphs()))
