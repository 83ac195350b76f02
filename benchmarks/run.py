"""Run a benchmark by its name: figures as a table on the terminal, and as JSON.

    python benchmarks/run.py --list
    python benchmarks/run.py read_write --json benchmarks/read_write/results.json
    python benchmarks/run.py read_write --shape tiny --repeats 2     # a rehearsal
    python benchmarks/run.py read_write --base HEAD~5                # times now against those of another commit

A benchmark is a module with `Settings`, a dataclass whose fields are its options, and one of these:

- `parts(settings)`: what is timed in turns (timing.py). `finish` adds rows that follow from others, `NOTE` says what
  stands under the table.
- `evaluation(settings)`: a model, and an evaluation of the harness. Records are kept in --state, and it resumes.
- `measure(settings)`: the figures themselves, where neither fits.
"""

import importlib
import json
import os
import shlex
import subprocess
import sys
import tempfile
from argparse import RawDescriptionHelpFormatter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import HfArgumentParser

from remanence.environment import run_stamp
from remanence.evaluation.columns import about
from remanence.evaluation.harness import Report, Run
from tables import Figures, Rows, listed, publish
from timing import measure, ratio, timed, times

BENCHMARKS = {
    "read_write": "read_write.run",
    "longterm": "longterm.run",
    "writes": "writes.run",
    "store": "store.run",
    "published": "published.run",
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
    "grass_finetune": "grass.finetune",
}
ROOT = Path(__file__).parent.parent
ROUNDS = 3  # of a comparison: runs at each of the two commits


@dataclass(frozen=True)
class Common:
    """Options of all benchmarks."""

    json: Path | None = field(default=None, metadata={"help": "file for the figures"})
    only: str = field(default="", metadata={"help": "time parts with this in their name"})
    base: str | None = field(default=None, metadata={"help": "a commit to compare times with"})
    state: Path | None = field(default=None, metadata={"help": "folder in which an evaluation is kept, and resumed"})


def figures_of(module: Any, on: Any, common: Common, words: list[str]) -> Figures:
    """Disagreement is raised where what would be timed does not do what it should."""
    if common.base is not None and not hasattr(module, "parts"):
        raise SystemExit("--base compares times, and this benchmark takes none")
    if hasattr(module, "evaluation"):
        model, evaluation = module.evaluation(on)
        run = Run(evaluation, about(model), common.state)
        records = run(lambda done, total: print(f"{done}/{total}", end="\r", file=sys.stderr, flush=True))
        kept = {"records": records} if getattr(module, "KEEP_RECORDS", False) else {}
        return {**Report.of(evaluation, records, about(model)).to_json(), **kept}
    if not hasattr(module, "parts"):
        return dict(module.measure(on))
    if common.base is not None:
        return {"rows": listed(compared(common.base, without(words, "--json", "--base")))}
    rows, checks = measure({name: make for name, make in module.parts(on).items() if common.only in name})
    getattr(module, "finish", lambda *_: None)(on, rows)
    return {"rows": listed(rows), "checks": checks}


def compared(ref: str, words: list[str]) -> Rows:
    """Medians of a benchmark's times, now and at another commit, of whole runs in turns."""
    found: dict[str, dict[str, list[float]]] = {}
    with worktree(ROOT, ref) as tree, tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figures.json"
        for commit, root in [("now", ROOT), (ref, tree)] * ROUNDS:
            environment = {**os.environ, "PYTHONPATH": str(root / "src")}
            command = [sys.executable, __file__, *words, "--json", str(file)]
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            for row in json.loads(file.read_text(encoding="utf-8"))["rows"]:
                for column, median in times(row["cells"]).items():
                    case = found.setdefault(f"{row['name']}, {column}", {})
                    case.setdefault(commit, []).append(median / 1e3)
    rows: Rows = {row: {commit: timed(medians) for commit, medians in case.items()} for row, case in found.items()}
    for cells in rows.values():
        if ref in cells and "now" in cells:
            cells[f"{ref} / now"] = ratio(cells[ref]["median"], cells["now"]["median"])
    return rows


@contextmanager
def worktree(repository: Path, ref: str) -> Iterator[Path]:
    """A folder with the files of a commit, there for as long as it is needed and gone however that ends."""
    with tempfile.TemporaryDirectory(prefix="base-") as folder:
        tree, git = Path(folder) / "tree", ["git", "-C", str(repository), "worktree"]
        try:
            subprocess.run([*git, "add", "--quiet", "--detach", str(tree), ref], check=True)
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=False)


def without(words: list[str], *options: str) -> list[str]:
    """Words but for these options and what stands behind them."""
    return [word for before, word in zip(["", *words], words, strict=False) if not {before, word} & set(options)]


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
    kept = [names.get(word, word) for word in without(words, "--json", "--state")]
    return shlex.join(["python", "benchmarks/run.py", *kept])


def main(words: list[str]) -> None:
    if words == ["--list"]:
        for name, module in BENCHMARKS.items():
            print(f"{name:17s}{(importlib.import_module(module).__doc__ or '').splitlines()[0]}")
        return
    module, on, common = parsed(words)
    made = {
        "benchmark": words[0],
        "options": json.loads(json.dumps(asdict(on), default=lambda path: path.name)),
        "note": getattr(module, "NOTE", "").format(**asdict(on)),
        **figures_of(module, on, common, words),
        **run_stamp(command(words, on), torch.device(getattr(on, "device", "cpu"))),
    }
    publish(made, common.json)


if __name__ == "__main__":
    main(sys.argv[1:])
