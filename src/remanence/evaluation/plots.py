"""Pictures of what was measured. The same figures give the same file, to the byte, with the same matplotlib."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from remanence.evaluation.harness import Report

_MARKERS = "os^vDP"
_NUMBERED = re.compile(r"(\D*)(\d[\d,]*)(.*)")  # `listed, 1,000 writes later`
_SHARES = ("rate", "mean", "harmonic")
_PANELS = 4  # metrics that are drawn beside each other
Point = tuple[float, float, float, float]  # x, value, low, high


def draw(report: Report, path: Path) -> None:
    """The metrics of a report by the number that its groups differ in, a line for each column, with 95 % intervals.

    Where groups differ in no number, the values stand below each other.

    Args:
        path: its suffix says the format, e.g. `.png` or `.svg`.
    """
    metrics = [one for one in report.metrics if one.shown and one.kind in _SHARES and _within_one(report, one.name)]
    metrics = metrics[:_PANELS] or list(report.metrics[:1])
    lines = {metric.name: _lines(report, metric.name) for metric in metrics}
    if all(len(points) < 2 for held in lines.values() for points in held.values()):
        name = metrics[0].name
        marks = {
            f"{row['group']}, {row['column']}": row["metrics"][name] for row in report.rows if name in row["metrics"]
        }
        marks_plot(marks, path, name, report.to_json())
        return
    figure = _figure(max(7.5, 4.2 * len(metrics) + 0.6), 4.5 if len(metrics) == 1 else 3.8)
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    columns = list(dict.fromkeys(row["column"] for row in report.rows))
    for axes, metric in zip(panels, metrics, strict=True):
        for name, points in lines[metric.name].items():
            _curve(axes, name, points, columns.index(name.partition(",")[0]))
        _survival(axes, report, lines[metric.name])
        axes.set(title=metric.name.replace("_", " "), xlabel=_unit(report), ylim=(-0.03, 1.05))
        _plain(axes)
    labels = panels[0].get_legend_handles_labels()
    figure.legend(*labels, loc="outside lower center", ncols=3, frameon=False)
    _save(figure, path, report.to_json())


def marks_plot(marks: Mapping[str, Mapping[str, float]], path: Path, xlabel: str, figures: Mapping[str, Any]) -> None:
    """Draw one figure per name, below each other: `value`, and the interval from `low` to `high`.

    Args:
        figures: what they were taken from.
    """
    figure = _figure(7.5, 0.9 + 0.28 * len(marks))
    axes = figure.add_subplot()
    values, *ends = zip(*((one["value"], one["low"], one["high"]) for one in marks.values()), strict=True)
    axes.errorbar(values, list(marks), xerr=_errors(values, *ends), color="#1f5fa8", ls="none", marker="o")
    axes.invert_yaxis()
    axes.set(xlabel=xlabel.replace("_", " "))
    axes.margins(y=0.1)
    _plain(axes)
    _save(figure, path, figures)


def digest(figures: Mapping[str, Any]) -> str:
    """What a picture carries in its description, so that it can be told which figures it shows."""
    return hashlib.sha256(json.dumps(figures, sort_keys=True).encode()).hexdigest()[:16]


def _within_one(report: Report, metric: str) -> bool:
    return all(0 <= row["metrics"][metric]["value"] <= 1 for row in report.rows if metric in row["metrics"])


def _lines(report: Report, metric: str) -> dict[str, list[Point]]:
    """Points by line: a column, and what a group's name says besides its number, where groups differ in that."""
    found: dict[tuple[str, str, str], list[Point]] = {}
    for row in report.rows:
        if metric in row["metrics"] and (place := _NUMBERED.fullmatch(row["group"])):
            front, number, unit = place.groups()
            figure, key = row["metrics"][metric], (row["column"], front.strip(" ,"), unit.strip().removesuffix("s"))
            x = float(number.replace(",", ""))
            found.setdefault(key, []).append((x, figure["value"], figure["low"], figure["high"]))
    alike = len({key[1:] for key in found}) == 1
    return {
        column if alike else f"{column}, {front or unit}": points for (column, front, unit), points in found.items()
    }


def _unit(report: Report) -> str:
    """What the numbers of groups count."""
    return next(place[3].strip() for row in report.rows[::-1] if (place := _NUMBERED.fullmatch(row["group"])))


def _survival(axes: Axes, report: Report, lines: Mapping[str, Sequence[Point]]) -> None:
    """Of retention: the share of a write's slots that outlive t more writes, from the score at distance 0; chance."""
    if "slots_per_write" not in report.settings:
        return
    n, k = report.settings["slots"], report.settings["slots_per_write"]
    label: str | None = r"survival of a slot, $a_0(1-K/N)^t$"
    for name, points in lines.items():
        if name.startswith("pool") and points[0][0] == 0:
            grid = [points[-1][0] * step / 200 for step in range(201)]
            axes.plot(grid, [points[0][1] * (1 - k / n) ** t for t in grid], label=label, color="black", ls="-.", lw=1)
            label = None
    chances = [one["chance"] for one in report.settings.values() if isinstance(one, dict) and "chance" in one]
    if chances:
        axes.axhline(chances[0], label="chance", color="black", linestyle=":", linewidth=1)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _curve(axes: Axes, name: str, points: Sequence[Point], place: int) -> None:
    x, value, low, high = zip(*points, strict=True)
    errors = _errors(value, low, high)
    line, marker = "--" if name.endswith("unlisted") else "-", _MARKERS[place % len(_MARKERS)]
    axes.errorbar(x, value, yerr=errors, label=name, color=f"C{place}", marker=marker, ms=4.5, ls=line, capsize=2.5)
    if min(x) > 0 and max(x) / min(x) > 20:
        axes.set_xscale("log")


def _errors(values: Sequence[float], low: Sequence[float], high: Sequence[float]) -> list[list[float]]:
    """As matplotlib takes them: never negative, as an end that is rounded may be."""
    ends = ((value - a, b - value) for value, a, b in zip(values, low, high, strict=True))
    return [[max(0.0, one) for one in side] for side in zip(*ends, strict=True)]


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path, figures: Mapping[str, Any]) -> None:
    metadata: dict[str, Any] = {"Description": digest(figures)}
    if path.suffix == ".svg":
        metadata["Date"] = None
    with matplotlib.rc_context({"svg.hashsalt": "remanence", "svg.fonttype": "none"}):
        figure.savefig(path, dpi=150, metadata=metadata)
