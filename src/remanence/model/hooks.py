"""Every hook on a decoder: what they call, how they are installed, and how they are removed again.

Hooks are small objects that know the number of their layer and no module, so a decoder can be copied and pickled with
them. Whatever they do is done by the cache that travels with a call; calls with other caches pass through untouched.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer

from remanence.errors import InvalidInputError
from remanence.model.lora import TwinLora

_HANDLES = "_remanence_handles"  # on a decoder: how its hooks are removed


class MemoryCache(Cache):
    """A cache that takes part in the call it travels with. This one does nothing; others override."""

    def serves(self, decoder: Any) -> bool:
        """Whether it was made for this decoder."""
        return True

    @property
    def left_out(self) -> int:
        """Columns of the text that the decoder is not fed, since they are there already."""
        return 0

    def before_decoder(self, rows: int, tokens: int, device: torch.device) -> dict[str, Any]:
        """Arguments to set, given the shape of the text that the decoder is called with."""
        return {}

    def before_layer(self, layer: int, hidden: Tensor) -> Tensor:  # [B, T, d]
        """What the layer gets in place of its input."""
        return hidden

    def before_attention(self, layer: int, normed: Tensor) -> None:  # [B, T, d]
        """Sees what the layer's attention sees, before its keys and values arrive."""

    def before_checkpoint(self, layer: int, hidden: Tensor) -> None:  # [B, T, d]
        """Sees the input of a layer that will run twice, ahead of both times."""

    def after_layer(self, layer: int, hidden: Tensor) -> None:  # [B, T, d]
        """Sees the layer's output."""

    def restart(self, tokens: int) -> None:
        """Begin again in front of a text of so many tokens."""
        raise NotImplementedError


_expected: ContextVar[MemoryCache | None] = ContextVar("expected", default=None)


@contextmanager
def expecting(cache: MemoryCache | None) -> Iterator[None]:
    """A scope in which every call of the decoder that this cache serves reads it; None: stock calls.

    A family may drop the cache it was given, and read the whole text again (Phi-3, where its rotation changes with the
    length). The hook on the decoder then puts it back.
    """
    token = _expected.set(cache)
    try:
        yield
    finally:
        _expected.reset(token)


def expected() -> MemoryCache | None:
    """The cache that calls of the decoder read in this thread."""
    return _expected.get()


class _BeforeDecoder:
    def __call__(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        cache, expected = kwargs.get("past_key_values"), _expected.get()
        given = kwargs.get("input_ids", args[0] if args else None)
        text: Tensor = kwargs["inputs_embeds"] if given is None else given
        if expected is not None and expected.serves(module) and not isinstance(cache, MemoryCache):
            expected.restart(text.shape[1])
            kwargs["past_key_values"], kwargs["use_cache"] = expected, True
            cache = expected
        if not isinstance(cache, MemoryCache):
            return None
        if module.training and any(getattr(layer, "gradient_checkpointing", False) for layer in module.layers):
            raise InvalidInputError(
                "the decoder's own gradient checkpointing drops the cache that memory is read from; call "
                "model.gradient_checkpointing_enable() of the model with memory in its place, or model.eval() to read"
            )
        if given is not None and (left_out := cache.left_out):
            text = given[:, left_out:]
            args, kwargs["input_ids"] = args[1:], text
        kwargs.update(cache.before_decoder(text.shape[0], text.shape[1], text.device))
        return args, kwargs


class _LayerHook:
    """`name`: what the layer calls its cache."""

    def __init__(self, layer: int, name: str) -> None:
        self.layer, self.name = layer, name

    def cache(self, kwargs: dict[str, Any]) -> MemoryCache | None:
        cache = kwargs.get(self.name)
        return cache if isinstance(cache, MemoryCache) else None


class _BeforeLayer(_LayerHook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if (cache := self.cache(kwargs)) is None:
            return None
        if args:
            return (cache.before_layer(self.layer, args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": cache.before_layer(self.layer, kwargs["hidden_states"])}


class _AfterLayer(_LayerHook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if (cache := self.cache(kwargs)) is not None:
            cache.after_layer(self.layer, output[0] if isinstance(output, tuple) else output)


class _BeforeAttention(_LayerHook):
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if (cache := self.cache(kwargs)) is not None:
            cache.before_attention(self.layer, kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])


class _Adapters:
    """Removes adapters, as the handle of a hook removes a hook."""

    def __init__(self, adapters: TwinLora, hf: nn.Module) -> None:
        self.adapters, self.hf = adapters, hf

    def remove(self) -> None:
        self.adapters.unload(self.hf)


def install(decoder: Any, attention: str, cache: str) -> list[Any]:
    """Hook a decoder, once however many models share it.

    Args:
        attention: what its layers call their attention; cache: what they call the cache.

    Returns:
        What these hooks are known by: `installed` finds it until they are removed.
    """
    if (handles := installed(decoder)) is not None:
        return handles
    handles = [decoder.register_forward_pre_hook(_BeforeDecoder(), with_kwargs=True)]
    for index, layer in enumerate(decoder.layers):
        handles += [
            layer.register_forward_pre_hook(_BeforeLayer(index, cache), with_kwargs=True),
            layer.register_forward_hook(_AfterLayer(index, cache), with_kwargs=True),
            getattr(layer, attention).register_forward_pre_hook(_BeforeAttention(index, cache), with_kwargs=True),
        ]
    setattr(decoder, _HANDLES, handles)
    return handles


def installed(decoder: Any) -> list[Any] | None:
    """The hooks of a decoder; None: it has none of ours."""
    handles: list[Any] | None = getattr(decoder, _HANDLES, None)
    return handles


def remove_too(decoder: Any, adapters: TwinLora, hf: nn.Module) -> None:
    """Let `remove` take these adapters out of `hf`, whichever of the models on this decoder is detached."""
    getattr(decoder, _HANDLES).append(_Adapters(adapters, hf))


def remove(decoder: Any) -> None:
    """Take off all that `install` and `checkpoint_layers` put on, and adapters."""
    for handle in decoder.__dict__.pop(_HANDLES, []):
        handle.remove()
    for layer in decoder.layers:
        if isinstance(layer.__dict__.get("forward"), _Checkpointed):
            del layer.forward


def checkpoint_layers(decoder: Any, cache: str, adapters: TwinLora | None) -> None:
    """Let every layer in training keep its input only, and run again in the backward pass, behind the same memory.

    What transformers offers takes the cache away from the layers that it runs again, and with it the memory. Hooks on a
    layer run once; what its attention's hook does is done ahead of what runs twice.
    """
    for index, layer in enumerate(decoder.layers):
        layer.forward = _Checkpointed(layer, index, cache, adapters)


class _Checkpointed:
    """The forward of a layer that is run again in the backward pass."""

    def __init__(self, layer: nn.Module, index: int, cache: str, adapters: TwinLora | None) -> None:
        self.layer, self.index, self.cache, self.adapters = layer, index, cache, adapters

    def __call__(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Any:
        layer, adapters, cache = self.layer, self.adapters, kwargs.get(self.cache)
        stock = type(layer).forward
        if not (layer.training and torch.is_grad_enabled()):
            return stock(layer, hidden, *args, **kwargs)
        role = None if adapters is None else adapters.role

        def run(*inputs: Any) -> Any:
            if adapters is None:
                return again(*inputs)
            adapters.turn_to(role)
            try:
                return again(*inputs)
            finally:
                adapters.turn_to(adapters.role)

        def again(*inputs: Any) -> Any:
            if cache is None:
                return stock(layer, *inputs, **kwargs)
            # The text's keys and values are not kept: nothing reads on behind it.
            memory = cache.layers[self.index]
            cache.layers[self.index] = _again(memory)
            try:
                return stock(layer, *inputs, **kwargs)
            finally:
                cache.layers[self.index] = memory

        if isinstance(cache, MemoryCache):
            cache.before_checkpoint(self.index, hidden)
        return checkpoint(run, hidden, *args, use_reentrant=False)


def _again(memory: Any) -> CacheLayerMixin:
    """A cache layer that begins with the same memory, for one pass."""
    if hasattr(memory, "again"):
        made: CacheLayerMixin = memory.again()
        return made
    behind = DynamicLayer()
    if memory.is_initialized:
        behind.update(memory.keys, memory.values)
    return behind
