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
from remanence.evaluation.resuming import keep, kept
from remanence.memory import Memory
from remanence.model.memory_model import MemoryModel

Progress = Callable[[int, int], None]


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
        state: folder in which every finished window is kept; a run that was cut goes on from there.
        progress: called with (writes done, writes in all).

    Returns:
        `n`, `k`, `model`, `seed`; `windows`: a list of `writes` (at its end), `exact_match`, `stderr`, `samples`,
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
        "n": model.slots,
        "k": model.slots_per_write,
        "model": model.fingerprint(),
        "seed": seed,
        "window_writes": length,
        "questions": questions,
    }
    done, memory = ([], model.new_memory(seed)) if state is None else _resume(state, run, model, seed)
    for window in range(len(done), windows):
        start = time.perf_counter()
        right = _window(model, memory, window, run, lambda count: progress and progress(count, writes))
        rate = right / questions
        point = {
            "writes": (window + 1) * length,
            "exact_match": rate,
            "stderr": sqrt(rate * (1 - rate) / questions),
            "samples": questions,
            "resident_bytes": psutil.Process().memory_info().rss,
            "seconds": round(time.perf_counter() - start, 1),
        }
        done.append(point)
        if state is not None:
            _keep(state, run, done, memory)
    done = done[:windows]
    return {**run, "windows": done, "drift": done[-1]["exact_match"] - done[0]["exact_match"]}


def _window(
    model: MemoryModel, memory: Memory, window: int, run: dict[str, Any], progress: Callable[[int], object]
) -> int:
    """Write one window's texts; how many of its questions are answered right. All texts hang on seed and window."""
    length, every, key = run["window_writes"], run["window_writes"] // run["questions"], f"{run['seed']}/{window}"
    others = unrelated(random.Random(key), ())
    right = 0
    for index in range(1, length + 1):
        if index % every:
            model.write(memory, next(others))
        else:
            episode = Episode(run["seed"], window * length + index)
            model.write(memory, episode.fact)
            question = episode.question(0)
            right += answer(model, [memory], [question.text])[0] == question.truth
        if index % 100 == 0 or index == length:
            progress(window * length + index)
    return right


def _resume(state: Path, run: dict[str, Any], model: MemoryModel, seed: int) -> tuple[list[dict[str, Any]], Memory]:
    record = kept(state / "windows.json", run)
    if record is None:
        return [], model.new_memory(seed)
    return record["windows"], Memory.load(state / record["memory"], model.device)


def _keep(state: Path, run: dict[str, Any], done: list[dict[str, Any]], memory: Memory) -> None:
    """The memory first, under a name of its own, then the record that names it: a cut between them loses nothing."""
    state.mkdir(parents=True, exist_ok=True)
    name = f"memory-{len(done)}.safetensors"
    memory.save(state / name)
    keep(state / "windows.json", run, windows=done, memory=name)
    for old in state.glob("memory-*.safetensors"):
        if old.name != name:
            old.unlink()
