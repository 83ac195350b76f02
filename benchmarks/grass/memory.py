"""What `remanence plan` says against the memory that training steps took.

    python benchmarks/grass/memory.py --json benchmarks/grass/memory.json

On a CPU, where resident memory is what can be seen. Each case runs in a process of its own whose allocator is told to
give back what is freed (MALLOC_MMAP_THRESHOLD_); as it comes, glibc keeps up to a third more, by no rule.
"""

import argparse
import ctypes
import gc
import os
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from remanence.optim import GrassAdamW, grass_param_groups
from remanence.optim.plan import Method, configuration, plan

sys.path.insert(0, str(Path(__file__).parent.parent))

from measure import THREADS, Figures, circumstances, write_down

RANK = 128
CASES: list[tuple[str, Method, int, int, bool]] = [  # model, method, tokens, batch, checkpointing
    ("llama-60m", "adamw", 256, 4, False),
    ("llama-60m", "grass", 256, 4, False),
    ("llama-350m", "adamw", 256, 1, False),
    ("llama-350m", "grass", 256, 1, False),
    ("llama-350m", "grass", 256, 4, False),
    ("llama-350m", "grass", 256, 4, True),
]


def taken(name: str, method: Method, tokens: int, batch: int, checkpointing: bool) -> list[int]:
    """The most resident bytes during each of four steps, above those before the model was made."""
    torch.set_num_threads(THREADS)
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


def compared(case: tuple[str, Method, int, int, bool]) -> Figures:
    name, method, tokens, batch, checkpointing = case
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as own:
        steps = own.submit(taken, *case).result()
    made = plan(
        configuration(name),
        method,
        rank=RANK,
        tokens=tokens,
        batch=batch,
        dtype=torch.float32,
        checkpointing=checkpointing,
    )
    peak = max(steps[1:])  # in the first, rows are chosen and there is no state yet
    return {
        "model": name,
        "method": method,
        "tokens": tokens,
        "batch": batch,
        "checkpointing": checkpointing,
        "predicted_bytes": made.total,
        "measured_bytes": peak,
        "ratio": round(made.total / peak, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the figures go; printed otherwise")
    options = parser.parse_args()
    os.environ.update(MALLOC_MMAP_THRESHOLD_="131072", MALLOC_TRIM_THRESHOLD_="131072")
    cases = []
    for case in CASES:
        cases.append(compared(case))
        print(cases[-1], file=sys.stderr, flush=True)
    figures = {
        **circumstances(),
        "rank": RANK,
        "dtype": "float32",
        "cases": cases,
    }
    write_down(figures, options.json)


if __name__ == "__main__":
    main()
