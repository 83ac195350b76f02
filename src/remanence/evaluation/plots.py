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

_COLOURS = {
    "pool": ("#1f5fa8", "o"),
    "longterm": ("#8e44ad", "D"),
    "slots": ("#1f5fa8", "o"),
    "fits": ("#2a8c5a", "s"),
    "nothing": ("#8a8a8a", "^"),
    "oracle": ("#d68910", "v"),
    "bm25_4": ("#7b5c3e", "P"),
    "ft": ("#c0392b", "D"),
    "ft_all": ("#d68910", "v"),
    "ft_l": ("#7b5c3e", "P"),
}
_OTHERS = ("#1f5fa8", "#8e44ad", "#2a8c5a", "#d68910", "#c0392b", "#7b5c3e", "#8a8a8a")
_NUMBER = re.compile(r"\d[\d,]*")
_SHARES = ("rate", "mean", "harmonic")
_PANELS = 4  # metrics that are drawn beside each other
Point = tuple[float, float, float, float]  # x, value, low, high


def draw(report: Report, path: Path) -> None:
    """The metrics of a report by the number that its groups differ in, a line for each column, with 95 % intervals.

    Where groups differ in no number, the values stand below each other.

    Args:
        path: its suffix says the format, e.g. `.png` or `.svg`.
    """
    metrics = [metric for metric in report.metrics if metric.kind in _SHARES and _within_one(report, metric.name)]
    metrics = metrics[:_PANELS] or list(report.metrics[:1])
    lines = {metric.name: _lines(report, metric.name) for metric in metrics}
    if all(len(points) < 2 for held in lines.values() for points in held.values()):
        name = metrics[0].name
        marks = {
            f"{row['group']}, {row['column']}": row["metrics"][name] for row in report.rows if name in row["metrics"]
        }
        marks_plot(marks, path, name, report.to_json())
        return
    figure = _figure(4.2 * len(metrics) + 0.6, 4.5 if len(metrics) == 1 else 3.8)
    panels = figure.subplots(1, len(metrics), sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=True):
        for place, (name, points) in enumerate(lines[metric.name].items()):
            _curve(axes, name, points, place)
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
    held = list(marks.values())
    errors = [[one["value"] - one["low"] for one in held], [one["high"] - one["value"] for one in held]]
    axes.errorbar([one["value"] for one in held], list(marks), xerr=errors, color="#1f5fa8", ls="none", marker="o")
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
    kinds = {_NUMBER.sub("", row["group"]).split(",")[0] for row in report.rows}
    lines: dict[str, list[Point]] = {}
    for row in report.rows:
        if metric in row["metrics"] and (number := _NUMBER.search(row["group"])):
            figure = row["metrics"][metric]
            kind = _NUMBER.sub("", row["group"]).split(",")[0]
            name = row["column"] if len(kinds) == 1 else f"{row['column']}, {kind}"
            point = (float(number[0].replace(",", "")), figure["value"], figure["low"], figure["high"])
            lines.setdefault(name, []).append(point)
    return lines


def _unit(report: Report) -> str:
    """What the numbers of groups count."""
    return _NUMBER.sub("", report.rows[0]["group"]).split(",")[-1].strip()


def _survival(axes: Axes, report: Report, lines: Mapping[str, Sequence[Point]]) -> None:
    """Of retention: the share of a write's slots that outlive t more writes, from the score at distance 0; chance."""
    if "slots_per_write" not in report.settings:
        return
    n, k = report.settings["slots"], report.settings["slots_per_write"]
    for name, points in lines.items():
        if name.startswith("pool") and points[0][0] == 0:
            grid = [points[-1][0] * step / 200 for step in range(201)]
            line = [points[0][1] * (1 - k / n) ** t for t in grid]
            label = r"survival of a slot, $a_0(1-K/N)^t$" if name == next(iter(lines)) else None
            axes.plot(grid, line, label=label, color="#c0392b", linestyle="--", linewidth=1.4)
    chances = [one["chance"] for one in report.settings.values() if isinstance(one, dict) and "chance" in one]
    if chances:
        axes.axhline(chances[0], label="chance", color="black", linestyle=":", linewidth=1)


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _curve(axes: Axes, name: str, points: Sequence[Point], place: int) -> None:
    column, _, kind = name.partition(",")
    colour, marker = _COLOURS.get(column, (_OTHERS[place % len(_OTHERS)], "o"))
    x, value, low, high = zip(*points, strict=True)
    errors = [[v - e for v, e in zip(value, low, strict=True)], [e - v for v, e in zip(value, high, strict=True)]]
    line = ":" if "unlisted" in kind else "-"
    axes.errorbar(x, value, yerr=errors, label=name, color=colour, marker=marker, ms=4.5, lw=1.8, ls=line, capsize=2.5)
    if min(x) > 0 and max(x) / min(x) > 20:
        axes.set_xscale("log")


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path, figures: Mapping[str, Any]) -> None:
    metadata: dict[str, Any] = {"Description": digest(figures)}
    if path.suffix == ".svg":
        metadata["Date"] = None
    with matplotlib.rc_context({"svg.hashsalt": "remanence", "svg.fonttype": "none"}):
        figure.savefig(path, dpi=150, metadata=metadata)
