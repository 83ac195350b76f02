"""The last layer of a prompt, for its last token only.

What follows a prompt hangs on the output of its last token. The others have to leave their keys and values in the last
layer, and what a stock decoder computes of them besides is thrown away.
"""

from typing import Any

import torch
from torch import Tensor

from remanence.model.backbone import Backbone
from remanence.model.prefix import PrefixCache


def narrow_last_layer(backbone: Backbone) -> None:
    """Where a call with memory wants one row of logits, run the last layer for the last token.

    Two `MemoryModel`s may share a decoder; it is done once.
    """
    if getattr(backbone.decoder, "narrows_last_layer", False):
        return
    backbone.decoder.narrows_last_layer = True
    index, family = len(backbone.layers) - 1, backbone.family

    def before_model(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        if isinstance(cache, PrefixCache):
            cache.last_only = _wants_last_only(backbone, cache, kwargs)

    def before_layer(
        layer: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        cache = kwargs.get(family.cache)
        if not isinstance(cache, PrefixCache) or not cache.last_only or args[0].shape[1] == 1:
            return None
        hidden: Tensor = args[0]
        normed = backbone.normed(index, hidden)
        cache.retrieving(index, normed)
        keys, values = backbone.project_normed(index, normed[:, :-1])
        cos, sin = kwargs["position_embeddings"]
        turned = backbone.rotate(index, keys, cos[:, :-1], sin[:, :-1])
        cache.layers[index].update(turned.transpose(1, 2), values.transpose(1, 2))
        narrowed = {"position_embeddings": (cos[:, -1:], sin[:, -1:]), "position_ids": kwargs["position_ids"][:, -1:]}
        if (mask := kwargs["attention_mask"]) is not None and mask.dim() == 4:
            narrowed["attention_mask"] = mask[:, :, -1:]
        return (hidden[:, -1:], *args[1:]), {**kwargs, **narrowed}

    backbone.hf.register_forward_pre_hook(before_model, with_kwargs=True)
    backbone.layers[index].register_forward_pre_hook(before_layer, with_kwargs=True)


def _wants_last_only(backbone: Backbone, cache: PrefixCache, kwargs: dict[str, Any]) -> bool:
    kept = kwargs.get("logits_to_keep")
    outputs = ("output_hidden_states", "output_attentions")
    shown = any(kwargs.get(name, getattr(backbone.config, name, False)) for name in outputs)
    # Retrieval that goes on counts the tokens that its layers see.
    goes_on = cache.retrieval is not None and cache.retrieval.every is not None
    return isinstance(kept, int) and kept == 1 and not shown and not goes_on
