"""Time and bytes of one training step, Grass against AdamW and GaLore.

    pip install galore-torch bitsandbytes
    python benchmarks/grass/step.py --json benchmarks/grass/step.json

Four blocks of a random Llama, d 1024, intermediate size 2752, 4 x 256 tokens, float32, rank 128, two threads. A step
is forward, backward, optimizer and zero_grad. Each method runs in a process of its own, in several rounds, the methods
in turns. What a refresh costs more than another step is measured apart, and spread over 200 steps. Grass and "AdamW,
oneDNN" multiply by oneDNN, the others by what torch takes for float32 on a CPU.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaModel

sys.path.insert(0, str(Path(__file__).parent.parent))

from grass.methods import METHODS, Maker, Projecting, adamw_onednn, gradient_bytes, state_bytes
from measure import THREADS, Figures, circumstances, now, summary, write_down

RANK, GAP = 128, 200
COMPARED: dict[str, Maker] = {
    "adamw": METHODS["adamw"],
    "adamw-onednn": adamw_onednn,
    "grass": METHODS["grass-top-reset"],
    "galore": METHODS["galore"],
}
BATCH, LENGTH, SIZE = 4, 256, 1024


def blocks() -> nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=SIZE,
        intermediate_size=2752,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    return LlamaModel(config)


def timed(method: str, gap: int, steps: int, skip: int) -> dict[str, Any]:
    """Seconds of steps, after `skip` that are not counted; bytes of gradients and of state."""
    torch.set_num_threads(THREADS)
    model = blocks()
    optimizer = COMPARED[method](model, Projecting(RANK, gap), 1e-4)
    x = torch.randn(BATCH, LENGTH, SIZE, generator=torch.Generator().manual_seed(1))
    seconds, gradients = [], 0
    for step in range(skip + steps):
        start = now()
        model(inputs_embeds=x, use_cache=False).last_hidden_state.square().mean().backward()
        optimizer.step()
        gradients = gradient_bytes(model)
        optimizer.zero_grad()
        if step >= skip:
            seconds.append(now() - start)
    return {"seconds": seconds, "gradient_bytes": gradients, "state_bytes": state_bytes(optimizer)}


def apart(*work: Any) -> dict[str, Any]:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as own:
        return own.submit(timed, *work).result()


def figures_of(methods: list[str], rounds: int, steps: int) -> Figures:
    usual: dict[str, list[float]] = {method: [] for method in methods}
    known: dict[str, dict[str, Any]] = {}
    for _ in range(rounds):
        for method in methods:
            known[method] = apart(method, 10_000, steps, 3)
            usual[method] += known[method]["seconds"]
    figures: Figures = {}
    for method in methods:
        figures[method] = summary(usual[method]) | {
            name: known[method][name] for name in ("gradient_bytes", "state_bytes")
        }
        figures[method]["refresh_extra_ms"] = 0.0
        if not method.startswith("adamw"):
            refreshing = summary(apart(method, 1, 3, 1)["seconds"])["median_ms"]
            figures[method]["refresh_extra_ms"] = round(max(0.0, refreshing - figures[method]["median_ms"]), 2)
        figures[method]["amortised_ms"] = round(
            figures[method]["median_ms"] + figures[method]["refresh_extra_ms"] / GAP, 3
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the figures go; printed otherwise")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="timed in each round")
    parser.add_argument("--methods", nargs="+", choices=COMPARED, default=list(COMPARED))
    options = parser.parse_args()
    measured = figures_of(options.methods, options.rounds, options.steps)
    model = {"layers": 4, "size": SIZE, "intermediate": 2752, "tokens": BATCH * LENGTH, "dtype": "float32"}
    figures = {
        **circumstances(),
        "model": model | {"rank": RANK, "gap": GAP},
        "methods": measured,
        "grass_against": {
            name: round(measured["grass"]["amortised_ms"] / measured[name]["amortised_ms"], 3)
            for name in measured
            if name != "grass" and "grass" in measured
        },
    }
    write_down(figures, options.json)


if __name__ == "__main__":
    main()
