"""Figures as tables, in Markdown and on a terminal, and what is said under them.

A row has a name and cells, which are by column. A cell is a text, a whole number, or an object: `median` with
`quartiles` and `samples`, or `value`, alone or with `stderr`, and its `unit`.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from remanence.evaluation.harness import Report

Figures = dict[str, Any]
WIDTH = 80  # of a terminal


def grid(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A column without a title holds names and stands to the left; figures stand to the right."""
    lines = [f"| {' | '.join(titles)} |", f"|{'|'.join('---:' if title else '---' for title in titles)}|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def markdown(figures: Figures) -> str:
    if "evaluation" in figures:
        return f"{Report.from_json(figures).table('markdown')}\n\nBetween brackets: the interval that holds 95 %."
    titles, *rows = _texts(figures)
    return "\n\n".join(filter(None, [grid(titles, rows), note(figures)]))


def publish(figures: Figures, to: Path | None) -> None:
    """Print the table, and write the figures to a file."""
    if to is not None:
        to.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    show(figures)


def show(figures: Figures) -> None:
    """Print a table of at most 80 columns, of an evaluation as wide as it is."""
    if "evaluation" in figures:
        print(Report.from_json(figures).table())
        return
    titles, *rows = _texts(figures)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title in titles:
        table.add_column(title, justify="right" if title else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=WIDTH, markup=False, highlight=False).print(table, note(figures))


def _texts(figures: Figures) -> list[list[str]]:
    """Titles, and the rows under them."""
    columns = list(dict.fromkeys(column for row in figures["rows"] for column in row["cells"]))
    return [
        ["", *columns],
        *([row["name"], *(text(row["cells"].get(column)) for column in columns)] for row in figures["rows"]),
    ]


def text(cell: Any) -> str:
    if not isinstance(cell, dict):
        return "" if cell is None else f"{cell:,}" if isinstance(cell, int) else str(cell)
    unit = cell.get("unit", "")
    if "median" in cell:
        digits = _digits(cell["median"])
        low, high = cell["quartiles"]
        return f"{cell['median']:,.{digits}f} {unit} ({low:,.{digits}f} to {high:,.{digits}f})"
    said = _number(cell["value"], unit)
    return said if cell.get("stderr") is None else f"{said} ± {_number(cell['stderr'], unit)}"


def _digits(value: float) -> int:
    return 0 if value >= 1000 else 1 if value >= 10 else 2


def _number(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value / 2**20:,.1f} MiB"
    forms = {"ms": f",.{_digits(value)}f", "x": ",.2f", "x faster": ",.1f", "%": "+.1f", "loss": ".4f", "share": ".3f"}
    after = {"x": "x", "x faster": "x faster", "ms": " ms", "%": " %"}
    return f"{value:{forms.get(unit, ',g')}}{after.get(unit, '')}"


def note(figures: Figures) -> str:
    """What the figures say of themselves, and how many samples stand behind the medians."""
    cells = [cell for row in figures["rows"] for cell in row["cells"].values() if isinstance(cell, dict)]
    counts = sorted(cell["samples"] for cell in cells if "samples" in cell)
    if not counts:
        return str(figures.get("note", ""))
    many = f"{counts[0]} to {counts[-1]}" if counts[0] < counts[-1] else str(counts[0])
    return f"{figures.get('note', '')} Medians and quartiles of {many} samples each.".strip()


def interval(value: float, stderr: float, digits: int = 3) -> str:
    return f"{value:.{digits}f} ± {stderr:.{digits}f}"


def made_by(figures: Figures, now: str = "") -> str:
    """Command, date, device and versions, as every file of figures has them; `now`: the command of today."""
    versions = figures["versions"]
    product = f"remanence {versions['remanence']}, " if "remanence" in versions else ""
    return (
        f"Made by `{figures['command']}`, {figures['date'][:10]}, on {figures['device']}, {product}"
        f"torch {versions['torch']}, transformers {versions['transformers']}, Python {versions['python']}."
        f"{f' Today: `{now}`.' if now else ''}"
    )
