"""Figures as tables, in Markdown and on a terminal, and what is said under them.

A row has a name and cells, which are by column. A cell is a text, a whole number, or an object: `median` with
`quartiles` and `samples`, or `value`, alone or with `stderr`, and its `unit`.
"""

import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from remanence.evaluation.harness import Report, grid

Figures = dict[str, Any]
Rows = dict[str, Figures]  # cells by row and column
UNITS = {  # how a number is shown, and what stands behind it
    "ms": (",.{digits}f", " ms"),
    "x": (",.2f", "x"),
    "x faster": (",.1f", "x faster"),
    "%": ("+.1f", " %"),
    "loss": (".4f", ""),
    "share": (".3f", ""),
}


def publish(figures: Figures, to: Path | None) -> None:
    """Print the table, of at most 80 columns, and write the figures to a file."""
    if to is not None:
        to.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    if "evaluation" in figures:
        print(Report.from_json(figures).table())
        return
    titles, *rows = lines(figures)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for title in titles:
        table.add_column(title, justify="right" if title else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    Console(width=80, markup=False, highlight=False).print(table, note(figures))


def markdown(figures: Figures) -> str:
    if "evaluation" in figures:
        return f"{Report.from_json(figures).table('markdown')}\n\nBetween brackets: the interval that holds 95 %."
    titles, *rows = lines(figures)
    return "\n\n".join(filter(None, [grid(titles, rows), note(figures)]))


def lines(figures: Figures) -> list[list[str]]:
    """Titles, and the rows under them."""
    columns = list(dict.fromkeys(column for row in figures["rows"] for column in row["cells"]))
    rows = [[row["name"], *(text(row["cells"].get(column)) for column in columns)] for row in figures["rows"]]
    return [["", *columns], *rows]


def cell(value: float | None, unit: str) -> Figures | None:
    return None if value is None else {"value": value, "unit": unit}


def listed(rows: Rows) -> list[Figures]:
    """As they stand in a file."""
    return [{"name": row, "cells": cells} for row, cells in rows.items() if cells]


def text(cell: Any) -> str:
    if not isinstance(cell, dict):
        return "" if cell is None else f"{cell:,}" if isinstance(cell, int) else str(cell)
    value: Any = cell.get("median", cell.get("value"))
    if cell.get("unit") == "bytes":
        return f"{value / 2**20:,.1f} MiB"
    form, after = UNITS.get(cell.get("unit", ""), (",g", ""))
    form = form.format(digits=0 if value >= 1000 else 1 if value >= 10 else 2)
    said = f"{value:{form}}{after}"
    if "quartiles" in cell:
        low, high = cell["quartiles"]
        return f"{said} ({low:{form}} to {high:{form}})"
    return said if cell.get("stderr") is None else f"{said} ± {cell['stderr']:{form}}"


def note(figures: Figures) -> str:
    """What the figures say of themselves, and how many samples stand behind the medians."""
    cells = [cell for row in figures["rows"] for cell in row["cells"].values() if isinstance(cell, dict)]
    counts = sorted({cell["samples"] for cell in cells if "samples" in cell})
    many = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else "".join(map(str, counts))
    medians = f"Medians and quartiles of {many} samples each." if counts else ""
    return f"{figures.get('note', '')} {medians}".strip()


def made_by(figures: Figures, now: str = "") -> str:
    """Command, date, device and versions, as every file of figures has them; `now`: the command of today."""
    versions = figures["versions"]
    product = f"remanence {versions['remanence']}, " if "remanence" in versions else ""
    return (
        f"Made by `{figures['command']}`, {figures['date'][:10]}, on {figures['device']}, {product}"
        f"torch {versions['torch']}, transformers {versions['transformers']}, Python {versions['python']}."
        f"{f' Today: `{now}`.' if now else ''}"
    )
