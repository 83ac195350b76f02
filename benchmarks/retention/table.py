"""Renew the retention table in the README from the committed figures: python benchmarks/retention/table.py"""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from readme import renew  # noqa: E402


def table(figures: dict[str, Any]) -> str:
    line = {point["distance"]: point["line"] for point in figures["survival"]}
    lines = ["| distance, in writes | pool | survival line | context | none |", "|---:|---:|---:|---:|---:|"]
    others = {name: {p["distance"]: p for p in figures["curves"].get(name, [])} for name in ("context", "none")}
    for point in figures["curves"]["pool"]:
        distance = point["distance"]
        cells = [share(point), f"{line[distance]:.3f}"]
        cells += [share(others[name][distance]) if distance in others[name] else "" for name in ("context", "none")]
        lines.append(f"| {distance} | {' | '.join(cells)} |")
    about = (
        f"Exact match with one standard error, {figures['samples']} held-out people, N = {figures['n']}, K = "
        f"{figures['k']}, {figures['attributes_per_biography']} facts per biography; guessing gets "
        f"{figures['chance']:.3f}. Made by `{figures['command']}`, {figures['date'][:10]}."
    )
    return "\n".join([*lines, "", about])


def share(point: dict[str, float]) -> str:
    return f"{point['exact_match']:.3f} ± {point['stderr']:.3f}"


if __name__ == "__main__":
    renew("retention", table(json.loads((HERE / "results.json").read_text())))
