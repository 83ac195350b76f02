"""Time and bytes of one training step, Grass against AdamW and GaLore.

    pip install galore-torch bitsandbytes

Four blocks of a random Llama, d 1024, intermediate size 2752, 4 x 256 tokens, float32, rank 128, two threads. A step
is forward, backward, optimizer and zero_grad. Each method trains in a process of its own. What a refresh costs more
than another step is measured apart, and spread over 200 steps. Grass and "AdamW, linear layers by oneDNN" multiply by
oneDNN, the others by what torch takes for float32 on a CPU.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch
from transformers import LlamaConfig, LlamaModel

from grass.methods import METHODS, Maker, Projecting, adamw_onednn, gradient_bytes, state_bytes
from tables import Figures
from timing import Case, Part, Parts, Rows, agree, now, ratio

COMPARED: dict[str, Maker] = {
    "adamw": METHODS["adamw"],
    "adamw-onednn": adamw_onednn,
    "grass": METHODS["grass-top-reset"],
    "galore": METHODS["galore"],
}
NAMES = {
    "adamw": "AdamW (torch)",
    "adamw-onednn": "AdamW (torch), linear layers by oneDNN",
    "grass": "Grass",
    "galore": "GaLore (galore-torch)",
}
NEVER = 10_000  # steps between two refreshes
NOTE = (
    "{layers} Llama blocks, d {size:,}, {batch} x {length} tokens, float32, rank {rank}, a refresh every {gap} steps. "
    "The cost of a refresh is spread over these."
)


@dataclass(frozen=True)
class Settings:
    layers: int = 4
    size: int = 1024
    intermediate: int = 2752
    batch: int = 4
    length: int = 256
    rank: int = 128
    gap: int = 200
    methods: list[str] = field(default_factory=lambda: list(COMPARED))
    repeats: int = 18
    threads: int = 2


def parts(on: Settings) -> Parts:
    refreshing = [method for method in on.methods if not method.startswith("adamw")]
    return {
        "steps": partial(steps, on, on.methods, NEVER, "step", on.repeats),
        "refreshes": partial(steps, on, refreshing, 1, "step with a refresh", 3),
    }


def finish(on: Settings, rows: Rows) -> None:
    for cells in rows.values():
        step, refreshing = (cells.get(column, {}).get("median") for column in ("step", "step with a refresh"))
        adds = max(0.0, refreshing - step) if step and refreshing else 0.0
        if step:
            cells["refresh adds"] = {"value": round(adds, 2), "unit": "ms"} if adds else None
            cells["a step, refreshes counted"] = {"value": round(step + adds / on.gap, 3), "unit": "ms"}
    counted = {name: cells["a step, refreshes counted"]["value"] for name, cells in rows.items() if "step" in cells}
    if grass := counted.pop(NAMES["grass"], None):
        for name, value in counted.items():
            rows[name]["Grass takes"] = ratio(grass, value)


class Training:
    """A method's training, in a process of its own."""

    def __init__(self, on: Settings, method: str, gap: int) -> None:
        begin = on, method, gap
        self._own = ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=begun, initargs=begin)

    def step(self) -> Figures:
        return self._own.submit(step).result()

    def seconds(self) -> float:
        return float(self.step()["seconds"])


def steps(on: Settings, methods: list[str], gap: int, column: str, repeats: int) -> Part:
    trainings = {method: Training(on, method, gap) for method in methods}
    losses = {method: training.step()["loss"] for method, training in trainings.items()}
    held = {method: training.step() for method, training in trainings.items()}  # rows are selected in the first

    def gate() -> Figures:
        first = torch.tensor(list(losses.values()))
        return agree("losses of the same weights and tokens", first, first[:1].expand_as(first)) | {"losses": losses}

    rows: Rows = {NAMES[method]: {} for method in methods}
    for title, name in (("gradients", "gradient_bytes"), ("optimizer state", "state_bytes")):
        for method in methods:
            rows[NAMES[method]][title] = {"value": held[method][name], "unit": "bytes"}
    cases = [Case([NAMES[method]], column, training.seconds) for method, training in trainings.items()]
    return Part(cases, repeats, gate, rows)


known: dict[str, Any] = {}  # in the process of a training


def begun(on: Settings, method: str, gap: int) -> None:
    torch.set_num_threads(on.threads)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=on.size,
        intermediate_size=on.intermediate,
        num_hidden_layers=on.layers,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    model = LlamaModel(config)
    known["model"], known["optimizer"] = model, COMPARED[method](model, Projecting(on.rank, gap), 1e-4)
    known["x"] = torch.randn(on.batch, on.length, on.size, generator=torch.Generator().manual_seed(1))


def step() -> Figures:
    model, optimizer, x = (known[name] for name in ("model", "optimizer", "x"))
    start = now()
    loss = model(inputs_embeds=x, use_cache=False).last_hidden_state.square().mean()
    loss.backward()
    optimizer.step()
    gradients = gradient_bytes(model)
    optimizer.zero_grad()
    seconds = now() - start
    return {
        "seconds": seconds,
        "loss": loss.item(),
        "gradient_bytes": gradients,
        "state_bytes": state_bytes(optimizer),
    }
