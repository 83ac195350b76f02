r"""Loss at equal tokens: AdamW, GaLore, APOLLO, LoRA and Grass, each at its own best learning rate.

    pip install galore-torch apollo-torch bitsandbytes
    python benchmarks/grass/quality.py --text PATH... --output runs/quality --jobs 2 \
        --json benchmarks/grass/quality.json

The same random Llama (d 256, 4 layers), real text, tokens and schedule for all. A run with one method, learning rate
and seed is a cell; it is stored as soon as it is done, and not run again. Step 1, seed 0: learning rates of powers of
two, until the best on validation has a worse neighbour on both sides. Step 2: other seeds at the best. Reported is the
loss on test.
"""

import argparse
import json
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from grass.corpus import corpus
from grass.methods import METHODS
from grass.training import Setup, train
from measure import Figures, circumstances, now, write_down

SETUP = Setup(4, 256, 688, 4, rank=64, gap=25, steps=250, batch=8, length=128)
BASE = 1e-3  # learning rates are this times a power of two
FIRST = {  # the power to begin with; 3 where none is named
    "adamw": 2,
    "lora": 2,
    "adamw-scale0.03125": 6,
    "galore-scale0.0625": 6,
    "grass-subspace-scale0.0625": 5,
    "grass-multinomial_norm-keep-scale0.03125": 6,
}


class Cell(NamedTuple):
    method: str
    power: int
    seed: int

    @property
    def lr(self) -> float:
        return float(BASE * 2.0**self.power)

    @property
    def name(self) -> str:
        return f"{self.method}_lr{self.power}_seed{self.seed}.json"


Cells = dict[Cell, Figures]


def validation(cells: Cells, cell: Cell) -> float:
    loss = cells[cell]["validation"]
    return math.inf if loss is None else float(loss)


def best(method: str, cells: Cells) -> int | None:
    """The power of two that is best on validation, once both neighbours are known and worse."""
    known = {c.power: validation(cells, c) for c in cells if c.method == method and c.seed == 0}
    if not known:
        return None
    power = min(known, key=lambda at: (known[at], at))
    return power if {power - 1, power + 1} <= known.keys() else None


def wanted(method: str, cells: Cells, seeds: int) -> list[Cell]:
    """What has to be run next, as far as finished cells tell."""
    power = best(method, cells)
    if power is not None:
        return [cell for seed in range(1, seeds) if (cell := Cell(method, power, seed)) not in cells]
    known = {c.power: validation(cells, c) for c in cells if c.method == method and c.seed == 0}
    middle = min(known, key=lambda at: (known[at], at)) if known else FIRST.get(method, 3)
    around = [Cell(method, at, 0) for at in (middle, middle - 1, middle + 1)]
    return [cell for cell in around if cell not in cells]


def summary(method: str, cells: Cells, seeds: int) -> Figures | None:
    """Test loss over seeds at the best learning rate; None until all of them are there."""
    power = best(method, cells)
    if power is None or wanted(method, cells, seeds):
        return None
    at_best = [cells[Cell(method, power, seed)] for seed in range(seeds)]
    losses = [cell["test"] for cell in at_best]
    if any(loss is None for loss in losses):
        return {"lr": Cell(method, power, 0).lr, "diverged": sum(loss is None for loss in losses)}
    return {
        "lr": Cell(method, power, 0).lr,
        "test": round(statistics.mean(losses), 5),
        "stderr": round(statistics.stdev(losses) / len(losses) ** 0.5, 5) if seeds > 1 else None,
        "validation": round(statistics.mean(cell["validation"] for cell in at_best), 5),
        "gradient_bytes": at_best[0]["gradient_bytes"],
        "state_bytes": at_best[0]["state_bytes"],
        "seconds_per_step": round(statistics.median(cell["seconds_per_step"] for cell in at_best), 4),
    }


def run(cell: Cell, setup: Setup, folder: Path) -> Figures:
    """Train, and store the figures under the cell's name, whole or not at all."""
    figures = train(
        setup, cell.method, cell.lr, cell.seed, corpus(folder / "tokens.pt", [], setup.tokens, setup.held_out)
    )
    partial = folder / f"{cell.name}.partial"
    partial.write_text(json.dumps(figures))
    os.replace(partial, folder / cell.name)
    return figures


def finished(folder: Path) -> Cells:
    cells = {}
    for method in METHODS:
        for file in folder.glob(f"{method}_lr*_seed*.json"):
            power, seed = file.stem.removeprefix(f"{method}_lr").split("_seed")
            cells[Cell(method, int(power), int(seed))] = json.loads(file.read_text())
    return cells


class InThisProcess(Executor):
    """Runs what is submitted at once."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(work(*args, **named))
        return future


def sweep(
    methods: list[str], seeds: int, setup: Setup, folder: Path, jobs: int, end: float = math.inf
) -> Iterator[Cells]:
    """Run what is wanted until nothing is, or it is too late; gives all that is finished, again with every cell."""
    cells = finished(folder)
    yield cells
    running: dict[Future[Figures], Cell] = {}
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) if jobs > 1 else InThisProcess()
    with pool:
        while True:
            open_cells = (cell for method in methods for cell in wanted(method, cells, seeds))
            for cell in open_cells:
                if len(running) < jobs and cell not in running.values() and now() < end:
                    running[pool.submit(run, cell, setup, folder)] = cell
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell = running.pop(future)
                cells[cell] = future.result()
                told = {name: cells[cell][name] for name in ("validation", "seconds_per_step")}
                print(f"{cell.method} lr {cell.lr:g} seed {cell.seed}: {told}", file=sys.stderr, flush=True)
                yield cells


def figures_of(cells: Cells, seeds: int, setup: Setup) -> Figures:
    ended = {method: made for method in METHODS if (made := summary(method, cells, seeds)) is not None}
    return {
        "setup": {**asdict(setup), "tokens": setup.tokens, "seeds": seeds},
        "methods": ended,
        "cells": [
            {"method": cell.method, "lr": cell.lr, "seed": cell.seed}
            | {name: value for name, value in cells[cell].items() if name != "training"}
            for cell in sorted(cells)
        ],
    }


def same_setup(setup: Setup, folder: Path) -> None:
    """Note the setup in the folder.

    Raises:
        ValueError: its cells are of another one.
    """
    file, mine = folder / "setup.json", json.loads(json.dumps(asdict(setup)))
    folder.mkdir(parents=True, exist_ok=True)
    if file.is_file() and (there := json.loads(file.read_text())) != mine:
        raise ValueError(f"the cells in {folder} are of another setup, {there}; name another --output")
    file.write_text(json.dumps(mine))


def parser(about: str | None, methods: Sequence[str]) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--text", type=Path, nargs="+", default=[], help="WikiExtractor or .jsonl files, or folders")
    made.add_argument("--output", type=Path, required=True, help="folder of finished cells, and of the tokens")
    made.add_argument("--json", type=Path, required=True, help="where the figures go, renewed with every cell")
    made.add_argument("--jobs", type=int, default=1, help="cells at a time; one: in this process")
    made.add_argument("--steps", type=int, help="of each run, in the place of what is usual here")
    made.add_argument("--seeds", type=int, default=3)
    made.add_argument("--methods", nargs="+", choices=METHODS, default=list(methods))
    made.add_argument("--minutes", type=float, default=math.inf, help="begin no cell later than this")
    return made


def compare(options: argparse.Namespace, setup: Setup) -> None:
    """Run what is not finished yet, and write down what is."""
    end = now() + 60 * options.minutes
    setup = replace(setup, steps=options.steps or setup.steps)
    same_setup(setup, options.output)
    corpus(options.output / "tokens.pt", options.text, setup.tokens, setup.held_out)
    heading = circumstances(setup.device)
    for path in (*options.text, options.output, options.json):  # which folders they lie in is of no interest
        heading["command"] = heading["command"].replace(f" {path}", f" {path.name}")
    heading["machine"] |= {"threads": setup.threads, "jobs": options.jobs}
    for cells in sweep(options.methods, options.seeds, setup, options.output, options.jobs, end):
        write_down({**heading, **figures_of(cells, options.seeds, setup)}, options.json)


def main(arguments: list[str] | None = None) -> None:
    compare(parser(__doc__, list(METHODS)).parse_args(arguments), SETUP)


if __name__ == "__main__":
    main()
