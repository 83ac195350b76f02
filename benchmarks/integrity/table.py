"""The newest fact, window by window; where there are many windows, tenth by tenth of all writes."""

from dataclasses import dataclass
from math import ceil

from remanence.evaluation.intervals import share_text
from tables import Figures, grid

_MOST_ROWS = 20


@dataclass(frozen=True)
class Row:
    """Some windows that follow each other: writes when the last was over, and what they say together."""

    writes: int
    exact_match: float
    samples: int
    resident_bytes: int


def rows(figures: Figures) -> list[Row]:
    windows = figures["windows"]
    each = 1 if len(windows) <= _MOST_ROWS else ceil(len(windows) / 10)
    return [_together(windows[start : start + each]) for start in range(0, len(windows), each)]


def _together(windows: list[Figures]) -> Row:
    samples = sum(window["samples"] for window in windows)
    share = sum(window["exact_match"] * window["samples"] for window in windows) / samples
    most = max(window["resident_bytes"] for window in windows)
    return Row(windows[-1]["writes"], share, samples, most)


def table(figures: Figures) -> str:
    lines = [
        (f"{row.writes:,}", share_text(row.exact_match, row.samples), f"{row.resident_bytes / 2**20:.0f} MiB")
        for row in rows(figures)
    ]
    windows = figures["windows"]
    about = (
        f"One memory; {figures['questions']} questions in every {windows[0]['writes']:,} writes, each about the "
        f"biography that was just written, and the interval that holds 95 %. N = {figures['n']}, K = {figures['k']}."
    )
    return "\n".join([grid(("writes", "newest fact recalled", "resident memory"), lines), "", about])
