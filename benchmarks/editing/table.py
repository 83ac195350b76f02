"""Renew the editing table in the README from the committed figures: python benchmarks/editing/table.py"""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from readme import renew  # noqa: E402

METHODS = {
    "none": "no edit",
    "memory": "written into memory",
    "context": "in context",
    "ft": "fine-tuning (FT)",
    "ft_all": "fine-tuning, all layers",
    "ft_l": "fine-tuning, bounded (FT-L)",
}
METRICS = ("efficacy", "generalisation", "specificity")


def table(figures: dict[str, Any]) -> str:
    lines = [
        "| edits | | asked | efficacy | generalisation | specificity | score |",
        "|---:|---|---:|---:|---:|---:|---:|",
    ]
    for result in figures["results"]:
        cells = [f"{result[name]['rate']:.3f} ± {result[name]['stderr']:.3f}" for name in METRICS]
        row = [
            f"{result['edits']:,}",
            METHODS[result["method"]],
            f"{result['samples']:,}",
            *cells,
            f"{result['score']:.3f}",
        ]
        lines.append(f"| {' | '.join(row)} |")
    about = (
        f"Exact match with one standard error. N = {figures['n']}, K = {figures['k']}; fine-tuning at "
        f"{figures['rate']:g}, at most {figures['steps']} steps an edit, FT-L at most {figures['bound']:g} a weight. "
        f"Made by `{figures['command']}`, {figures['date'][:10]}."
    )
    return "\n".join([*lines, "", about])


if __name__ == "__main__":
    renew("editing", table(json.loads((HERE / "results.json").read_text())))
