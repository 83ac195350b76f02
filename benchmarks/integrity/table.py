"""Renew the integrity table in the README from the committed figures: python benchmarks/integrity/table.py"""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from readme import renew  # noqa: E402


def table(figures: dict[str, Any]) -> str:
    lines = ["| writes | newest fact recalled | resident memory |", "|---:|---:|---:|"]
    lines += [
        f"| {window['writes']:,} | {window['exact_match']:.3f} ± {window['stderr']:.3f} | "
        f"{window['resident_bytes'] / 2**20:.0f} MiB |"
        for window in figures["windows"]
    ]
    first = figures["windows"][0]
    about = (
        f"One memory; in each window {first['samples']} questions about the biography that was just written. "
        f"N = {figures['n']}, K = {figures['k']}. Made by `{figures['command']}`, {figures['date'][:10]}."
    )
    return "\n".join([*lines, "", about])


if __name__ == "__main__":
    renew("integrity", table(json.loads((HERE / "results.json").read_text())))
