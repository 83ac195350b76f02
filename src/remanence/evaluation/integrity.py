"""Integrity: whether a memory works after very many writes as it did after few (MemoryLLM, section 4.4).

One memory is written over and over, with biographies of held-out people and paragraphs of novels in turn. Every so
often the biography that was just written is asked about, so that forgetting plays no part. The writes are cut into
windows; what each answers right, and how much memory the process holds at its end, must not drift.
"""

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import psutil
import typer

from remanence.data.episodes import Episode, unrelated
from remanence.errors import InvalidInputError
from remanence.evaluation.answering import answer
from remanence.evaluation.columns import Column, about
from remanence.evaluation.harness import Evaluation, Item, Record, digest_of
from remanence.evaluation.metrics import Metric
from remanence.evaluation.registry import Command
from remanence.memory import Memory
from remanence.model.model import MemoryModel

METRICS = (Metric("right", "rate"), Metric("resident_mib", "mean", 0), Metric("ms_per_write", "mean", 1))
COMMAND = Command(
    columns="",
    learned=True,
    examples=("", "--model tiny --writes 1000000 --windows 100 --count 200 --resume runs/integrity --json i.json"),
)


def evaluation(
    model: MemoryModel,
    columns: Sequence[Column],
    *,
    writes: Annotated[int, typer.Option(min=1, help="Writes into one memory.")] = 10_000,
    windows: Annotated[int, typer.Option(min=1, help="Equal parts that are scored each.")] = 10,
    count: Annotated[int, typer.Option(min=1, help="Questions in each window, about the newest biography.")] = 100,
    seed: Annotated[int, typer.Option(help="Another seed, other people.")] = 0,
    folder: Path | None = None,
) -> Evaluation:
    """Exact match about the newest biography, and resident memory, over very many writes into one memory.

    One memory is written, so that one column is measured: the last that is named.
    """
    if writes % windows:
        raise InvalidInputError(f"{writes} writes do not make {windows} equal windows")
    length = writes // windows
    if length % count:
        raise InvalidInputError(f"{count} questions do not spread evenly over a window of {length} writes")
    items = [
        Item(f"{window}/{number}", (f"{(window + 1) * length:,} writes",), content=window, together=str(window))
        for window in range(windows)
        for number in range(count)
    ]
    settings = {"window_writes": length, "questions": count, "seed": seed}
    return Evaluation("integrity", settings, items, columns[-1:], _Measuring(model, length, seed, folder), METRICS)


class _Measuring:
    """Writes window after window. The memory at the end of each is kept, so that a run that was cut goes on there."""

    def __init__(self, model: MemoryModel, length: int, seed: int, folder: Path | None) -> None:
        self._model, self._length, self._seed, self._folder = model, length, seed, folder
        self._digest = digest_of(str(about(model)), str(length), str(seed))
        self._memory = model.new_memory(seed)

    def __call__(self, column: Column, items: Sequence[Item]) -> list[Record]:
        window: int = items[0].content
        if self._memory.write_count != window * self._length:
            self._memory = self._kept(window)
        begun = time.perf_counter()
        right = self._write(window, len(items), whole=column.shows == "longterm")
        taken = 1e3 * (time.perf_counter() - begun) / self._length
        if self._folder is not None:
            self._memory.save(self._file(window + 1), overwrite=True)
            self._file(window - 1).unlink(missing_ok=True)  # that at the window's start serves until records are kept
        last = {"resident_mib": psutil.Process().memory_info().rss / 2**20, "ms_per_write": taken}
        return [*({"right": one} for one in right[:-1]), {"right": right[-1], **last}]

    def _write(self, window: int, questions: int, *, whole: bool) -> list[bool]:
        """One window of texts, which hang on seed and window; which of the questions were answered right."""
        every, others = self._length // questions, unrelated(random.Random(f"{self._seed}/{window}"), ())
        right = []
        for count in range(1, self._length + 1):
            if count % every:
                self._model.write(self._memory, next(others))
                continue
            episode = Episode(self._seed, window * self._length + count)
            self._model.write(self._memory, episode.fact)
            question, asked = episode.question(0), self._memory if whole else self._memory.pool_only()
            right.append(answer(self._model, [asked], [question.text])[0] == question.truth)
        return right

    def _file(self, window: int) -> Path:
        assert self._folder is not None
        return self._folder / f"integrity-{self._digest}-{window}.mem"

    def _kept(self, window: int) -> Memory:
        if window == 0:
            return self._model.new_memory(self._seed)
        if self._folder is None or not self._file(window).is_file():
            raise InvalidInputError(f"the memory after window {window} is not in {self._folder}; name another --resume")
        return Memory.load(self._file(window), self._model.device)
