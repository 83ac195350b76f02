"""What a write costs in a memory of few writes and of many, and what the first question after a write costs.

    python benchmarks/writes/run.py --json benchmarks/writes/results.json

Three memories of the bundled checkpoint's decoder: a pool, a pool with long-term memory, and text slots. Medians of
windows of writes, and of pairs of questions: the first after a write, which builds its prefix, and the same again.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.progress import track

from remanence import Memory, MemoryModel
from remanence.checkpoints import bundled
from remanence.environment import run_stamp

EARLY, LATE = (100, 200), (9_900, 10_000)
QUESTION = "Question: Where was Alice Brown born? Answer:"
PAIRS = 40


def pool() -> MemoryModel:
    return MemoryModel.from_pretrained(bundled("tiny"))


def longterm() -> MemoryModel:
    return MemoryModel.from_pretrained(bundled("tiny_longterm"))


def text() -> MemoryModel:
    """Text slots on the same decoder; whatever a chunk scores, the best are read."""
    base = pool()
    return MemoryModel.attach(base.detach(), base.tokenizer, min_score=None)


KINDS: dict[str, Callable[[], MemoryModel]] = {"pool": pool, "longterm": longterm, "text": text}


def timed(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def told(model: MemoryModel, memory: Memory, number: int) -> None:
    model.write(memory, f"Note {number}: Alice Brown was born in Oslo, and works as a surveyor in town {number % 97}.")


def measure(model: MemoryModel, early: tuple[int, int], late: tuple[int, int], pairs: int) -> dict[str, Any]:
    """Seconds: median writes of both windows, and median first and second questions after a write."""
    memory = model.new_memory(seed=0)
    seconds = [timed(partial(told, model, memory, number)) for number in track(range(late[1]), "writing")]
    first: list[float] = []
    second: list[float] = []
    for number in range(pairs):
        told(model, memory, late[1] + number)
        for times in (first, second):
            ask = timed(lambda: model.generate(memory, QUESTION, max_new_tokens=1, do_sample=False))
            times.append(ask)
    windows = [median(seconds[slice(*window)]) for window in (early, late)]
    return {
        "early": windows[0],
        "late": windows[1],
        "write_ratio": windows[1] / windows[0],
        "first": median(first),
        "second": median(second),
        "ask_ratio": median(first) / median(second),
        "bytes": memory.nbytes,
    }


def main(words: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--kind", choices=KINDS, action="append", help="a memory to measure; all, if none is named")
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of writes, for a rehearsal")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    early, late = ((int(first * options.scale), int(last * options.scale)) for first, last in (EARLY, LATE))
    kinds = options.kind or list(KINDS)
    rows = {kind: measure(KINDS[kind]().optimize_for_cpu(), early, late, PAIRS) for kind in kinds}
    for kind, row in rows.items():
        print(f"{kind:9s} write {row['write_ratio']:.3f}, first question {row['ask_ratio']:.2f} of the second")
    if options.json is not None:
        command = shlex.join(["python", "benchmarks/writes/run.py", *words])
        report = {"early": early, "late": late, "rows": rows} | run_stamp(command, torch.device("cpu"))
        options.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
