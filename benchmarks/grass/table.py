"""Renew the tables of steps and of losses in the README from the committed figures: python benchmarks/grass/table.py"""

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


def name_of(method: str) -> str:
    if not method.startswith("grass-"):
        name, *scale = method.split("-scale")
        known = {"galore": "GaLore", "apollo": "APOLLO", "lora": "LoRA", "adamw": "AdamW"}[name]
        return known + "".join(f", {part} of the rate for linear layers" for part in scale)
    _, selection, on_refresh, *more = method.split("-")
    changed = "".join(f", {part.replace('scale', 'scale ').replace('twice', 'twice the rank')}" for part in more)
    return f"Grass, `{selection}`, `{on_refresh}`{changed}"


def quality(figures: dict[str, Any]) -> str:
    methods, setup = figures["methods"], figures["setup"]
    lines = [
        "| | test loss | against AdamW | best learning rate | gradients | optimizer state |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for method, one in methods.items():
        if "diverged" in one:
            lines.append(f"| {name_of(method)} | diverged with {one['diverged']} of {setup['seeds']} seeds | | | | |")
            continue
        cells = [
            f"{one['test']:.4f} ± {one['stderr']:.4f}",
            f"{100 * (one['test'] / methods['adamw']['test'] - 1):+.1f} %",
            f"{one['lr']:g}",
            f"{one['gradient_bytes'] / 2**20:,.1f} MiB",
            f"{one['state_bytes'] / 2**20:,.1f} MiB",
        ]
        lines.append(f"| {name_of(method)} | {' | '.join(cells)} |")
    machine = figures["machine"]
    about = (
        f"A random Llama, d {setup['size']:,}, {setup['layers']} layers, trained from scratch on {setup['tokens']:,} "
        f"tokens of Wikipedia, {setup['steps']} steps, the same for all; rank {setup['rank']}, a refresh every "
        f"{setup['gap']} steps. Learning rates were chosen on validation, from powers of two; means over "
        f"{setup['seeds']} seeds with one standard error, on documents of which no other part has any. "
        f"{figures['date']}, {machine['cpu']}, torch {machine['torch']}, transformers {machine['transformers']}."
    )
    return "\n".join([*lines, "", about])


if __name__ == "__main__":
    renew("bench:grass", table(json.loads((HERE / "step.json").read_text())))
    renew("bench:quality", quality(json.loads((HERE / "quality.json").read_text())))
