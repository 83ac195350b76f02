"""Activation checkpointing of a decoder whose cache starts with memory.

What transformers offers takes the cache away from the layers that it runs again, and with it the memory. Here a layer
runs again from where its cache stood: behind the memory, before the text.
"""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import DynamicLayer

from remanence.model.adapters import TwinLora
from remanence.model.backbone import Backbone
from remanence.model.prefix import PrefixCache


def checkpoint_layers(backbone: Backbone, adapters: TwinLora | None) -> None:
    """Let every layer in training keep its input only, and run anew in the backward pass.

    Hooks on a layer run once. What retrieves for a layer does so once too, ahead of what runs twice.
    """
    for index, layer in enumerate(backbone.layers):
        _checkpoint(backbone, adapters, index, layer)


def _checkpoint(backbone: Backbone, adapters: TwinLora | None, index: int, layer: nn.Module) -> None:
    stock, name = type(layer).forward.__get__(layer), backbone.family.cache

    def forward(hidden: Any, *args: Any, **kwargs: Any) -> Any:
        if not (layer.training and torch.is_grad_enabled()):
            return stock(hidden, *args, **kwargs)
        cache, role = kwargs.get(name), None if adapters is None else adapters.role
        if isinstance(cache, PrefixCache):
            cache.retrieving(index, backbone.normed(index, hidden))

        def run(*inputs: Any) -> Any:
            if adapters is not None and role is not None:
                adapters.turn_to(role)
            if cache is None:
                return stock(*inputs, **kwargs)
            # The text's keys and values are not kept: nothing reads on behind it.
            memory = cache.layers[index]
            cache.layers[index] = behind = DynamicLayer()
            if memory.is_initialized:
                behind.update(memory.keys, memory.values)
            try:
                return stock(*inputs, **kwargs)
            finally:
                cache.layers[index] = memory

        return checkpoint(run, hidden, *args, use_reentrant=False)

    layer.forward = forward
