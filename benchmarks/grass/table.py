"""Renew the table of training steps in the README from the committed figures: python benchmarks/grass/table.py"""

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from readme import measured_on, renew  # noqa: E402

NAMES = {"adamw": "AdamW (torch)", "grass": "Grass", "galore": "GaLore (galore-torch)"}


def table(figures: dict[str, Any]) -> str:
    methods, model = figures["methods"], figures["model"]
    lines = [
        "| | step | refresh adds | a step, refreshes counted | Grass takes | gradients | optimizer state |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for key, name in NAMES.items():
        one = methods[key]
        share = "" if key == "grass" else f"{figures['grass_against'][key]:.2f}x"
        cells = [
            f"{one['median_ms']:,.0f} ms",
            f"{one['refresh_extra_ms']:,.0f} ms" if one["refresh_extra_ms"] else "",
            f"{one['amortised_ms']:,.0f} ms",
            share,
            f"{one['gradient_bytes'] / 2**20:,.1f} MiB",
            f"{one['state_bytes'] / 2**20:,.1f} MiB",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    about = (
        f"{model['layers']} Llama blocks, d {model['size']:,}, {model['tokens']:,} tokens, rank {model['rank']}, "
        f"a refresh every {model['gap']} steps. {measured_on(figures)}"
    )
    return "\n".join([*lines, "", about])


if __name__ == "__main__":
    renew("bench:grass", table(json.loads((HERE / "step.json").read_text())))
