"""Run a benchmark by its name: figures as a table on the terminal, and as JSON.

    python benchmarks/run.py --list
    python benchmarks/run.py read_write --json benchmarks/read_write/results.json
    python benchmarks/run.py read_write --shape tiny --repeats 2     # a rehearsal
    python benchmarks/run.py read_write --base HEAD~5                # times now against those of another commit

A benchmark is a module with `Settings`, a dataclass whose fields are its options, and one of these:

- `parts(settings)`: what is timed in turns (timing.py). `BASELINE` is the column of which ratios are taken, `finish`
  adds rows that follow from others.
- `evaluation(settings)`: a model, and an evaluation of the harness. Records are kept in --state, and it resumes.
- `measure(settings)`: the figures themselves, where neither fits.
"""

import importlib
import json
import shlex
import sys
from argparse import RawDescriptionHelpFormatter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser

import base
from remanence.environment import run_stamp
from remanence.evaluation.harness import Report, Run, about
from tables import Figures, publish
from timing import PLAIN, measure

BENCHMARKS = {
    "read_write": "read_write.run",
    "longterm": "longterm.run",
    "writes": "writes.run",
    "eviction": "research.run",
    "own_text": "real.own_text",
    "compressed": "real.compressed",
    "together": "real.together",
    "heads": "real.heads",
    "word_frequencies": "lexical.count",
    "grass_step": "grass.step",
    "grass_memory": "grass.memory",
    "grass_quality": "grass.quality",
    "grass_recall": "grass.recall",
}


@dataclass(frozen=True)
class Common:
    """Options of all benchmarks."""

    json: Path | None = field(default=None, metadata={"help": "file for the figures"})
    only: str = field(default="", metadata={"help": "time parts with this in their name"})
    base: str | None = field(default=None, metadata={"help": "a commit to compare times with, in turns"})
    state: Path | None = field(default=None, metadata={"help": "folder in which an evaluation is kept, and resumed"})


def figures_of(module: Any, on: Any, common: Common, words: list[str]) -> Figures:
    """
    Raises:
        Disagreement: what would be timed does not do what it should.
    """
    if hasattr(module, "evaluation"):
        model, evaluation = module.evaluation(on)
        run = Run(evaluation, about(model), common.state)
        records = run(lambda done, total: print(f"{done}/{total}", end="\r", file=sys.stderr, flush=True))
        kept = {"records": records} if getattr(module, "KEEP_RECORDS", False) else {}
        return {**Report.of(evaluation, records, about(model)).to_json(), **kept}
    if not hasattr(module, "parts"):
        made: Figures = module.measure(on)
        return made
    parts = {part: make for part, make in module.parts(on).items() if common.only in part}
    if common.base is None:
        rows, checks = measure(parts, getattr(module, "BASELINE", PLAIN))
        getattr(module, "finish", lambda *_: None)(on, rows)
    else:
        with base.at(common.base, words) as other:
            rows, checks = measure(parts, other=other)
    return {"rows": [{"name": row, "cells": cells} for row, cells in rows.items() if cells], "checks": checks}


def parsed(words: list[str]) -> tuple[Any, Any, Common]:
    """The module of a benchmark, its settings and the options of all."""
    if not words or words[0] not in BENCHMARKS:
        raise SystemExit(f"name a benchmark: {', '.join(BENCHMARKS)}; or --list")
    module = importlib.import_module(BENCHMARKS[words[0]])
    options = (module.Settings, Common)
    parser = HfArgumentParser(options, description=module.__doc__, formatter_class=RawDescriptionHelpFormatter)
    on, common = parser.parse_args_into_dataclasses(words[1:], look_for_args_file=False)
    torch.set_num_threads(getattr(on, "threads", torch.get_num_threads()))
    return module, on, common


def command(words: list[str], on: Any) -> str:
    """As it is published: which folders files lie in, and where its own figures went, is of no interest."""
    paths = [path for value in vars(on).values() for path in (value if isinstance(value, list) else [value])]
    names = {str(path): path.name for path in paths if isinstance(path, Path)}
    kept, skip = [], False
    for word in words:
        if not skip and word not in ("--json", "--state"):
            kept.append(names.get(word, word))
        skip = word in ("--json", "--state")
    return shlex.join(["python", "benchmarks/run.py", *kept])


def main(words: list[str]) -> None:
    if words[:1] == ["--list"]:
        for name, module in BENCHMARKS.items():
            print(f"{name:17s}{(importlib.import_module(module).__doc__ or '').splitlines()[0]}")
    elif words[:1] == ["--serve"]:
        module, on, _ = parsed(words[1:])
        base.serve(module.parts(on))
    else:
        module, on, common = parsed(words)
        made = {
            "benchmark": words[0],
            "options": json.loads(json.dumps(asdict(on), default=str)),
            "note": getattr(module, "NOTE", "").format(**asdict(on)),
            **figures_of(module, on, common, words),
            **run_stamp(command(words, on), torch.device(getattr(on, "device", "cpu"))),
        }
        publish(made, common.json)


if __name__ == "__main__":
    main(sys.argv[1:])
