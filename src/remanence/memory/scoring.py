"""Scores of long-term slots against a prompt: the mean over its tokens of sigmoid(q·k) (M+, section 3.2)."""

import torch
from torch import Tensor

_AT_ONCE = 2**18  # scores of single tokens: they stay in a processor's cache until they are averaged


def mean_sigmoid(queries: Tensor, keys: Tensor) -> Tensor:  # [T, P], [M, P] -> [M]
    """Exact, a block of keys at a time. Averages are float32: in bfloat16, whole runs of slots would score alike."""
    at_once = _AT_ONCE // max(1, len(queries)) if keys.device.type == "cpu" else len(keys)
    blocks = keys.split(max(1, at_once))
    return torch.cat([torch.mm(block, queries.t()).sigmoid_().mean(dim=1, dtype=torch.float32) for block in blocks])
