"""What the processes of one run tell each other, so that all go on alike. Alone, a process tells itself."""

from typing import Any

import torch
from torch import Tensor, distributed

from remanence.training.step import StepOutput


def objects_of_all_processes(mine: Any) -> list[Any]:
    """By rank; what can be pickled."""
    if not _together():
        return [mine]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, mine)
    return found


def all_gather_steps(mine: StepOutput) -> list[StepOutput]:
    """By rank; metrics stay with the process that took them."""
    if not _together():
        return [mine]
    told = objects_of_all_processes((len(mine.made), mine.observed))
    counts = [count for count, _ in told]
    made, keys = _rows_of_all(mine.made, counts), _rows_of_all(mine.keys, counts)
    return [StepOutput(m, k, observed) for m, k, (_, observed) in zip(made, keys, told, strict=True)]


def _together() -> bool:
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def _rows_of_all(mine: Tensor, counts: list[int]) -> list[Tensor]:
    padded = mine.new_zeros(max(counts), *mine.shape[1:])
    padded[: len(mine)] = mine
    found = [torch.empty_like(padded) for _ in counts]
    if padded.numel():
        distributed.all_gather(found, padded)
    return [rows[:count] for rows, count in zip(found, counts, strict=True)]
