"""What was told, in every form in which a model may be given it: a memory, texts, an index of words."""

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import cached_property
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
        written: Callable[[], Written] | None = None,
        counted: Callable[[], list[int]] | None = None,
        folder: Path | None = None,
    ) -> None:
        """
        Args:
            written: makes the memory; None: a new one is told every passage.
            counted: the tokens of each passage; None: they are counted.
            folder: in which the memory is kept, so that the next run need not write it again; None: in none.
        """
        self._model, self.passages, self._folder = model, list(passages), folder
        self._written_by, self._counted_by = written, counted

    def then(self, passages: Sequence[str], folder: Path | None = None) -> "Told":
        """The same and more; its memory is a fork of this one's, which stays as it is."""

        def written() -> Written:
            memory = self.memory.fork()
            return memory, self.writes + [self._model.write(memory, passage).id for passage in passages]

        def counted() -> list[int]:
            return [*self.lengths, *self._count(passages)]

        return Told(self._model, [*self.passages, *passages], written, counted, folder)

    def without(self, passage: int) -> "Told":
        """The same but for a passage, which a fork of the memory forgets."""

        def written() -> Written:
            memory = self.memory.fork()
            self._model.forget(memory, self.writes[passage])
            return memory, _without(self.writes, passage)

        return Told(self._model, _without(self.passages, passage), written, lambda: _without(self.lengths, passage))

    @cached_property
    def _written(self) -> Written:
        file = None if self._folder is None else self._folder / f"told-{self._digest()}.mem"
        if file is not None and file.is_file():
            memory = Memory.load(file)
            return memory, [record.id for record in memory.writes]
        made = self._write() if self._written_by is None else self._written_by()
        if file is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            made[0].save(file)
        return made

    def _write(self) -> Written:
        memory = self._model.new_memory()
        return memory, [self._model.write(memory, passage).id for passage in self.passages]

    def _digest(self) -> str:
        """Of all that makes the memory: the passages, the model, and how it cuts and scores chunks."""
        made_of = [repr(self._model.spec), repr(self._model.config.chunk_tokens), *self.passages]
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
        return self._count(self.passages) if self._counted_by is None else self._counted_by()

    def _count(self, passages: Sequence[str]) -> list[int]:
        encode = self._model.tokenizer
        return [len(ids) for ids in encode(list(passages), add_special_tokens=False)["input_ids"]] if passages else []

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

    def newest(self, room: int) -> list[int]:
        """As many of the newest passages as have at most so many tokens, oldest first."""
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
