"""What `remanence plan` says against the memory that training steps took.

On a CPU, where resident memory is what can be seen. Each case runs in a process of its own whose allocator is told to
give back what is freed (MALLOC_MMAP_THRESHOLD_); as it comes, glibc keeps up to a third more, by no rule.
"""

import ctypes
import gc
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any

import psutil
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from grass.step import NAMES
from remanence.optim import GrassAdamW, grass_param_groups
from remanence.optim.plan import Method, configuration, plan
from timing import Part, Parts

RANK = 128
NOTE = f"The peak of a process over one step, once measured; rank {RANK}, float32."
CASES: list[tuple[str, Method, int, int, bool]] = [  # model, method, tokens, batch, checkpointing
    ("llama-60m", "adamw", 256, 4, False),
    ("llama-60m", "grass", 256, 4, False),
    ("llama-350m", "adamw", 256, 1, False),
    ("llama-350m", "grass", 256, 1, False),
    ("llama-350m", "grass", 256, 4, False),
    ("llama-350m", "grass", 256, 4, True),
]


@dataclass(frozen=True)
class Settings:
    threads: int = 2


def parts(on: Settings) -> Parts:
    made: dict[str, Callable[[], Part]] = {}
    for name, method, tokens, batch, checkpointing in CASES:
        row = f"{name}, {NAMES[method]}, {batch} x {tokens} tokens{', checkpointing' if checkpointing else ''}"
        made[row] = partial(compared, on, row, name, method, tokens, batch, checkpointing)
    return made


def compared(on: Settings, row: str, name: str, method: Method, tokens: int, batch: int, checkpointing: bool) -> Part:
    os.environ.update(MALLOC_MMAP_THRESHOLD_="131072", MALLOC_TRIM_THRESHOLD_="131072")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as own:
        steps = own.submit(taken, on.threads, name, method, tokens, batch, checkpointing).result()
    peak = max(steps[1:])  # in the first, rows are chosen and there is no state yet
    total = plan(
        configuration(name),
        method,
        rank=RANK,
        tokens=tokens,
        batch=batch,
        dtype=torch.float32,
        checkpointing=checkpointing,
    ).total
    cells = {
        "predicted": {"value": total, "unit": "bytes"},
        "measured": {"value": peak, "unit": "bytes"},
        "predicted / measured": {"value": round(total / peak, 3), "unit": "share"},
    }
    return Part(rows={row: cells})


def taken(threads: int, name: str, method: Method, tokens: int, batch: int, checkpointing: bool) -> list[int]:
    """The most resident bytes during each of four steps, above those before the model was made."""
    torch.set_num_threads(threads)
    layer = nn.Linear(64, 64)
    layer(torch.randn(8, 64)).sum().backward()  # what torch loads at first use
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    process = psutil.Process()
    before = process.memory_info().rss
    model: Any = AutoModelForCausalLM.from_config(configuration(name), dtype=torch.float32)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.train()
    optimizer: torch.optim.Optimizer
    if method == "grass":
        optimizer = GrassAdamW(grass_param_groups(model, rank=RANK), lr=1e-4)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.zeros(batch, tokens, dtype=torch.long)
    peaks, done = [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            peaks[-1] = max(peaks[-1], process.memory_info().rss - before)
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(4):
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        peaks.append(0)
    done.set()
    watcher.join()
    return peaks[:-1]
