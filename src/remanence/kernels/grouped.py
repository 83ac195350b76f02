"""Attention by plain products, whose backward pass is products too.

Where there is a mask, torch's fused kernel takes about ten times as long backwards as forwards on a CPU, and does not
use its bfloat16 units (AMX). Query heads that share a key head are rows of one product.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

GROUPED = "grouped_products"


class _Attention(torch.autograd.Function):
    """`softmax(q·k) v` behind a prefix that wants no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,  # [B, H', R, D], scaled; R rows: T tokens of each query head that shares a key head
        key: Tensor,  # [B, H', S, D]
        value: Tensor,
        hidden: Tensor | None,  # [B or 1, 1, T, S] bool, what tokens do not see
        prefix: int,
    ) -> Tensor:  # [B, H', R, D]
        scores = query @ key.transpose(-1, -2)
        if hidden is not None:
            tokens = hidden.shape[-2]
            scores.unflatten(2, (-1, tokens)).masked_fill_(hidden[:, :, None], torch.finfo(scores.dtype).min)
        weights = scores.softmax(-1)
        mixed = weights @ value
        ctx.save_for_backward(query, key, value, weights, mixed)
        ctx.prefix = prefix
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights, mixed = ctx.saved_tensors
        own = slice(ctx.prefix, None)
        inner = (grad.float() * mixed.float()).sum(-1, keepdim=True).to(weights.dtype)
        scores = (grad @ value.transpose(-1, -2)).sub_(inner).mul_(weights)
        of_key, of_value = torch.zeros_like(key), torch.zeros_like(value)
        of_key[:, :, own] = scores[..., own].transpose(-1, -2) @ query
        of_value[:, :, own] = weights[..., own].transpose(-1, -2) @ grad
        return scores @ key, of_key, of_value, None, None


def _grouped(
    module: nn.Module,
    query: Tensor,  # [B, H, T, D]
    key: Tensor,  # [B, H', S, D]
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:  # [B, T, H, D]
    batch, heads, tokens, size = query.shape
    rows = (query * (size**-0.5 if scaling is None else scaling)).reshape(batch, key.shape[1], -1, size)
    hidden = None
    if attention_mask is not None:
        hidden = ~attention_mask if attention_mask.dtype == torch.bool else attention_mask < 0
    elif tokens > 1:
        every = torch.ones(1, 1, tokens, key.shape[2], dtype=torch.bool, device=key.device)
        hidden = every.triu(key.shape[2] - tokens + 1)
    attend: Any = _Attention.apply
    mixed: Tensor = attend(rows, key, value, hidden, key.shape[2] - tokens)
    return mixed.view(batch, heads, tokens, size).transpose(1, 2), None


AttentionInterface.register(GROUPED, _grouped)
AttentionMaskInterface.register(GROUPED, sdpa_mask)
