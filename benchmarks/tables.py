"""Tables in Markdown, and what is said under them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

Figures = dict[str, Any]


def grid(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A column without a title holds names and stands to the left; figures stand to the right."""
    lines = [f"| {' | '.join(titles)} |", f"|{'|'.join('---:' if title else '---' for title in titles)}|"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines)


def interval(value: float, stderr: float, digits: int = 3) -> str:
    return f"{value:.{digits}f} ± {stderr:.{digits}f}"


def ms(timed: Figures) -> str:
    """The median, and between brackets the quartiles."""
    digits = 0 if timed["median_ms"] >= 1000 else 1 if timed["median_ms"] >= 10 else 2
    low, high = timed["quartiles_ms"]
    return f"{timed['median_ms']:,.{digits}f} ms ({low:,.{digits}f} to {high:,.{digits}f})"


def mib(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:,.1f} MiB"


def medians(figures: Figures) -> str:
    """How many samples stand behind the medians, and in which dtype they were taken."""
    counts = sorted(set(_samples(figures)))
    many = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
    return f"Medians and quartiles of {many} samples each, {figures['model']['dtype']}."


def _samples(part: Any) -> Iterator[int]:
    if isinstance(part, dict):
        if "median_ms" in part:
            yield part["samples"]
        for inner in part.values():
            yield from _samples(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from _samples(inner)


def made_by(figures: Figures) -> str:
    """Command, date, device and versions, as every file of figures has them."""
    versions = figures.get("versions") or figures["machine"]
    product = f"remanence {versions['remanence']}, " if "remanence" in versions else ""
    return (
        f"Made by `{figures['command']}`, {figures['date'][:10]}, on {device(figures)}, {product}"
        f"torch {versions['torch']}, transformers {versions['transformers']}, Python {versions['python']}."
    )


def device(figures: Figures) -> str:
    if machine := figures.get("machine"):
        threads = machine["threads"]
        return machine["gpu"] or f"{machine['cpu']} with {threads} thread{'s' * (threads > 1)}"
    return figures.get("device") or "a CPU, which was not noted"
