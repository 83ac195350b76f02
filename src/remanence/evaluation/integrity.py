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
from remanence.evaluation.columns import Column, about, only
from remanence.evaluation.harness import Evaluation, Item, Record, digest_of
from remanence.evaluation.metrics import Metric
from remanence.evaluation.registry import Command
from remanence.memory import Memory
from remanence.model.model import MemoryModel

METRICS = (Metric("right", "rate"), Metric("resident_mib", "mean", 0), Metric("ms_per_write", "mean", 1))
COMMAND = Command(
    ("", "--model tiny --writes 1000000 --windows 100 --count 200 --resume runs/integrity --json i.json"),
    whole=True,
    learned=True,
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

    One memory is written, so that one column is measured.
    """
    if len(columns) != 1:
        raise InvalidInputError("one memory is written, so name one column")
    if writes % windows:
        raise InvalidInputError(f"{writes} writes do not make {windows} equal windows")
    length = writes // windows
    if length % count:
        raise InvalidInputError(f"{count} questions do not spread evenly over a window of {length} writes")
    items = [
        Item(
            f"{window}/{number}", (f"{(window + 1) * length:,} writes",), content=(window, number), together=str(window)
        )
        for window in range(windows)
        for number in range(count)
    ]
    settings = {"window_writes": length, "questions": count, "seed": seed}
    return Evaluation("integrity", settings, items, columns, _Measuring(model, settings, folder), METRICS)


class _Measuring:
    """Writes window after window. The memory at the start of each is kept, so that a run that was cut resumes there."""

    def __init__(self, model: MemoryModel, settings: dict[str, int], folder: Path | None) -> None:
        self._model, self._seed, self._length = model, settings["seed"], settings["window_writes"]
        self._every = self._length // settings["questions"]
        self._file = None if folder is None else folder / f"integrity-{digest_of(str(about(model)), str(settings))}.mem"
        self._memory = model.new_memory(self._seed)

    def __call__(self, column: Column, items: Sequence[Item]) -> list[Record]:
        window: int = items[0].content[0]
        with only(self._model, column.parts):
            if self._memory.write_count != window * self._length:
                self._resume(column, window)
            if self._file is not None:
                self._memory.save(self._file, overwrite=True)
            begun = time.perf_counter()
            found: list[Record] = [{"right": right} for right in self._write(column, window)]
            taken = 1e3 * (time.perf_counter() - begun) / self._length
        found[-1] |= {"resident_mib": psutil.Process().memory_info().rss / 2**20, "ms_per_write": taken}
        return [found[item.content[1]] for item in items]

    def _resume(self, column: Column, window: int) -> None:
        """Bring the memory to the start of a window: from the last that was kept, if that is not behind it."""
        if self._file is not None and self._file.is_file():
            kept = Memory.load(self._file, self._model.device)
            if kept.write_count <= window * self._length:
                self._memory = kept
        for earlier in range(self._memory.write_count // self._length, window):
            self._write(column, earlier)

    def _write(self, column: Column, window: int) -> list[bool]:
        """One window of texts, which hang on seed and window; which of the questions were answered right."""
        others = unrelated(random.Random(f"{self._seed}/{window}"), ())
        right = []
        for count in range(1, self._length + 1):
            if count % self._every:
                self._model.write(self._memory, next(others))
                continue
            episode = Episode(self._seed, window * self._length + count)
            self._model.write(self._memory, episode.fact)
            asked = self._memory.pool_only() if column.shows == "pool" else self._memory
            question = episode.question(0)
            right.append(answer(self._model, [asked], [question.text])[0] == question.truth)
        return right
