"""Written memories of tiny models, and what a generation is held to: reads of the text so far."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from remanence import Memory, MemoryModel
from remanence.errors import RemanenceError
from tests.support.tiny import ids

CLOSE = {"atol": 1e-4, "rtol": 0.0}


def written(model: MemoryModel, seed: int = 0, **settings: Any) -> Memory:
    memory = model.new_memory(seed=seed, **settings)
    model.write(memory, ids(40, seed=100 + seed))
    return memory


def steps(model: MemoryModel, memory: Memory, prompt: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    """The whole text `[T]`, and the logits of each step of a greedy generation `[steps, V]`."""
    out = model.generate(memory, prompt, do_sample=False, return_dict_in_generate=True, output_logits=True, **options)
    return out.sequences[0], torch.cat(out.logits)


def require_generate_to_read(model: MemoryModel, memory: Memory, prompt: Tensor, **options: Any) -> None:
    """Raise where a step's logits are not those of a read of the text so far."""
    text, logits = steps(model, memory, prompt, **options)
    for index, got in enumerate(logits):
        read = model.read(memory, text[: len(prompt) + index]).logits[0, -1]
        torch.testing.assert_close(got, read, **CLOSE, msg=lambda m, index=index: f"step {index}: {m}")


@contextmanager
def or_refused(why: str, error: type[Exception] = RemanenceError) -> Iterator[None]:
    """What stands in the block works, or is refused in words that hold `why`."""
    try:
        yield
    except error as refusal:
        if why not in str(refusal):
            raise
