"""How times are taken: what is fast has to agree with what is plain, then both are timed in turns.

A turn runs every case once, so that a machine that is busy for a while slows all alike. Two turns warm up.
"""

import gc
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tables import Figures, Rows, cell

OURS, PLAIN = "Remanence", "plain path"  # columns
WARM_UP = 2
Cases = dict[tuple[tuple[str, ...], str], Callable[[], Any]]


@dataclass(frozen=True)
class Part:
    """
    Attributes:
        cases: what is timed, by the rows of the table that show it and their column; a case of several rows is what
            each of them is compared with. A float that it returns are the seconds that count.
        repeats: turns, after those that warm up.
        gate: called before; raises Disagreement, or tells what it found.
        rows: of figures that are no times.
    """

    cases: Cases = field(default_factory=dict)
    repeats: int = 0
    gate: Callable[[], Figures] = dict
    rows: Rows = field(default_factory=dict)


Parts = Mapping[str, Callable[[], Part]]  # by name, what sets them up


class Disagreement(Exception):
    """What would be timed does not do what it should."""


def agree(what: str, mine: Tensor, plain: Tensor) -> Figures:
    """The largest difference; more than 0.01 % of the largest number, 10 % in half precision, raises Disagreement."""
    apart = float((mine.float() - plain.float().to(mine.device)).abs().max())
    limit = (1e-4 if mine.dtype == torch.float32 else 0.1) * float(plain.abs().max())
    require(apart <= limit, f"{what}: {apart:.3g} apart, and rounding explains {limit:.3g}")
    return {"largest_difference": apart}


def require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Disagreement(f"{otherwise}; nothing was timed")


def now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def seconds_of(run: Callable[[], Any]) -> float:
    def own(result: Any) -> float | None:  # any other is let go here, inside the time that is taken
        return result if isinstance(result, float) else None

    start = now()
    counted = own(run())
    return now() - start if counted is None else counted


def timed(seconds: Sequence[float]) -> dict[str, Any]:
    low, middle, high = (round(1e3 * cut, 4) for cut in statistics.quantiles(seconds, n=4, method="inclusive"))
    mean = round(1e3 * statistics.mean(seconds), 4)
    return {"median": middle, "quartiles": [low, high], "mean": mean, "samples": len(seconds), "unit": "ms"}


def ratio(many: float, few: float) -> Figures | None:
    return cell(round(many / few, 6), "x")


def against(rows: Rows, many: str, few: str, kind: str = "median") -> dict[str, Any]:
    """How many times one row takes what another takes, by column; nothing where a row was not measured."""
    first, second = (times(rows.get(name, {}), kind) for name in (few, many))
    return {column: ratio(second[column], first[column]) for column in second if column in first}


def times(cells: Mapping[str, Any], kind: str = "median") -> dict[str, float]:
    return {column: cell[kind] for column, cell in cells.items() if isinstance(cell, dict) and kind in cell}


def measure(parts: Parts) -> tuple[Rows, Figures]:
    """The rows of all parts, where there is a plain path with ratios to it; and by part, what its gate found."""
    rows: Rows = {}
    checks: Figures = {}
    for name, make in parts.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        gc.collect()  # what the part before has left
        _add(make(), name, rows, checks)
    for cells in rows.values():
        others = times(cells)
        if plain := others.pop(PLAIN, None):
            cells |= {f"{PLAIN} / {column}": ratio(plain, time) for column, time in others.items()}
    return rows, checks


def _add(part: Part, name: str, rows: Rows, checks: Figures) -> None:
    if found := part.gate():
        checks[name] = found
    turns = [[seconds_of(run) for run in part.cases.values()] for _ in range(WARM_UP + part.repeats)][WARM_UP:]
    for (shown, column), seconds in zip(part.cases, zip(*turns, strict=True), strict=bool(part.cases)):
        for row in shown:
            rows.setdefault(row, {})[column] = timed(seconds)
    for row, cells in part.rows.items():
        rows.setdefault(row, {}).update(cells)
