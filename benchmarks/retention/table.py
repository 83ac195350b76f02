"""Renew the retention tables in the README from the committed figures: python benchmarks/retention/table.py"""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from readme import renew  # noqa: E402

NAMES = {"longterm": "pool and long-term", "pool": "pool", "context": "context", "none": "none"}


def table(figures: dict[str, Any]) -> str:
    line = {point["distance"]: point["line"] for point in figures["survival"]}
    curves = {name: {p["distance"]: p for p in figures["curves"][name]} for name in NAMES if name in figures["curves"]}
    names = [NAMES[name] for name in curves]
    lines = [f"| distance, in writes | {' | '.join(names)} | survival line |", "|---:" * (len(names) + 2) + "|"]
    for distance in next(iter(curves.values())):
        cells = [share(curve[distance]) for curve in curves.values()]
        lines.append(f"| {distance} | {' | '.join(cells)} | {line[distance]:.3f} |")
    about = (
        f"Exact match with one standard error, {figures['samples']} held-out people, N = {figures['n']}, K = "
        f"{figures['k']}, {figures['attributes_per_biography']} facts per biography; guessing gets "
        f"{figures['chance']:.3f}. Made by `{figures['command']}`, {figures['date'][:10]}."
    )
    return "\n".join([*lines, "", about])


def also(int8: dict[str, Any], far: dict[str, Any]) -> str:
    """The curve with int8 slots, and the one that goes on to a hundred pools."""
    lines = ["| | distance, in writes | pool and long-term |", "|---|---:|---:|"]
    for about, figures in (("long-term slots as int8", int8), (f"far, {far['samples']} people", far)):
        lines += [f"| {about} | {point['distance']:,} | {share(point)} |" for point in figures["curves"]["longterm"]]
    made = " and ".join(f"`{figures['command']}`" for figures in (int8, far))
    return "\n".join([*lines, "", f"Made by {made}, {far['date'][:10]}."])


def retrieval(figures: dict[str, Any]) -> str:
    layers = len(figures["points"][0]["layers"])
    head = " | ".join(f"layer {layer}" for layer in range(layers))
    lines = [f"| distance | slots per layer | all layers | {head} | by chance |", "|---:" * (layers + 4) + "|"]
    for point in figures["points"]:
        shares = " | ".join(f"{share:.2f}" for share in point["layers"])
        mean = f"{point['share']:.3f} ± {point['stderr']:.3f}"
        lines.append(f"| {point['distance']} | {point['longterm']:,} | {mean} | {shares} | {point['random']:.3f} |")
    about = (
        f"Share of the slots of the write asked about that are among the K0 = {figures['k0']} retrieved, "
        f"{figures['samples']} held-out people. Made by `{figures['command']}`, {figures['date'][:10]}."
    )
    return "\n".join([*lines, "", about])


def share(point: dict[str, float]) -> str:
    return f"{point['exact_match']:.3f} ± {point['stderr']:.3f}"


if __name__ == "__main__":
    renew("retention", table(json.loads((HERE / "results.json").read_text())))
    renew("retention:longterm", table(json.loads((HERE / "longterm.json").read_text())))
    names = ("longterm_int8", "longterm_far")
    renew("retention:also", also(*(json.loads((HERE / f"{name}.json").read_text()) for name in names)))
    renew("retrieval", retrieval(json.loads((HERE / "retrieval.json").read_text())))
