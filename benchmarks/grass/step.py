"""Time and bytes of one training step, Grass against AdamW and GaLore.

    pip install galore-torch bitsandbytes

Four blocks of a random Llama, d 1024, intermediate size 2752, 4 x 256 tokens, float32, rank 128, two threads. A step
is forward, backward, optimizer and zero_grad. What a refresh of all layers costs more than another step is measured
apart, and spread over the steps between two. Grass and "AdamW, linear layers by oneDNN" multiply by oneDNN, the others
by what torch takes for float32 on a CPU.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from transformers import LlamaModel

from grass.methods import METHODS, Maker, Projecting, adamw_onednn, gradient_bytes, grass, state_bytes
from remanence.optim.refresh import SPREAD
from shapes import llama
from tables import Figures, Rows, cell
from timing import Part, Parts, agree, now, ratio, times


class Compared(NamedTuple):
    title: str
    make: Maker
    gap: int | None = None  # steps between two refreshes, where they are not those of the settings


COMPARED = {
    "adamw": Compared("AdamW (torch)", METHODS["adamw"]),
    "adamw-onednn": Compared("AdamW (torch), linear layers by oneDNN", adamw_onednn),
    "grass": Compared("Grass, rows (as published)", METHODS["grass-top-reset"]),
    "grass-subspace": Compared("Grass, directions", partial(grass, selection="subspace"), gap=10),
    "galore": Compared("GaLore (galore-torch)", METHODS["galore"]),
}
NEVER = 10_000  # steps between two refreshes
STEP, REFRESHING, COUNTED = "step", "step with a refresh", "a step, refreshes counted"  # columns
NOTE = (
    "{layers} Llama blocks, d {size:,}, {batch} x {length} tokens, float32, rank {rank}, a refresh every {gap} steps, "
    "of directions every 10. The cost of a refresh is spread over these."
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
        "steps": partial(steps, on, on.methods, NEVER, STEP, on.repeats),
        "refreshes": partial(steps, on, refreshing, 1, REFRESHING, 3),
    }


def finish(on: Settings, rows: Rows) -> None:
    counted, gaps = {}, {one.title: one.gap or on.gap for one in COMPARED.values()}
    for name, cells in rows.items():
        known = times(cells)
        if STEP in known:
            adds = max(0.0, known.get(REFRESHING, 0.0) - known[STEP])
            counted[name] = round(known[STEP] + adds / gaps[name], 3)
            cells["refresh adds"] = cell(round(adds, 2) if adds else None, "ms")
            cells[COUNTED] = cell(counted[name], "ms")
    ours = {"rows take": COMPARED["grass"].title, "directions take": COMPARED["grass-subspace"].title}
    for title, own in ours.items():
        for name in counted.keys() - ours.values() if own in counted else ():
            rows[name][title] = ratio(counted[own], counted[name])


def training(on: Settings, gap: int, method: str) -> tuple[Callable[[], float], Figures]:
    """A step of a method, which returns its seconds; and what the last one notes: its loss, and bytes by column."""
    torch.manual_seed(0)
    model = LlamaModel(llama(8, on.size, on.intermediate, on.layers, 8, 8, on.length))
    optimizer = COMPARED[method].make(model, Projecting(on.rank, gap), 1e-4)
    x, noted = torch.randn(on.batch, on.length, on.size, generator=torch.Generator().manual_seed(1)), Figures()

    def step() -> float:
        start = now()
        loss = model(inputs_embeds=x, use_cache=False).last_hidden_state.square().mean()
        loss.backward()
        optimizer.step()
        gradients = gradient_bytes(model)
        optimizer.zero_grad()
        seconds = now() - start
        noted["loss"] = loss.item()
        noted["bytes"] = {"gradients": gradients, "optimizer state": state_bytes(optimizer)}
        return seconds

    return step, noted


def steps(on: Settings, methods: list[str], gap: int, column: str, repeats: int) -> Part:
    trainings = {COMPARED[method].title: training(on, gap, method) for method in methods}
    rows: Rows = {}

    def gate() -> Figures:
        losses = []
        for name, (step, noted) in trainings.items():
            step()
            losses.append(noted["loss"])
            for _ in range(SPREAD):  # in which rows and directions are selected
                step()
            rows[name] = {title: cell(count, "bytes") for title, count in noted["bytes"].items()}
        first = torch.tensor(losses)
        return agree("losses of the same weights and tokens", first, first[:1].expand_as(first))

    return Part({((name,), column): step for name, (step, _) in trainings.items()}, repeats, gate, rows)
