"""Rounding to bfloat16 by chance, so that updates below its last bit count on average."""

import torch
from torch import Tensor


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:  # float32 -> bfloat16
    """Up or down with the probability that makes the mean exact; what is not finite stays as it is."""
    bits = values.float().contiguous().view(torch.int32)
    noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    rounded = ((bits + noise) & -(1 << 16)).view(torch.float32)
    return torch.where(values.isfinite(), rounded, values).bfloat16()
