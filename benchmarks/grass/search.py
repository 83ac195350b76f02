"""Methods at their own best learning rates: powers of two, until the best has a worse neighbour on both sides.

A run with one method, learning rate and seed is a cell; it is stored as soon as it is done, and not run again. First
come learning rates, at seed 0, then other seeds at the best on validation. Reported is what these have on test.
"""

import json
import math
import os
import re
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tables import Figures, cell
from timing import now

BASE = 1e-3  # learning rates are this times a power of two


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
First = Mapping[str, int]  # the power to begin with, by method; 3 where none is named


def loss(figures: Figures, part: str) -> float:
    """Of "validation" or "test"; infinite where the run diverged."""
    held = figures[part]["loss"] if isinstance(figures[part], dict) else figures[part]
    return math.inf if held is None else float(held)


def known(method: str, cells: Cells) -> dict[int, float]:
    """Validation losses of seed 0, by power."""
    return {c.power: loss(held, "validation") for c, held in cells.items() if (c.method, c.seed) == (method, 0)}


def best(method: str, cells: Cells) -> int | None:
    """The power of two that is best on validation, once both neighbours are known and worse."""
    losses = known(method, cells)
    power = min(losses, key=lambda at: (losses[at], at), default=0)
    return power if {power - 1, power, power + 1} <= losses.keys() else None


def wanted(method: str, cells: Cells, seeds: int, first: First) -> list[Cell]:
    """What has to be run next, as far as finished cells tell."""
    power, losses = best(method, cells), known(method, cells)
    if power is not None:
        cells_of = [Cell(method, power, seed) for seed in range(1, seeds)]
    else:
        middle = min(losses, key=lambda at: (losses[at], at), default=first.get(method, 3))
        cells_of = [Cell(method, at, 0) for at in (middle, middle - 1, middle + 1)]
    return [cell for cell in cells_of if cell not in cells]


def finished(folder: Path) -> Cells:
    found = ((file, re.fullmatch(r"(.+)_lr(-?\d+)_seed(\d+)\.json", file.name)) for file in folder.glob("*.json"))
    return {
        Cell(named[1], int(named[2]), int(named[3])): json.loads(file.read_text()) for file, named in found if named
    }


def sweep(
    methods: Sequence[str],
    seeds: int,
    run: Callable[[Cell], Figures],
    folder: Path,
    first: First,
    minutes: float = math.inf,
) -> Cells:
    """Run what is wanted until nothing is, or it is too late to begin; all cells that are finished."""
    cells, end = finished(folder), now() + 60 * minutes
    for method in methods:
        while (cell := next(iter(wanted(method, cells, seeds, first)), None)) and now() < end:
            cells[cell] = run(cell)
            partial = folder / f"{cell.name}.partial"
            partial.write_text(json.dumps(cells[cell]))
            os.replace(partial, folder / cell.name)
            print(f"{cell.method} lr {cell.lr:g} seed {cell.seed}: {cells[cell]['validation']}", file=sys.stderr)
    return cells


def summary(method: str, cells: Cells, seeds: int) -> Figures | None:
    """What the seeds have on test at the best learning rate; None until all of them are there."""
    power = best(method, cells)
    if power is None or any(Cell(method, power, seed) not in cells for seed in range(seeds)):
        return None
    at_best = [cells[Cell(method, power, seed)] for seed in range(seeds)]
    made = {"lr": Cell(method, power, 0).lr} | {name: at_best[0][name] for name in ("gradient_bytes", "state_bytes")}
    losses = [loss(one, "test") for one in at_best]
    if math.inf in losses:
        return {**made, "diverged": losses.count(math.inf)}
    exact = [one["test"]["exact_match"] for one in at_best if isinstance(one["test"], dict)]
    return {
        **made,
        "test": round(statistics.mean(losses), 5),
        "stderr": round(statistics.stdev(losses) / seeds**0.5, 5) if seeds > 1 else None,
        **({"exact_match": round(statistics.mean(exact), 4)} if exact else {}),
    }


def figures_of(cells: Cells, methods: Iterable[str], seeds: int, setup: Figures) -> Figures:
    """Rows of the methods that are finished, and all that they stand on."""
    made = {method: one for method in methods if (one := summary(method, cells, seeds)) is not None}
    base = made.get("adamw", {}).get("test")
    return {
        "setup": setup,
        "rows": [{"name": name_of(method), "cells": row(one, base, seeds)} for method, one in made.items()],
        "cells": [
            {**cell._asdict(), "lr": cell.lr, **{name: value for name, value in held.items() if name != "training"}}
            for cell, held in sorted(cells.items())
        ],
    }


def row(one: Figures, base: float | None, seeds: int) -> Figures:
    if "diverged" in one:
        return {"test loss": f"diverged with {one['diverged']} of {seeds} seeds"}
    made: Figures = {"test loss": {"value": one["test"], "stderr": one["stderr"], "unit": "loss"}}
    if base is not None:
        made["against AdamW"] = cell(round(100 * (one["test"] / base - 1), 3), "%")
    if "exact_match" in one:
        made["exact match"] = cell(one["exact_match"], "share")
    made["best learning rate"] = {"value": one["lr"]}
    made |= {"gradients": cell(one["gradient_bytes"], "bytes"), "optimizer state": cell(one["state_bytes"], "bytes")}
    return made


def name_of(method: str) -> str:
    kind, *more = method.split("-")
    known = {"galore": "GaLore", "apollo": "APOLLO", "lora": "LoRA", "adamw": "AdamW", "grass": "Grass"}
    if kind != "grass":
        return known[kind] + "".join(f", {part.removeprefix('scale')} of the rate for linear layers" for part in more)
    said = {"twice": "twice the rank"}
    parts = [said.get(part, part.replace("scale", "scale ") if "scale" in part else f"`{part}`") for part in more]
    return ", ".join([known[kind], *parts])
