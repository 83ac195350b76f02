"""bAbI's facts among paragraphs of novels, in memories from some thousand tokens on: the recipe of BABILong.

Paragraphs are told once for each length. Into a fork of that memory the facts of a story are told, each a write; then
its question is asked. The same stories are asked at each length.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from remanence.data.prose import paragraphs
from remanence.errors import InvalidInputError
from remanence.evaluation.columns import Column
from remanence.evaluation.evidence import Asked, Corpus, Part, of_corpora
from remanence.evaluation.harness import Evaluation, digest_of, settings_of
from remanence.evaluation.registry import Command
from remanence.model.model import MemoryModel
from remanence.texts import lines_of, paragraphs_of, read_text, token_ids

LENGTHS = "1k,4k,16k"
_SHORTEST = 20  # words of a novel's paragraph that is told


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


def read_novels(path: Path | None) -> list[str]:
    """Paragraphs of a text file, or of all .txt files of a folder; None: of the bundled novels.

    Raises:
        FileNotFoundError: there is none.
    """
    if path is None:
        return paragraphs()
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise FileNotFoundError(f"there is no .txt file in {path}")
    return [one for file in files for one in paragraphs_of(read_text(file)) if len(one.split()) >= _SHORTEST]


COMMAND = Command(
    columns="nothing,oracle,bm25_1,bm25_4",
    examples=(
        "--data qa1_single-supporting-fact_test.txt --lengths 4k,16k",
        "--data qa1_test.txt --novels novels --lengths 4k,128k --resume runs/babi --json babi.json",
    ),
)


def evaluation(
    model: MemoryModel,
    columns: Sequence[Column],
    *,
    data: Annotated[Path, typer.Option(help="A bAbI file.")],
    novels: Annotated[
        Path | None, typer.Option(help="A text, or a folder of .txt files, to tell the facts among. Default: bundled.")
    ] = None,
    lengths: Annotated[str, typer.Option(help="Of what is told before the facts, in tokens.")] = "4k,16k",
    count: Annotated[int, typer.Option(min=1, help="Stories, the same at each length.")] = 100,
    seed: Annotated[int, typer.Option(help="Another seed, other stories and paragraphs.")] = 0,
    folder: Path | None = None,
) -> Evaluation:
    """bAbI's facts behind paragraphs of novels: the same questions in memories of some thousand tokens and of many.

    The column fits is left out: facts are told last, so that the newest text always has them.
    """
    stories = random.Random(seed).sample(all_of := read_stories(data), len(all_of))[:count]
    told = list(read_novels(novels))
    random.Random(seed).shuffle(told)
    corpora = [
        behind(length, paragraphs, number, story)
        for length, paragraphs in cut(told, parse_lengths(lengths), model.tokenizer).items()
        for number, story in enumerate(stories)
    ]
    settings = {**settings_of(data), "novels": digest_of(*told), "seed": seed}
    return of_corpora(model, "babi", settings, corpora, columns, common=told, folder=folder)


def behind(length: int, paragraphs: int, number: int, story: Story) -> Corpus:
    """The facts of a story behind so many paragraphs. An oracle would show them all."""
    right = tuple(paragraphs + place for place in story.right)
    shown = tuple(range(paragraphs, paragraphs + len(story.facts)))
    asked = Asked(str(number), story.question, "", (story.answer,), right, oracle=shown)
    return Corpus(str(length), tuple(map(Part, story.facts)), (asked,), after=paragraphs, title=f"{length:,} tokens")


def cut(told: Sequence[str], lengths: Sequence[int], tokenizer: Any) -> dict[int, int]:
    """By length in tokens, how many paragraphs have at most so many.

    Raises:
        InvalidInputError: there are too few.
    """
    found: dict[int, int] = {}
    tokens = 0
    for number, paragraph in enumerate(told):
        tokens += len(token_ids(tokenizer, paragraph))
        found |= {length: number for length in lengths if length < tokens and length not in found}
        if len(found) == len(lengths):
            return found
    longest = lengths[len(found)]
    raise InvalidInputError(f"the paragraphs have fewer than {longest:,} tokens; name more novels, or fewer")
