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
