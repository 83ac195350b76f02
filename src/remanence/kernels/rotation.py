"""Rotary position embedding of memory's keys, in the split-halves layout over the first R features of each head.

Slots keep their keys unrotated, since a slot's position changes with every write: a read rotates all of them.
"""

import torch
from torch import Tensor


def rotate(keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # [..., S, H, D], cos and sin [..., S, R], R <= D
    """The plain rotation, as decoders do it."""
    size = cos.shape[-1]
    turned, kept = keys[..., :size], keys[..., size:]
    cos, sin = cos[..., None, :], sin[..., None, :]
    low, high = turned.chunk(2, dim=-1)
    turned = (turned * cos + torch.cat([-high, low], dim=-1) * sin).to(keys.dtype)
    return torch.cat([turned, kept], dim=-1) if kept.shape[-1] else turned


def rotate_rows(
    out: Tensor, keys: Tensor, rows: Tensor, cos: Tensor, sin: Tensor, scratch: Tensor
) -> None:  # out and scratch [S, H, D], keys [P, H, D], rows [S], cos and sin [S, R]
    """`rotate` of picked rows into a place that is there already, to the same bits.

    Without temporaries, whose making would cost more than the rotation. Not with addcmul: it rounds once where the
    decoder rounds twice, and the last bit of a key shows in the logits.
    """
    torch.index_select(keys, 0, rows, out=out)
    size, half = cos.shape[-1], cos.shape[-1] // 2
    cos, sin = cos[:, None], sin[:, None]
    turned, across = out[..., :size], scratch[..., :size]
    torch.mul(turned[..., half:], sin[..., :half], out=across[..., :half])
    torch.mul(turned[..., :half], sin[..., half:], out=across[..., half:])
    turned.mul_(cos)
    turned[..., :half] -= across[..., :half]
    turned[..., half:] += across[..., half:]
