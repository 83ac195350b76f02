"""Scores of long-term slots against a prompt: the mean over its tokens of sigmoid(q·k) (M+, section 3.2)."""

import torch
from torch import Tensor


def mean_sigmoid(queries: Tensor, keys: Tensor) -> Tensor:  # [T, P], [M, P] -> [M]
    """Exact, for a block of keys at a time: the matrix `[M, T]` is as large as the block makes it."""
    return torch.mm(keys, queries.t()).sigmoid_().mean(dim=1)
