"""Pictures of what was measured. The same figures give the same file, to the byte, with the same matplotlib."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Report = Mapping[str, Any]

_STYLES = {
    "pool": ("through memory", "#1f5fa8", "o"),
    "longterm": ("pool and long-term memory", "#8e44ad", "D"),
    "context": ("text in context", "#2a8c5a", "s"),
    "none": ("neither", "#8a8a8a", "^"),
    "fact": ("that text alone in context", "#d68910", "v"),
    "bm25": ("passages found by BM25 in context", "#7b5c3e", "P"),
    "memory": ("written into memory", "#1f5fa8", "o"),
    "ft": ("fine-tuning (FT)", "#c0392b", "D"),
    "ft_all": ("fine-tuning, all layers", "#d68910", "v"),
    "ft_l": ("fine-tuning, bounded (FT-L)", "#7b5c3e", "P"),
}
_METRICS = ("efficacy", "generalisation", "specificity")


def retention_plot(report: Report, path: Path, title: str | None = None) -> None:
    """Draw curves with error bars (one standard error), the survival line, and chance if it is known.

    Args:
        report: as `measure` returns it.
        path: its suffix says the format, e.g. `.png` or `.svg`.
    """
    figure = _figure(7.5, 4.5)
    axes = figure.add_subplot()
    drawn: list[Any] = []
    score, asked = report.get("score", "exact_match"), "questions" if "data" in report else "people"
    for condition, points in report["curves"].items():
        alone = condition == "pool" and "longterm" in report["curves"]
        label = "pool alone" if alone else None
        drawn.append(_curve(axes, condition, points, "distance", score, "stderr", label))
    for condition, points in report.get("unlisted", {}).get("curves", {}).items():
        if condition == "pool":
            drawn.append(_curve(axes, condition, points, "distance", score, "stderr", "pool, unlisted people", ":"))
    if report["survival"]:
        n, k = report["n"], report["k"]
        last = report["survival"][-1]["distance"]
        a0 = report["survival"][0]["line"]
        grid = [last * i / 200 for i in range(201)]
        drawn += axes.plot(
            grid,
            [a0 * (1 - k / n) ** t for t in grid],
            label=r"survival of a slot, $a_0(1-K/N)^t$",
            color="#c0392b",
            linestyle="--",
            linewidth=1.4,
        )
    if "chance" in report:
        drawn.append(axes.axhline(report["chance"], label="chance", color="black", linestyle=":", linewidth=1))
    axes.set(
        title=title or f"Retention: N = {report['n']} slots, K = {report['k']} per write, {report['samples']} {asked}",
        xlabel="distance (writes since the fact was written)",
        ylabel=score.replace("_", " "),
    )
    _plain(axes)
    axes.legend(handles=drawn, frameon=False)
    _save(figure, path, report)


def editing_plot(report: Report, path: Path) -> None:
    """Draw efficacy, generalisation and specificity of each method by the number of edits, with standard errors."""
    figure = _figure(9, 3.6)
    panels = figure.subplots(1, len(_METRICS), sharey=True)
    for axes, metric in zip(panels, _METRICS, strict=True):
        for method in dict.fromkeys(result["method"] for result in report["results"]):
            points = [
                {"edits": result["edits"], **result[metric]}
                for result in report["results"]
                if result["method"] == method and result[metric]
            ]
            _curve(axes, method, points, "edits", "rate", "stderr", "no edit" if method == "none" else None)
        axes.set(title=metric, xlabel="edits, one after another", xscale="log")
        _plain(axes)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    _save(figure, path, report)


def longcontext_plot(report: Report, path: Path) -> None:
    """Draw F1 and exact match under each condition by the length of the document, with standard errors."""
    figure = _figure(9, 3.8)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, score in zip(panels, ("f1", "exact_match"), strict=True):
        for condition, points in report["points"].items():
            known = [point for point in points if point["length"] is not None]
            _curve(axes, condition, known, "length", score, f"{score}_stderr")
        axes.set(title=score.replace("_", " "), xlabel="length of the document (tokens)", xscale="log")
        _plain(axes)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    _save(figure, path, report)


def integrity_plot(report: Report, path: Path) -> None:
    """Draw how often the newest fact was recalled, window by window, with standard errors."""
    figure = _figure(7.5, 3)
    axes = figure.add_subplot()
    _curve(axes, "pool", report["windows"], "writes", "exact_match", "stderr")
    axes.set(xlabel="writes into one memory", ylabel="newest fact recalled")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    _plain(axes)
    _save(figure, path, report)


def perplexity_plot(report: Report, path: Path) -> None:
    """Draw how many times the perplexity behind an empty memory that behind another is, with standard errors."""
    ratios = {name: (one["ratio"], one["ratio_stderr"]) for name, one in report["conditions"].items()}
    marks_plot(ratios, path, "perplexity, times that behind an empty memory", report)


def marks_plot(marks: Mapping[str, tuple[float, float]], path: Path, xlabel: str, report: Report) -> None:
    """Draw one figure per name, below each other: a value and its standard error.

    Args:
        report: what they were taken from.
    """
    figure = _figure(7.5, 0.9 + 0.28 * len(marks))
    axes = figure.add_subplot()
    values, errors = zip(*marks.values(), strict=True)
    axes.errorbar(values, list(marks), xerr=errors, color="#1f5fa8", linestyle="none", marker="o", capsize=2.5)
    axes.invert_yaxis()
    axes.set(xlabel=xlabel)
    axes.margins(y=0.1)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    _save(figure, path, report)


def digest(report: Report) -> str:
    """What a picture carries in its description, so that it can be told which figures it shows."""
    return hashlib.sha256(json.dumps(report, sort_keys=True).encode()).hexdigest()[:16]


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _curve(
    axes: Axes,
    condition: str,
    points: Sequence[Mapping[str, float]],
    x: str,
    y: str,
    error: str,
    label: str | None = None,
    line: str = "-",
) -> Any:
    usual, colour, marker = _STYLES[condition]
    return axes.errorbar(
        [point[x] for point in points],
        [point[y] for point in points],
        yerr=[point[error] for point in points],
        label=label or usual,
        color=colour,
        marker=marker,
        markersize=4.5,
        linewidth=1.8,
        linestyle=line,
        capsize=2.5,
    )


def _plain(axes: Axes) -> None:
    axes.set_ylim(-0.03, 1.05)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _save(figure: Figure, path: Path, report: Report) -> None:
    metadata: dict[str, Any] = {"Description": digest(report)}
    if path.suffix == ".svg":
        metadata["Date"] = None
    with matplotlib.rc_context({"svg.hashsalt": "remanence", "svg.fonttype": "none"}):
        figure.savefig(path, dpi=150, metadata=metadata)
