"""What `remanence plan` says against the memory that training steps took.

On a CPU, where resident memory is what can be seen. Each case runs in a process of its own whose allocator is told to
give back what is freed (MALLOC_MMAP_THRESHOLD_); as it comes, glibc keeps up to a third more, by no rule.
"""

import ctypes
import gc
import os
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from grass.step import NAMES
from remanence.optim import GrassAdamW, grass_param_groups
from remanence.optim.plan import Method, configuration, plan
from timing import Part, Parts

RANK = 128
NOTE = f"The peak of a process over one step, once measured; rank {RANK}, float32."


class Case(NamedTuple):
    model: str
    method: Method
    tokens: int
    batch: int
    checkpointing: bool = False

    @property
    def name(self) -> str:
        shape = f"{self.batch} x {self.tokens} tokens{', checkpointing' if self.checkpointing else ''}"
        return f"{self.model}, {NAMES[self.method]}, {shape}"


CASES = (
    Case("llama-60m", "adamw", 256, 4),
    Case("llama-60m", "grass", 256, 4),
    Case("llama-350m", "adamw", 256, 1),
    Case("llama-350m", "grass", 256, 1),
    Case("llama-350m", "grass", 256, 4),
    Case("llama-350m", "grass", 256, 4, checkpointing=True),
)


@dataclass(frozen=True)
class Settings:
    threads: int = 2


def parts(on: Settings) -> Parts:
    return {case.name: partial(compared, case, on.threads) for case in CASES}


def compared(case: Case, threads: int) -> Part:
    os.environ.update(MALLOC_MMAP_THRESHOLD_="131072", MALLOC_TRIM_THRESHOLD_="131072")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as own:
        peak = own.submit(taken, case, threads).result()
    shape = case._asdict() | {"rank": RANK, "dtype": torch.float32}
    planned = plan(configuration(shape.pop("model")), shape.pop("method"), **shape).total
    cells: dict[str, Any] = {"predicted": planned, "measured": peak}
    cells = {title: {"value": count, "unit": "bytes"} for title, count in cells.items()}
    return Part(rows={case.name: {**cells, "predicted / measured": {"value": planned / peak, "unit": "share"}}})


def taken(case: Case, threads: int) -> int:
    """The most resident bytes during each of three steps, above those before the model was made.

    A step goes before, in which rows are chosen and there is no state yet.
    """
    torch.set_num_threads(threads)
    layer = nn.Linear(64, 64)
    layer(torch.randn(8, 64)).sum().backward()  # what torch loads at first use
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = resident("VmRSS")
    model: Any = AutoModelForCausalLM.from_config(configuration(case.model), dtype=torch.float32)
    if case.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    if case.method == "grass":
        optimizer = GrassAdamW(grass_param_groups(model, rank=RANK), lr=1e-4)
    ids = torch.zeros(case.batch, case.tokens, dtype=torch.long)
    for step in range(4):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    return resident("VmHWM") - before


def resident(kind: str) -> int:
    """Bytes, now (VmRSS) or at most (VmHWM)."""
    return 1024 * int(re.findall(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())[0])
