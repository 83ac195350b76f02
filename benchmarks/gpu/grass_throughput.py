"""Tokens per second in training: Grass against AdamW and GaLore, at the shapes of Llama 1B and 7B.

    pip install galore-torch bitsandbytes
    python benchmarks/gpu/grass_throughput.py --json benchmarks/gpu/grass_throughput.json

Random weights in bfloat16, 16 x 256 tokens, rank d/8, one method after the other. What a refresh costs is measured
apart and spread over 200 steps. GaLore's is the time of one singular value decomposition for each shape of weight,
times how many weights have that shape: done for all of them, it would take longer than everything else together.
GaLore is left out where it is not installed.
"""

import gc
import importlib.util
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu.common import TINY, device_of, llama, parser, peak, step_seconds, write_down
from grass.methods import Projecting
from grass.step import COMPARED
from remanence.optim.plan import configuration
from tables import Figures, cell
from timing import now, timed

GAP, NEVER = 200, 1_000_000
METHODS = ("adamw", "grass", "galore")


def with_subspaces(optimizer: torch.optim.Optimizer) -> None:
    """Give GaLore subspaces at random, so that its first step does not look for them."""
    from galore_torch.galore_projector import GaLoreProjector

    group = optimizer.param_groups[1]
    for weight in group["params"]:
        projector = GaLoreProjector(group["rank"], update_proj_gap=NEVER, scale=group["scale"], proj_type="std")
        small = min(weight.shape)
        basis = torch.linalg.qr(torch.randn(small, group["rank"], device=weight.device)).Q.to(weight.dtype)  # [d, r]
        projector.ortho_matrix = basis if weight.shape[0] < weight.shape[1] else basis.t().contiguous()
        optimizer.state[weight].update(step=1, projector=projector)


def decomposing(optimizer: torch.optim.Optimizer) -> float:
    """Seconds for the singular vectors of all weights' gradients."""
    weights = optimizer.param_groups[1]["params"]
    seconds = 0.0
    for shape, count in Counter(weight.shape for weight in weights).items():
        gradient = torch.randn(shape, device=weights[0].device)
        start = now()
        torch.linalg.svd(gradient, full_matrices=False)
        seconds += count * (now() - start)
    return seconds


def measured(config: Any, method: str, device: str, batch: int, length: int, steps: int) -> Figures:
    model = llama(config, device).train()
    rank = config.hidden_size // 8
    optimizer = COMPARED[method].make(model, Projecting(rank, NEVER), 1e-5)
    ids = torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0)).to(device)
    refresh = 0.0
    if method == "galore":
        with_subspaces(optimizer)
        refresh = decomposing(optimizer)
    first = step_seconds(model, optimizer, ids, 3)  # with Grass, rows are selected in the first
    peak(device)
    seconds = step_seconds(model, optimizer, ids, steps)
    most = peak(device)
    usual = timed(seconds)
    if method == "grass":
        optimizer.param_groups[0]["update_proj_gap"] = 1
        step_seconds(model, optimizer, ids, 1)  # a step later, gradients are sketched too
        selecting = step_seconds(model, optimizer, ids, 3)
        refresh = max(0.0, timed(selecting)["median"] - usual["median"]) / 1e3
    amortised = usual["median"] / 1e3 + refresh / GAP
    return {
        "rank": rank if method != "adamw" else None,
        "step": usual,
        "first_step_seconds": round(first[0], 4),
        "refresh_extra_seconds": round(refresh, 4),
        "tokens_per_second": round(batch * length / amortised, 1),
        "tokens_per_second_without_refreshes": round(batch * length / usual["median"] * 1e3, 1),
        "peak_bytes": most,
    }


def main(arguments: list[str] | None = None) -> None:
    named = parser(__doc__)
    named.add_argument("--batch", type=int, default=16)
    named.add_argument("--steps", type=int, default=10, help="timed for each method")
    options = named.parse_args(arguments)
    device, length = device_of(options), 16 if options.smoke else 256
    configs = {"tiny": TINY} if options.smoke else {name: configuration(name) for name in ("llama-1b", "llama-7b")}
    methods = [name for name in METHODS if name != "galore" or importlib.util.find_spec("galore_torch")]
    shapes: Figures = {}
    rows = []
    for name, config in configs.items():
        made = shapes[name] = {}
        for method in methods:
            print(f"{name} {method} ...", file=sys.stderr, flush=True)
            made[method] = measured(config, method, device, options.batch, length, options.steps)
            gc.collect()
            torch.cuda.empty_cache()
        for method, one in made.items():
            faster = 100 * (made["grass"]["tokens_per_second"] / one["tokens_per_second"] - 1)
            cells = {
                "tokens per second": f"{one['tokens_per_second']:,.0f}",
                "Grass is faster by": None if method == "grass" else cell(faster, "%"),
                "a step without refresh": one["step"],
                "peak": cell(one["peak_bytes"], "bytes"),
            }
            rows.append({"name": f"{name}, {COMPARED[method].title}", "cells": cells})
    note = f"{options.batch} x {length} tokens a step, bfloat16, the cost of a refresh shared out over {GAP} steps."
    write_down({"rows": rows, "note": note, "shapes": shapes}, device, options.json)


if __name__ == "__main__":
    main()
