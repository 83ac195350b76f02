"""The small recipe, a piece at a time: how fast it trains, and how its losses fall.

    python benchmarks/gpu/small.py --output runs/small --minutes 8 --json benchmarks/gpu/small.json

Give it the same command again until `steps_left` is 0; each adds a piece to the figures. The text, or tokens of it that
are in the output folder already, are what the recipe `small` says. `--cpu` takes the model as it is to a CPU, where
`--steps` and `--scale` make the run shorter and its batches smaller.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu.common import device_of, peak, smoking, write_down
from remanence.recipes import small as recipe
from tables import Figures

TINY = {"num_hidden_layers": 1, "hidden_size": 32, "intermediate_size": 48, "head_dim": 8, "num_attention_heads": 4}
TINY["num_key_value_heads"] = 4
FIGURES = ("loss", "language_loss", "context_loss", "memory_loss", "memory_exact_match", "level")
KEPT, ROWS = 100, 5  # points of the curve, and rows of the table, at most
COLUMNS = {
    "language_loss": "plain text",
    "context_loss": "text in context",
    "memory_loss": "through memory",
    "memory_exact_match": "answers right through memory",
}


def main(arguments: list[str] | None = None) -> None:
    named = smoking(argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter))
    named.add_argument("--json", type=Path, help="where the figures go, and where those of earlier pieces are")
    named.add_argument("--output", type=Path, default=Path("runs/small"), help="folder of the run")
    named.add_argument("--minutes", type=float, help="for this piece; default: until it has ended")
    named.add_argument("--steps", type=int, default=8000, help="of the whole run")
    named.add_argument("--scale", type=float, default=1.0, help="of a batch")
    named.add_argument("--cpu", action="store_true", help="train on the CPU")
    options = named.parse_args(arguments)
    if options.smoke:
        recipe.SHAPE, recipe.VOCABULARY = TINY, 1000
        recipe.READ, recipe.CHUNKS, recipe.ROWS, recipe.QUESTIONS = 512, 8, 4, 16
    device = "cpu" if options.cpu else device_of(options)
    before = steps_of(options.output)
    start = time.perf_counter()
    recipe.train(options.output, resume=True, minutes=options.minutes, steps=options.steps, scale=options.scale)
    log = json.loads((options.output / "training_log.json").read_text())
    seconds = time.perf_counter() - start
    piece = {"steps": log["steps"] - before, "seconds": round(seconds, 1), "peak_bytes": peak(device)}
    figures = {
        "parameters": parameters(recipe, options.output),
        "scale": options.scale,
        "steps": log["steps"],
        "steps_left": options.steps - log["steps"],
        "pieces": [*earlier(options.json), piece],
        "curve": curve(log["log"]),
    }
    write_down({**figures, **table(figures)}, device, options.json)


def table(figures: Figures) -> Figures:
    """Rows of the curve, at most five, and what is said under them."""
    points, last = figures["curve"], len(figures["curve"]) - 1
    shown = [points[last * row // (ROWS - 1)] for row in range(ROWS)] if len(points) > ROWS else points
    rows = [
        {
            "name": f"step {point['step']:,}",
            "cells": {title: f"{point[name]:.2f}" if name in point else "" for name, title in COLUMNS.items()},
        }
        for point in shown
    ]
    seconds = sum(piece["seconds"] for piece in figures["pieces"])
    note = (
        f"{figures['parameters']:,} parameters, {figures['steps']:,} steps with batches of {figures['scale']:g} of the "
        f"full size, {seconds:,.0f} s; steps left: {figures['steps_left']:,}. "
        "Means over the steps between two rows of the log."
    )
    return {"rows": rows, "note": note}


def steps_of(output: Path) -> int:
    """Taken so far."""
    found = [int(file.parent.name.rpartition("-")[2]) for file in output.glob("checkpoint-*/trainer_state.json")]
    return max(found, default=0)


def earlier(file: Path | None) -> list[Any]:
    """The pieces in a file of figures."""
    return [] if file is None or not file.is_file() else json.loads(file.read_text())["pieces"]


def parameters(recipe: Any, output: Path) -> int:
    tokenizer = recipe.PreTrainedTokenizerFast.from_pretrained(output / "tokenizer")
    return sum(parameter.numel() for parameter in recipe.build_model(tokenizer).parameters())


def curve(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the steps between two points; a task that did not occur there has none."""
    logged = [entry for entry in log if "loss" in entry]
    every = -(-len(logged) // KEPT)
    return [
        {
            "step": group[-1]["step"],
            **{
                name: round(sum(values) / len(values), 4)
                for name in FIGURES
                if (values := [entry[name] for entry in group if name in entry])
            },
        }
        for group in (logged[start : start + every] for start in range(0, len(logged), max(every, 1)))
    ]


if __name__ == "__main__":
    main()
