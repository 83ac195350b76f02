"""The README's tables are made from committed figures; this puts one between its markers."""

from pathlib import Path
from typing import Any

README = Path(__file__).parent.parent / "README.md"


def renew(marker: str, table: str) -> None:
    start, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
    before, rest = README.read_text().split(start)
    _, after = rest.split(end)
    README.write_text(f"{before}{start}\n{table}\n{end}{after}")


def ms(timed: dict[str, Any]) -> str:
    return f"{timed['median_ms']:.{1 if timed['median_ms'] >= 10 else 2}f} ms"


def measured_on(figures: dict[str, Any]) -> str:
    machine = figures["machine"]
    return (
        f"Medians, {figures['date']}, {machine['cpu']}, {machine['threads']} threads, {figures['model']['dtype']}, "
        f"torch {machine['torch']}, transformers {machine['transformers']}."
    )
