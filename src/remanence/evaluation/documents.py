"""Long documents with a question each: LongBench and RULER files, and bAbI facts hidden among paragraphs of novels."""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from remanence.data.prose import paragraphs
from remanence.errors import InvalidInputError
from remanence.texts import Question, json_lines, lines_of, read_text, texts_of, token_ids

LENGTHS = "1k,4k,16k"


@dataclass(frozen=True)
class Document:
    """`length`: what it is counted under, in tokens: at most so many, or None for more than every length named."""

    text: str
    question: Question
    length: int | None


@dataclass(frozen=True)
class Story:
    """bAbI's facts and a question about them; `right`: numbers of the facts that give the answer."""

    facts: tuple[str, ...]
    question: str
    answer: str
    right: tuple[int, ...]


def parse_lengths(text: str) -> list[int]:
    """`1k,4k,16k`, ascending, each once; 1k is 1,000 tokens.

    Raises:
        InvalidInputError: anything else.
    """
    items = [item.strip() for item in text.split(",")]
    if not all(re.fullmatch(r"[1-9]\d*k?", item) for item in items):
        raise InvalidInputError(f"lengths are numbers of tokens such as {LENGTHS}, not {text!r}")
    return sorted({int(item.removesuffix("k")) * (1000 if item.endswith("k") else 1) for item in items})


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
    if re.match(r"1 \w", text := read_text(path)):
        documents = _hidden(read_stories(path), tokenizer, lengths, count, seed)
    else:
        asked = list(_longbench(text, path))
        if not asked:
            raise InvalidInputError(f'{path} has no question: "input" or the answers are empty in all records')
        documents = _sorted_in(asked, tokenizer, lengths, count, seed)
    if not documents:
        raise InvalidInputError(f"{path} has no question that can be asked at the lengths {list(lengths)}")
    return documents


def read_stories(path: Path) -> list[Story]:
    """Each question of a bAbI file, with the facts that stand before it.

    Raises:
        FileNotFoundError: no such file.
        InvalidInputError: another format.
    """
    found = []
    facts: dict[str, str] = {}
    try:
        for line in lines_of(read_text(path)):
            number, _, rest = line.strip().partition(" ")
            if number == "1":
                facts = {}
            if "\t" not in rest:
                facts[str(int(number))] = rest
                continue
            question, answer, holding = rest.split("\t")
            order = list(facts)
            right = tuple(order.index(one) for one in holding.split())
            found.append(Story(tuple(facts.values()), question.strip(), answer.strip(), right))
    except ValueError as error:
        raise InvalidInputError(f"{path} is no bAbI file (numbered lines, questions with tabs): {error}") from error
    if not found:
        raise InvalidInputError(f"{path} has no question")
    return found


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
    asked: list[tuple[str, Question]],
    tokenizer: Any,
    lengths: Sequence[int],
    count: int,
    seed: int,
) -> list[Document]:
    found: dict[int | None, list[Document]] = {length: [] for length in [*lengths, None]}
    for context, question in random.Random(seed).sample(asked, len(asked)):
        size = len(token_ids(tokenizer, context))
        length = next((length for length in lengths if size <= length), None)
        found[length].append(Document(context, question, length))
    return [document for documents in found.values() for document in documents[:count]]


def _hidden(
    stories: list[Story],
    tokenizer: Any,
    lengths: Sequence[int],
    count: int,
    seed: int,
) -> list[Document]:
    """The same questions at every length, their facts in order at random places among paragraphs of novels.

    A story whose facts fill more than half of the shortest length is not asked about.
    """

    def tokens(part: str) -> int:
        return len(token_ids(tokenizer, part))

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
