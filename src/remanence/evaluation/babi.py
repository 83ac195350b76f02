"""bAbI's facts among paragraphs of novels, in memories from some thousand tokens on: the recipe of BABILong.

Paragraphs are told once for each length. Into a fork of that memory the facts of a story are told, each a write; then
its question is asked. The same stories are asked at each length.
"""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from remanence.data.prose import paragraphs
from remanence.errors import InvalidInputError
from remanence.evaluation.asking import ANSWER_TOKENS, ANSWERED, Asking, record_of
from remanence.evaluation.columns import Column
from remanence.evaluation.documents import Story, parse_lengths, read_stories
from remanence.evaluation.harness import Evaluation, Item, Record, digest_of
from remanence.evaluation.registry import Command
from remanence.evaluation.told import Growing, Told
from remanence.model.model import MemoryModel
from remanence.texts import paragraphs_of, read_text, token_ids

_SHORTEST = 20  # words of a novel's paragraph that is told


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
    background = _Background(model, novels, parse_lengths(lengths), seed, folder)
    asking = Asking(model)
    items = [
        Item(f"{length}/{number}", (f"{length:,} tokens",), content=(length, story))
        for length in background.lengths
        for number, story in enumerate(stories)
    ]

    def measure(column: Column, those: Sequence[Item]) -> list[Record]:
        return [_measured(asking, column, background.told(item.content[0]), item.content[1]) for item in those]

    return Evaluation(
        "babi",
        {
            "data": data.name,
            "digest": digest_of(data),
            "novels": digest_of(*background.paragraphs),
            "answer_tokens": ANSWER_TOKENS,
            "seed": seed,
        },
        items,
        columns,
        measure,
        ANSWERED,
        base="oracle",
    )


def _measured(asking: Asking, column: Column, before: Told, story: Story) -> Record:
    first = len(before.passages)
    told = before.then(story.facts)
    facts = range(first, first + len(story.facts))
    said = asking(column, told, story.question, facts)
    return record_of(said, column, told, [story.answer], [first + place for place in story.right])


class _Background:
    """Paragraphs of novels, told once for each length.

    Attributes:
        paragraphs: all of them in the order in which they are told.
        lengths: in tokens, ascending, each once.
    """

    def __init__(
        self, model: MemoryModel, novels: Path | None, lengths: Sequence[int], seed: int, folder: Path | None = None
    ) -> None:
        self.paragraphs = list(read_novels(novels))
        random.Random(seed).shuffle(self.paragraphs)
        self.lengths = sorted(set(lengths))
        self._counts = dict(zip(self.lengths, self._cut(model), strict=False))
        if len(self._counts) < len(self.lengths):
            longest = self.lengths[len(self._counts)]
            raise InvalidInputError(f"the paragraphs have fewer than {longest:,} tokens; name more novels, or fewer")
        self._growing = Growing(model, self.paragraphs, folder)

    def _cut(self, model: MemoryModel) -> Iterator[int]:
        """How many paragraphs have as many tokens as each length."""
        left, tokens = list(self.lengths), 0
        for number, paragraph in enumerate(self.paragraphs):
            tokens += len(token_ids(model.tokenizer, paragraph))
            while left and tokens > left[0]:
                left.pop(0)
                yield number
            if not left:
                return

    def told(self, length: int) -> Told:
        return self._growing.up_to(self._counts[length])
