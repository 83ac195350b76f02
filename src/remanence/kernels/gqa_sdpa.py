"""sdpa in which query heads share their key and value heads where they lie.

As soon as there is a mask, the stock function copies every key and value once per query head (its `repeat_kv`), because
on CUDA a mask and shared heads together fall back to a slow kernel. The CPU kernel takes both. And where there is one
query, as at a decode step, the query heads that share a key head go in as its rows, so that keys are read once.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

SHARED_HEADS = "sdpa_shared_heads"


def _shared_heads(
    module: nn.Module,
    query: Tensor,  # [B, H, T, D]
    key: Tensor,  # [B, H', S, D]
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:  # [B, T, H, D]
    batch, heads, tokens, size = query.shape
    unmasked_text = attention_mask is None and tokens > 1
    if unmasked_text or key.device.type != "cpu" or kwargs.get("softcap") is not None:
        stock: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
        return stock
    if tokens == 1:
        query = query.reshape(batch, key.shape[1], -1, size)
    mixed = scaled_dot_product_attention(
        query, key, value, attn_mask=attention_mask, dropout_p=dropout, scale=scaling, enable_gqa=True
    )
    return mixed.reshape(batch, heads, tokens, -1).transpose(1, 2).contiguous(), None


def _additive_mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The stock mask, as numbers to add where it is for a CPU: there every layer would make them anew."""
    mask: Tensor | None = sdpa_mask(*args, **kwargs)
    dtype = kwargs.get("dtype")
    if mask is None or mask.dtype != torch.bool or mask.device.type != "cpu" or dtype is None:
        return mask
    return torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, -torch.inf)


AttentionInterface.register(SHARED_HEADS, _shared_heads)
AttentionMaskInterface.register(SHARED_HEADS, _additive_mask)


def share_heads(hf: PreTrainedModel) -> None:
    """Use it in a model that uses sdpa; its results are those of sdpa, to rounding."""
    if hf.config._attn_implementation == "sdpa":
        hf.set_attn_implementation({"": SHARED_HEADS})  # and in no model inside that has a config of its own


def use_stock_sdpa(hf: PreTrainedModel) -> None:
    """What `share_heads` did, undone. Where another implementation was chosen since, it stays."""
    if hf.config._attn_implementation == SHARED_HEADS:
        hf.set_attn_implementation({"": "sdpa"})
