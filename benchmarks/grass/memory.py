"""What `remanence plan` says against the memory that training steps took.

On a CPU, where resident memory is what can be seen. Each case runs in a process of its own whose allocator is told to
give back what is freed (MALLOC_MMAP_THRESHOLD_); as it comes, glibc keeps up to a third more, by no rule.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from processes import apart, resident, settled
from remanence import MemoryModel
from remanence.config import LoraSettings
from remanence.model.lora import adapter_parameters
from remanence.optim import GrassAdamW, grass_param_groups
from remanence.optim.plan import Method, configuration, plan
from remanence.training.plan import Writes, WritingStep, plan_memory
from tables import cell
from timing import Part, Parts

RANK = 128
WRITES = Writes(chunks=8, chunk=256, slots=1024, slots_per_write=64)
NAMES = {"adamw": "AdamW", "grass": "Grass", "lora": "twin LoRA"}
NOTE = (
    f"The peak of a process over one step, once measured; rank {RANK}, float32. Memory training: {WRITES.chunks} "
    f"writes of {WRITES.chunk} tokens, pools of {WRITES.slots:,} slots."
)


class Case(NamedTuple):
    model: str
    method: Method
    tokens: int
    batch: int
    checkpointing: bool = False
    memory: bool = False

    @property
    def name(self) -> str:
        shape = f"{self.batch} x {self.tokens} tokens{', checkpointing' if self.checkpointing else ''}"
        return f"{self.model}, {NAMES[self.method]}, {'memory, ' if self.memory else ''}{shape}"


CASES = (
    Case("llama-60m", "adamw", 256, 4),
    Case("llama-60m", "grass", 256, 4),
    Case("llama-350m", "adamw", 256, 1),
    Case("llama-350m", "grass", 256, 1),
    Case("llama-350m", "grass", 256, 4),
    Case("llama-350m", "grass", 256, 4, checkpointing=True),
    Case("llama-60m", "adamw", 128, 4, memory=True),
    Case("llama-60m", "grass", 128, 4, memory=True),
    Case("llama-60m", "lora", 128, 4, memory=True),
    Case("llama-60m", "lora", 128, 4, checkpointing=True, memory=True),
)


@dataclass(frozen=True)
class Settings:
    threads: int = 2


def parts(on: Settings) -> Parts:
    return {case.name: partial(compared, case, on.threads) for case in CASES}


def compared(case: Case, threads: int) -> Part:
    os.environ.update(MALLOC_MMAP_THRESHOLD_="131072", MALLOC_TRIM_THRESHOLD_="131072")
    peak = apart(taken, case, threads)
    shape = case._asdict() | {"rank": RANK, "dtype": torch.float32}
    config, method = configuration(shape.pop("model")), shape.pop("method")
    make = partial(plan_memory, writes=WRITES) if shape.pop("memory") else plan
    planned = make(config, method, **shape).total
    cells = {"predicted": cell(planned, "bytes"), "measured": cell(peak, "bytes")}
    return Part(rows={case.name: {**cells, "predicted / measured": cell(planned / peak, "share")}})


def taken(case: Case, threads: int) -> int:
    """The most resident bytes during each of three steps, above those before the model was made.

    A step goes before, in which rows are chosen and there is no state yet.
    """
    torch.set_num_threads(threads)
    layer = nn.Linear(64, 64)
    layer(torch.randn(8, 64)).sum().backward()  # what torch loads at first use
    before = settled()
    model, loss_of = prepared(case)
    optimizer: torch.optim.Optimizer
    if case.method == "grass":
        optimizer = GrassAdamW(grass_param_groups(model, rank=RANK), lr=1e-4)
    else:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    for step in range(4):
        loss_of().backward()
        optimizer.step()
        optimizer.zero_grad()
        if step == 0:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    return resident("VmHWM") - before


def prepared(case: Case) -> tuple[Any, Callable[[], Tensor]]:
    """A model that trains what the method trains, and its forward pass."""
    model: Any = AutoModelForCausalLM.from_config(configuration(case.model), dtype=torch.float32)
    ids = torch.zeros(case.batch, case.tokens, dtype=torch.long)
    loss_of: Callable[[], Tensor] = partial(text_loss, model, ids)
    if case.memory:
        lora = LoraSettings(r=RANK) if case.method == "lora" else None
        model = MemoryModel.attach(model, None, WRITES.config(lora))
        if lora is not None:
            added = {id(parameter) for _, parameter in adapter_parameters(model)}
            for parameter in model.hf.parameters():
                parameter.requires_grad_(id(parameter) in added)
        loss_of = WritingStep(model, WRITES, case.tokens, case.batch).loss
    if case.checkpointing:
        model.train().gradient_checkpointing_enable({"use_reentrant": False})
    return model, loss_of


def text_loss(model: Any, ids: Tensor) -> Any:
    return model(input_ids=ids, labels=ids, use_cache=False).loss
