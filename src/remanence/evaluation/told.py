"""What was told, in every form in which a model may be given it: a memory, texts, an index of words."""

import hashlib
import importlib.util
from collections.abc import Sequence
from functools import cached_property
from math import isinf
from pathlib import Path
from typing import Any

from remanence.errors import InvalidInputError
from remanence.memory import Memory
from remanence.model.model import MemoryModel

Written = tuple[Memory, list[int]]  # a memory, and by passage the id of its write


def require_bm25() -> None:
    """
    Raises:
        InvalidInputError: the package that ranks passages is not installed.
    """
    if importlib.util.find_spec("bm25s") is None:
        raise InvalidInputError("bm25 columns need the package bm25s: pip install 'remanence[eval]'")


class Told:
    """Passages that were told in this order. Nothing is written or indexed before it is needed.

    Attributes:
        passages: texts, oldest first.
    """

    def __init__(
        self,
        model: MemoryModel,
        passages: Sequence[str],
        *,
        before: "Told | None" = None,
        whole: str | None = None,
        seed: int = 0,
        folder: Path | None = None,
    ) -> None:
        """
        Args:
            before: the first of the passages as they were told; the memory is a fork of its memory.
            whole: the text of which these are parts, which is told in one write; None: each passage is a write.
            seed: of the memory.
            folder: in which the memory is kept, so that the next run need not write it again; None: in none.
        """
        self._model, self.passages, self._before = model, list(passages), before
        self._whole, self._seed, self._folder = whole, seed, folder

    def then(self, passages: Sequence[str], folder: Path | None = None) -> "Told":
        """The same and more; this one stays as it is."""
        return Told(self._model, [*self.passages, *passages], before=self, folder=folder)

    def without(self, passage: int) -> "Told":
        """The same but for a passage, which a fork of the memory forgets."""
        left, memory = Told(self._model, _without(self.passages, passage)), self.memory.fork()
        self._model.forget(memory, self.writes[passage])
        left._written = memory, _without(self.writes, passage)
        left.lengths = _without(self.lengths, passage)
        return left

    @cached_property
    def _written(self) -> Written:
        file = None if self._folder is None else self._folder / f"told-{self._digest()}.mem"
        if file is not None and file.is_file():
            memory = Memory.load(file)
            return memory, [record.id for record in memory.writes]
        memory, writes = self._model.new_memory(self._seed), list[int]()
        if self._before is not None:
            memory, writes = self._before.memory.fork(), list(self._before.writes)
        for text in self.passages[len(writes) :] if self._whole is None else [self._whole]:
            writes.append(self._model.write(memory, text).id)
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            memory.save(file)
        return memory, writes

    def _digest(self) -> str:
        """Of all that makes the memory: the passages, the model, and how it cuts and scores chunks."""
        made_of = [repr(self._model.spec), repr(self._model.config.chunk_tokens), *self.passages]
        made_of += [repr((self._whole, self._seed))] if self._whole is not None or self._seed else []
        return hashlib.blake2b("\0".join(made_of).encode(), digest_size=8).hexdigest()

    @property
    def memory(self) -> Memory:
        return self._written[0]

    @property
    def writes(self) -> list[int]:
        """By passage, the id of its write."""
        return self._written[1]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each passage."""
        known = [] if self._before is None else self._before.lengths
        left = self.passages[len(known) :]
        ids = self._model.tokenizer(left, add_special_tokens=False)["input_ids"] if left else []
        return [*known, *map(len, ids)]

    @cached_property
    def _ranking(self) -> Any:
        import bm25s

        ranking = bm25s.BM25()
        ranking.index(_words(self.passages), show_progress=False)
        return ranking

    def index(self) -> None:
        """Make BM25's index, if that was not done yet."""
        _ = self._ranking

    def ranked(self, question: str) -> list[int]:
        """Passages by BM25, best first; of those that share no word with the question the oldest first."""
        [words] = _words([question])
        if not words:
            return list(range(len(self.passages)))
        scores = self._ranking.get_scores(words)
        return [int(place) for place in (-scores).argsort(kind="stable")]

    def fitting(self, places: Sequence[int], room: float) -> list[int]:
        """Of some passages, the best first, those that fit into so many tokens beside the better ones."""
        fit: list[int] = []
        for place in places:
            if (needed := self.lengths[place] + 2) <= room:  # with the blank line behind it
                room -= needed
                fit.append(place)
        return fit

    def newest(self, room: float) -> list[int]:
        """As many of the newest passages as have at most so many tokens, oldest first.

        Raises:
            InvalidInputError: the room is infinite.
        """
        if isinf(room):
            raise InvalidInputError(f"{self._model.name} does not say how much it reads; leave the column fits out")
        places: list[int] = []
        for place in range(len(self.passages) - 1, -1, -1):
            room -= self.lengths[place] + 2  # the blank line behind it
            if room < 0:
                break
            places.insert(0, place)
        return places


def _without(items: Sequence[Any], place: int) -> list[Any]:
    return [*items[:place], *items[place + 1 :]]


def _words(texts: Sequence[str]) -> list[list[str]]:
    import bm25s

    words: Any = bm25s.tokenize(list(texts), stopwords="en", return_ids=False, show_progress=False)
    return list(words)
