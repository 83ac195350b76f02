"""Pictures of what was measured."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_STYLES = {
    "pool": ("through memory", "#1f5fa8", "o"),
    "longterm": ("pool and long-term memory", "#8e44ad", "D"),
    "context": ("text in context", "#2a8c5a", "s"),
    "none": ("neither", "#8a8a8a", "^"),
    "fact": ("that text alone in context", "#d68910", "v"),
    "bm25": ("passages found by BM25 in context", "#7b5c3e", "P"),
}


def retention_plot(report: Mapping[str, Any], path: Path, title: str | None = None) -> None:
    """Draw curves with error bars (one standard error), the survival line, and chance if it is known.

    Args:
        report: as `measure` returns it.
        path: its suffix says the format, e.g. `.png` or `.svg`.
    """
    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    drawn: list[Any] = []
    score, asked = report.get("score", "exact_match"), "questions" if "data" in report else "people"
    for condition, points in report["curves"].items():
        label, colour, marker = _STYLES[condition]
        if condition == "pool" and "longterm" in report["curves"]:
            label = "pool alone"
        curve = axes.errorbar(
            _column(points, "distance"),
            _column(points, score),
            yerr=_column(points, "stderr"),
            label=label,
            color=colour,
            marker=marker,
            markersize=4.5,
            linewidth=1.8,
            capsize=2.5,
        )
        drawn.append(curve)
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
        ylim=(-0.03, 1.05),
    )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(handles=drawn, frameon=False)
    figure.savefig(path, dpi=150, metadata={"Date": None} if path.suffix == ".svg" else None)


def _column(points: Sequence[Mapping[str, float]], name: str) -> list[float]:
    return [point[name] for point in points]
