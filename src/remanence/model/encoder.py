"""The write's forward pass: a chunk goes in, K new slots per layer come out (MemoryLLM, section 3.1.2)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from remanence.model.backbone import Backbone
from remanence.model.prefix import PrefixCache, hidden_prefix


class WriteCache(PrefixCache):
    """What the layers of one write share. It travels with the call, so that writes on one model can run side by side.

    Attributes:
        delta: the new slots of each layer passed so far, `[B, min(K, T), d]` each.
    """

    def __init__(
        self,
        layers: list[CacheLayerMixin],
        prefix: int,
        slots: int,
        positional: Tensor,
        stand_in: tuple[Tensor, Tensor] | None,
        unwritten: Tensor | None,
    ) -> None:
        super().__init__(layers, prefix)
        self.slots, self.positional, self.stand_in, self.unwritten = slots, positional, stand_in, unwritten
        self.delta: list[Tensor] = []

    def in_sight(self, batch: Tensor, query: Tensor, key: Tensor) -> Tensor:
        memory = super().in_sight(batch, query, key)
        if self.stand_in is not None:
            slots = self.stand_in[0][batch, (key - self.prefix).clamp(min=0)]
            memory = memory | (slots & (key <= query))
        return memory

    def enter(self, layer: int, hidden: Tensor) -> Tensor:  # [B, T, d]
        if self.stand_in is not None:
            where, rows = self.stand_in
            hidden = torch.where(where[..., None], rows[:, layer], hidden)
        kept, last = hidden[:, : -self.slots], hidden[:, -self.slots :]
        return torch.cat([kept, last + self.positional], dim=1)

    def leave(self, hidden: Tensor) -> None:  # [B, T, d]
        delta = hidden[:, -self.slots :]
        if self.unwritten is not None and len(self.delta) < len(self.layers) - 1:
            # The published code adds the embedding for the next layer in place, into storage that the delta shares.
            delta = delta + self.unwritten[:, None, None] * self.positional
        self.delta.append(delta)


def install_hooks(backbone: Backbone) -> None:
    """Let every decoder layer report to the `WriteCache` of the call that runs through it, if there is one.

    Two `MemoryModel`s may share a decoder; its layers report once.
    """
    if getattr(backbone.decoder, "reports_writes", False):
        return
    backbone.decoder.reports_writes = True
    name = backbone.family.cache
    for index, layer in enumerate(backbone.layers):

        def before(
            module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], index: int = index
        ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
            cache = kwargs.get(name)
            return ((cache.enter(index, args[0]), *args[1:]), kwargs) if isinstance(cache, WriteCache) else None

        def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            cache = kwargs.get(name)
            if isinstance(cache, WriteCache):
                cache.leave(output[0] if isinstance(output, tuple) else output)

        layer.register_forward_pre_hook(before, with_kwargs=True)
        layer.register_forward_hook(after, with_kwargs=True)


def encode(
    backbone: Backbone,
    ids: Tensor,
    newest: Tensor | None,
    *,
    slots_per_write: int,
    bos: Tensor | None,
    positional: Tensor,
    lengths: Sequence[int] | None = None,
    written: Sequence[bool] | None = None,
) -> Tensor:  # [B, L, min(K, T), d]
    """New slots of a batch of chunks; differentiable, changes nothing.

    The prefix is [bos | the K newest slots]. A chunk with n < K tokens is preceded by the last K - n of these slots as
    queries at every layer, and the prefix is shorter by as many. A row that was never written has no prefix, and its
    new slots are the last min(n, K).

    Args:
        ids: `[B, T]`, left-padded; T >= K if a row is written and short.
        newest: `[B, L, K, d]`; None if no row was ever written.
        bos: `[L, 1, d]`; positional: `[1, 1, d]`.
        lengths: tokens of each row; None if all have T.
        written: which rows were ever written; None if all were, given `newest`.
    """
    rows, tokens = ids.shape
    k, device = slots_per_write, ids.device
    lengths = [tokens] * rows if lengths is None else list(lengths)
    written = [newest is not None] * rows if written is None else list(written)
    count = torch.tensor(lengths, device=device)[:, None]
    unwritten = None if all(written) else ~torch.tensor(written, device=device)
    queries = torch.arange(tokens, device=device) >= tokens - count  # [B, T]
    stand_in, mask = None, None
    layers: list[CacheLayerMixin]
    if newest is None:
        front = torch.zeros(rows, 0, dtype=torch.bool, device=device)
        layers = [DynamicLayer() for _ in backbone.layers]
    else:
        short = (count < k) & torch.tensor(written, device=device)[:, None]  # [B, 1]
        slots = newest if bos is None else torch.cat([bos[None].expand(rows, -1, -1, -1), newest], dim=2)
        front = torch.ones(rows, slots.shape[2], dtype=torch.bool, device=device)
        if bool(short.any()):
            front[:, -k:] = (torch.arange(k, device=device) < count) | ~short
            where = short & (torch.arange(tokens, device=device) >= tokens - k) & ~queries
            padded = torch.cat([newest.new_zeros(rows, newest.shape[1], tokens - k, newest.shape[3]), newest], dim=2)
            stand_in = (where, _shifted(padded, count))
            queries = queries | where
        if unwritten is not None:
            front = front & ~unwritten[:, None]
        layers = hidden_prefix(backbone, slots, None if bool(front.all()) else front)
    if not bool(front.all() & queries.all()):
        mask = torch.cat([front, queries], dim=1)
    cache = WriteCache(layers, front.shape[1], k, positional, stand_in, unwritten)
    backbone.decoder(
        input_ids=ids,
        attention_mask=mask,
        position_ids=None if mask is None else (mask.long().cumsum(1) - 1).clamp(min=0)[:, -tokens:],
        past_key_values=cache,
        use_cache=True,
    )
    return torch.stack(cache.delta, dim=1)


def _shifted(newest: Tensor, count: Tensor) -> Tensor:  # [B, L, T, d], count [B, 1]
    """Slots moved left by n: position T - K + i of a short row holds slot n + i, so that the newest meets the text."""
    tokens = newest.shape[2]
    source = (torch.arange(tokens, device=newest.device) + count).clamp(max=tokens - 1)
    return newest.gather(2, source[:, None, :, None].expand_as(newest))
