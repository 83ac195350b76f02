"""Scores of long-term slots against a prompt: the mean over its tokens of sigmoid(q·k) (M+, section 3.2)."""

import torch
from torch import Tensor

from remanence.products import product

_AT_ONCE = 2**18  # scores of single tokens: they stay in a processor's cache until they are averaged


def mean_sigmoid(queries: Tensor, keys: Tensor) -> Tensor:  # [T, P], [M, P] -> [M]
    """Exact, a block of keys at a time. Averages are float32: in bfloat16, whole runs of slots would score alike."""
    if keys.device.type != "cpu":
        return torch.mm(keys, queries.t()).sigmoid_().mean(dim=1, dtype=torch.float32)
    blocks = keys.split(max(1, _AT_ONCE // max(1, len(queries))))
    return torch.cat(
        [product(block, queries.contiguous()).sigmoid_().mean(dim=1, dtype=torch.float32) for block in blocks]
    )


def by_write(scores: Tensor, writes: Tensor, wanted: int) -> Tensor:  # [..., M], [M], of which `wanted` are taken
    """Scores by which whole writes are taken, best mean first, and of the one that is cut its best slots.

    `writes`: numbers from 0 on. A slot with a score below 0 is not there.
    """
    there = scores >= 0
    sums = scores.new_zeros(*scores.shape[:-1], int(writes.max()) + 1)
    count = sums.index_add(-1, writes, there.to(scores.dtype))
    mean = sums.index_add(-1, writes, scores.clamp(min=0)) / count.clamp(min=1)
    means = torch.where(there, mean.index_select(-1, writes), -1.0)
    last = means.topk(wanted, dim=-1).values[..., -1:]
    return torch.where(means > last, 2.0, torch.where(means == last, scores, -1.0))
