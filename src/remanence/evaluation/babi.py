"""bAbI's facts among paragraphs of novels, in memories from some thousand tokens on: the recipe of BABILong.

Paragraphs are told once for each length. Into a fork of that memory the facts of a story are told, each a write; then
its question is asked. The same stories are asked at each length.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from remanence.data.prose import paragraphs
from remanence.errors import InvalidInputError
from remanence.evaluation.columns import ANSWER_TOKENS, ANSWERED, Asking, Column, record_of
from remanence.evaluation.harness import Evaluation, Item, Measure, Record
from remanence.evaluation.told import Told
from remanence.model.model import MemoryModel
from remanence.texts import lines_of, paragraphs_of, read_text

_SHORTEST = 20  # words of a novel's paragraph that is told


@dataclass(frozen=True)
class Story:
    """`right`: numbers of the facts that give the answer."""

    facts: tuple[str, ...]
    question: str
    answer: str
    right: tuple[int, ...]


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


def evaluation(
    model: MemoryModel,
    path: Path,
    columns: Sequence[Column],
    *,
    lengths: Sequence[int],
    novels: Path | None = None,
    count: int = 100,
    seed: int = 0,
    folder: Path | None = None,
) -> Evaluation:
    """What is measured of a bAbI file.

    Args:
        columns: all but `fits`, for which the facts are the newest text whatever was told before.
        lengths: tokens of the paragraphs, ascending.
        novels: a file or folder to take them from.
        count: stories, at most; the first of a larger count are those of a smaller one.
        folder: in which what is told once is kept, so that the next run need not write it again.

    Raises:
        FileNotFoundError, InvalidInputError: as `read_stories` and `read_novels`; too few paragraphs for a length.
    """
    if any(column.shows == "fits" for column in columns):
        raise InvalidInputError("facts are told last, so the newest text always has them; leave the column fits out")
    stories = random.Random(seed).sample(all_of := read_stories(path), len(all_of))[:count]
    background = _Background(model, novels, lengths, seed, folder)
    asking = Asking(model)
    items = [
        Item(f"{length}/{number}", (f"{length:,} tokens",), content=(length, story))
        for length in background.lengths
        for number, story in enumerate(stories)
    ]

    def measured(column: Column) -> Measure:
        def measure(those: Sequence[Item]) -> list[Record]:
            return [_measured(asking, column, background.told(item.content[0]), item.content[1]) for item in those]

        return measure

    return Evaluation(
        "babi",
        {
            "data": path.name,
            "digest": hashlib.sha256(path.read_bytes()).hexdigest()[:16],
            "novels": hashlib.sha256("\n".join(background.paragraphs).encode()).hexdigest()[:16],
            "answer_tokens": ANSWER_TOKENS,
            "seed": seed,
        },
        items,
        {column.name: measured(column) for column in columns},
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
    """Paragraphs of novels, told once for each length; longer memories are forks of shorter ones.

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
        self._model, self._folder = model, folder
        self._told: dict[int, Told] = {}

    def _cut(self, model: MemoryModel) -> Iterator[int]:
        """How many paragraphs have as many tokens as each length."""
        left, tokens = list(self.lengths), 0
        for number, paragraph in enumerate(self.paragraphs):
            tokens += len(model.tokenizer(paragraph, add_special_tokens=False)["input_ids"])
            while left and tokens > left[0]:
                left.pop(0)
                yield number
            if not left:
                return

    def told(self, length: int) -> Told:
        if length not in self._told:
            shorter = max((known for known in self._told if known < length), default=0)
            before = self._told.get(shorter, Told(self._model, []))
            passages = self.paragraphs[self._counts.get(shorter, 0) : self._counts[length]]
            self._told[length] = before.then(passages, self._folder)
        return self._told[length]
