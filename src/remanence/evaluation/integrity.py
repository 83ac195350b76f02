"""Integrity: whether a memory works after very many writes as it did after few (MemoryLLM, section 4.4).

One memory is written over and over, with biographies of held-out people and paragraphs of novels in turn. Every so
often the biography that was just written is asked about, so that forgetting plays no part. The writes are cut into
windows; what each answers right, and how much memory the process holds at its end, must not drift.
"""

import random
import time
from collections.abc import Callable
from math import sqrt
from pathlib import Path
from typing import Any

import psutil

from remanence.data.episodes import Episode, unrelated
from remanence.errors import InvalidInputError
from remanence.evaluation.answering import answer
from remanence.evaluation.resuming import identity, keep, kept
from remanence.memory import Memory
from remanence.model.model import MemoryModel

Progress = Callable[[int, int], None]
KEPT_EVERY = 10_000  # writes at most, and at the end of each window
MEMORY = "memory.safetensors"


def measure(
    model: MemoryModel,
    *,
    writes: int = 10_000,
    windows: int = 10,
    questions: int = 100,
    seed: int = 0,
    state: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Exact match about the newest biography, window by window, over `writes` writes into one memory.

    Args:
        windows: parts of equal length that the writes are cut into.
        questions: asked in each window, evenly spread.
        state: folder in which counts and memory are kept every 10,000 writes; a run that was cut goes on from there.
        progress: called with (writes done, writes in all).

    Returns:
        what `identity` gives, `seed`; `windows`: a list of `writes` (at its end), `exact_match`, `stderr`, `samples`,
        `resident_bytes` and `seconds`; `drift`: exact match of the last window less that of the first.

    Raises:
        InvalidInputError: sizes that do not divide; a state folder of another run.
    """
    if windows < 1 or writes < 1 or writes % windows:
        raise InvalidInputError(f"{writes} writes do not make {windows} equal windows")
    length = writes // windows
    if questions < 1 or length % questions:
        raise InvalidInputError(f"{questions} questions do not spread evenly over a window of {length} writes")
    run = {
        **identity(model),
        "seed": seed,
        "window_writes": length,
        "questions": questions,
    }
    parts, memory = ([], model.new_memory(seed)) if state is None else _resume(state, run, model, seed)
    while (done := parts[-1]["writes"] if parts else 0) < writes:
        start = time.perf_counter()
        end = min(done + KEPT_EVERY, (done // length + 1) * length)
        right = _write(model, memory, done, end, run, lambda count: progress and progress(count, writes))
        parts.append(
            {
                "writes": end,
                "right": right,
                "resident_bytes": psutil.Process().memory_info().rss,
                "seconds": round(time.perf_counter() - start, 1),
                "write_count": memory.write_count,
            }
        )
        if state is not None:
            _keep(state, run, parts, memory)
    points = [_window(parts, start, length, questions) for start in range(0, writes, length)]
    return {**run, "windows": points, "drift": points[-1]["exact_match"] - points[0]["exact_match"]}


def _window(parts: list[dict[str, Any]], start: int, length: int, questions: int) -> dict[str, Any]:
    """What the parts of the window behind `start` writes come to."""
    inside = [part for part in parts if start < part["writes"] <= start + length]
    rate = sum(part["right"] for part in inside) / questions
    return {
        "writes": start + length,
        "exact_match": rate,
        "stderr": sqrt(rate * (1 - rate) / questions),
        "samples": questions,
        "resident_bytes": inside[-1]["resident_bytes"],
        "seconds": round(sum(part["seconds"] for part in inside), 1),
    }


def _write(
    model: MemoryModel, memory: Memory, done: int, end: int, run: dict[str, Any], progress: Callable[[int], object]
) -> int:
    """Write the texts behind `done` up to `end`, of one window; how many of the questions are answered right.

    All texts hang on seed and window.
    """
    length = run["window_writes"]
    every, window = length // run["questions"], done // length
    others = unrelated(random.Random(f"{run['seed']}/{window}"), ())
    first = done - window * length
    for _ in range(first - first // every):
        next(others)
    right = 0
    for count in range(done + 1, end + 1):
        if (count - window * length) % every:
            model.write(memory, next(others))
        else:
            episode = Episode(run["seed"], count)
            model.write(memory, episode.fact)
            question = episode.question(0)
            right += answer(model, [memory], [question.text])[0] == question.truth
        if count % 100 == 0 or count == end:
            progress(count)
    return right


def _resume(state: Path, run: dict[str, Any], model: MemoryModel, seed: int) -> tuple[list[dict[str, Any]], Memory]:
    record, file = kept(state / "parts.json", run), state / MEMORY
    if record is None or not file.is_file():
        return [], model.new_memory(seed)
    memory = Memory.load(file, model.device)
    return [part for part in record["parts"] if part["write_count"] <= memory.write_count], memory


def _keep(state: Path, run: dict[str, Any], parts: list[dict[str, Any]], memory: Memory) -> None:
    """The record first. After a cut between the two, the memory tells by its writes that the last part is not in it."""
    keep(state / "parts.json", run, parts=parts)
    memory.save(state / MEMORY, overwrite=True)
