"""How a benchmark's times are taken: what is fast has to agree with what is plain first, then they are timed in turns.

Each turn runs every case once, so that a machine that is busy for a while slows all alike. Two turns warm up.
"""

import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tables import Figures

OURS, PLAIN = "Remanence", "plain path"  # columns
WARM_UP = 2

Cells = dict[str, Any]  # by column; what they are: tables.py
Rows = dict[str, Cells]


@dataclass(frozen=True)
class Case:
    """
    Attributes:
        rows: of the table that show it; what several are compared with stands in each of them.
        column: of the table.
        run: is timed; a float that it returns are the seconds that count.
    """

    rows: Sequence[str]
    column: str
    run: Callable[[], Any]


@dataclass(frozen=True)
class Part:
    """What is timed in turns.

    Attributes:
        gate: called before; raises Disagreement, or tells what it found.
        repeats: turns, after those that warm up.
        rows: of figures that are no times.
    """

    cases: Sequence[Case] = ()
    repeats: int = 0
    gate: Callable[[], Figures] = dict
    rows: Rows = field(default_factory=dict)


Parts = Mapping[str, Callable[[], Part]]  # by name, what sets them up


@dataclass(frozen=True)
class Other:
    """The same benchmark at another commit.

    Attributes:
        name: of the commit; ask: given a part's name sets it up there; given "", runs its cases once: seconds.
    """

    name: str
    ask: Callable[[str], Sequence[float]]


class Disagreement(Exception):
    """What would be timed does not do what it should."""


def agree(what: str, mine: Tensor, plain: Tensor) -> Figures:
    """The largest difference between two results.

    Raises:
        Disagreement: it is more than rounding: 0.01 % of the largest number in float32, 10 % in half precision.
    """
    apart = float((mine.float() - plain.float().to(mine.device)).abs().max())
    limit = (1e-4 if mine.dtype == torch.float32 else 0.1) * float(plain.abs().max())
    require(apart <= limit, f"{what}: {apart:.3g} apart, and rounding explains {limit:.3g}")
    return {"largest_difference": apart}


def require(holds: bool, otherwise: str) -> None:
    """
    Raises:
        Disagreement: it does not hold.
    """
    if not holds:
        raise Disagreement(f"{otherwise}; nothing was timed")


def now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def turn(cases: Sequence[Case]) -> list[float]:
    """Seconds of each case, run once."""
    seconds = []
    for case in cases:
        start = now()
        own = _own(case.run())
        seconds.append(now() - start if own is None else own)
    return seconds


def _own(result: Any) -> float | None:
    """Another result is let go here, inside the time that is taken."""
    return result if isinstance(result, float) else None


def timed(seconds: Sequence[float]) -> Cells:
    low, middle, high = (round(1e3 * cut, 4) for cut in statistics.quantiles(seconds, n=4, method="inclusive"))
    mean = round(1e3 * statistics.mean(seconds), 4)
    return {"median": middle, "quartiles": [low, high], "mean": mean, "samples": len(seconds), "unit": "ms"}


def ratio(many: float, few: float) -> Cells:
    return {"value": round(many / few, 6), "unit": "x"}


def against(rows: Rows, many: str, few: str, kind: str = "median") -> Cells:
    """How many times one row takes what another takes, by column; nothing where a row was not measured."""
    first, second = (_of(rows.get(name, {}), kind) for name in (few, many))
    return {column: ratio(second[column], first[column]) for column in second if column in first}


def _of(cells: Cells, kind: str) -> dict[str, float]:
    return {column: cell[kind] for column, cell in cells.items() if isinstance(cell, dict) and kind in cell}


def measure(parts: Parts, baseline: str = PLAIN, other: Other | None = None) -> tuple[Rows, Figures]:
    """The rows of all parts and, by part, what its gate found.

    Beside the time of a case stands its ratio to the baseline, which is a column; with another commit, the rows are the
    cases, and beside the time of each stands the other's.
    """
    rows: Rows = {}
    checks: Figures = {}
    for name, make in parts.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        found, more = _part(name, make, other)
        checks |= {name: found} if found else {}
        for row, cells in more.items():
            rows.setdefault(row, {}).update(cells)
    for cells in rows.values():
        times = _of(cells, "median")
        if plain := times.pop(baseline, None):
            cells |= {f"{baseline} / {column}": ratio(plain, time) for column, time in times.items()}
    return rows, checks


def _part(name: str, make: Callable[[], Part], other: Other | None) -> tuple[Figures, Rows]:
    """What its gate found, and its rows. Nothing of it is left when the next part is made."""
    part = make()
    found, rows, count = part.gate(), Rows(), len(part.cases)
    if other is not None:
        if not count:
            return found, {}
        other.ask(name)
    turns = [[*turn(part.cases), *(other.ask("") if other else ())] for _ in range(WARM_UP + part.repeats)]
    samples = [timed(seconds) for seconds in zip(*turns[WARM_UP:], strict=True)] if count else []
    if other is not None:
        both = zip(part.cases, samples[:count], samples[count:], strict=True)
        return found, {
            f"{case.rows[0]}, {case.column}": {
                "now": mine,
                other.name: theirs,
                f"{other.name} / now": ratio(theirs["median"], mine["median"]),
            }
            for case, mine, theirs in both
        }
    for case, sample in zip(part.cases, samples, strict=True):
        for row in case.rows:
            rows.setdefault(row, {})[case.column] = sample
    for row, cells in part.rows.items():
        rows.setdefault(row, {}).update(cells)
    return found, rows
