"""Cache layers whose first entries are memory, so that a stock decoder attends to it without knowing.

Per layer, memory acts as keys and values only. Every entry has a position; what a query sees is decided by positions,
not by where entries lie. Two ways to fill a prefix: from slots in K/V form (reading: nothing is projected, and nothing
is copied at a decode step), and from hidden states (writing, training: gradients flow).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from remanence.errors import UnsupportedModelError
from remanence.kernels.rotation import rotate_rows
from remanence.memory.pool import Pool
from remanence.model.backbone import Backbone
from remanence.model.hooks import MemoryCache
from remanence.model.lora import Gate
from remanence.model.prefix_store import Buffers
from remanence.model.retriever import Retrieval

Fill = Callable[[int], None]  # puts what stays of the prefix into the buffers, for a prompt whose last position is this


class PrefixLayer(CacheLayerMixin):
    """One layer's cache: a prefix of memory, then the text, in one buffer that is allocated once.

    The buffer is `[B, capacity, H, D]`: slots are rows of it, and attention sees it as `[B, H, S, D]` without a copy.
    A call may have several rows per memory (beams, return sequences); the prefix is repeated when the first text comes.
    """

    is_croppable = True

    def __init__(self, buffers: Buffers, prefix: int) -> None:
        super().__init__()
        self.keys, self.values = buffers
        self._prefix = self._start = self._length = prefix
        self.places: Tensor | None = None  # [B, T], where the tokens of the first text go; None: behind the prefix
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the buffers are there."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if self._length == self._start:
            self._fit(key_states)
        start, end = self._length, self._length + key_states.shape[-2]
        self._reserve(end)
        rows: Any = slice(None)
        places: Any = slice(start, end)
        if self.places is not None and (column := start - self._prefix) < self.places.shape[1]:
            rows = torch.arange(len(self.keys), device=self.keys.device)[:, None]
            known = self.places[:, column : end - self._prefix]
            behind = torch.arange(start + known.shape[1], end, device=known.device).expand(len(known), -1)
            places = torch.cat([known, behind], dim=1).repeat_interleave(len(self.keys) // len(known), dim=0)
        self.keys[rows, places] = key_states.transpose(1, 2)
        self.values[rows, places] = value_states.transpose(1, 2)
        self._length = end
        return self.keys[:, :end].transpose(1, 2), self.values[:, :end].transpose(1, 2)

    def _fit(self, text: Tensor) -> None:  # [rows, H, T, D]
        """Take on the rows and the dtype (of autocast) of the first text."""
        per_memory = len(text) // len(self.keys)
        if per_memory > 1:
            self.batch_repeat_interleave(per_memory)
        if text.dtype != self.keys.dtype:
            self.keys, self.values = self.keys.to(text.dtype), self.values.to(text.dtype)

    def _reserve(self, end: int) -> None:
        capacity = self.keys.shape[1]
        if end <= capacity:
            return
        more = max(end, self._prefix + 2 * (capacity - self._prefix)) - capacity
        for name in ("keys", "values"):
            held: Tensor = getattr(self, name)
            setattr(self, name, torch.cat([held, held.new_empty(held.shape[0], more, *held.shape[2:])], dim=1))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._length + query_length, 0

    def get_seq_length(self) -> int:
        return self._length

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.hold(0)

    def hold(self, columns: int) -> None:
        """Begin behind the first columns of the text, which are in the buffers already."""
        self._start = self._length = self._prefix + columns

    @property
    def held(self) -> int:
        """The columns that it begins behind."""
        return self._start - self._prefix

    def again(self) -> "PrefixLayer":
        """The same prefix with no text behind it, in buffers of its own: gradients need them as they are."""
        made = PrefixLayer((self.keys.clone(), self.values.clone()), self._prefix)
        made.places = self.places
        made.hold(self.held)
        return made

    def crop(self, tokens_to_remove: int) -> None:
        self._length = max(self._start, self._length - abs(tokens_to_remove))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Only the text moves: beams of one memory share its prefix, and a head in front of it."""
        text = slice(self._prefix, self._length)
        for held in (self.keys, self.values):
            held[:, text] = held[:, text].index_select(0, beam_idx.to(held.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.keys, self.values = (held.repeat_interleave(repeats, dim=0) for held in (self.keys, self.values))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.keys, self.values = self.keys[indices], self.values[indices]


class PrefixCache(MemoryCache):
    """A cache that starts with memory.

    Entries lie in the order of their positions, padding first. Learned slots stand in front of the text; text slots
    stand behind its head, so the first text goes to two places.

    Attributes:
        prefix: entries of memory.
        positions: `[B, S]` of all entries so far, -1 where there is nothing (padding); None where each row has
            0, 1, 2, ....
        exempt: `[B or 1, n]` bool, which of the first n entries no sliding window hides; None: all obey it.
        retrieval: what is retrieved from long-term memory as the layers run; None where there is none.
        attention_mask: `[B, prefix + T]` bool of prefix and first text; None before `set_prompt`.
        fill: puts what stays of the prefix into the buffers; fill_retrieved: what a layer retrieved.
        reads: `[B, 1]` bool, which rows read any memory.
        gate: of the reading adapter, which acts for these rows only; None: there is no adapter.
    """

    def __init__(
        self,
        backbone: Backbone,
        layers: list[CacheLayerMixin],
        prefix: int,
        positions: Tensor | None = None,
        *,
        exempt: Tensor | None = None,
        retrieval: Retrieval | None = None,
    ) -> None:
        super().__init__(layers=layers)
        self.backbone, self.prefix, self.positions, self.exempt = backbone, prefix, positions, exempt
        self.retrieval = retrieval
        self.fill: Fill | None = None
        self.fill_retrieved: Callable[[int], None] | None = None
        self.attention_mask: Tensor | None = None
        self.reads = torch.ones(1, 1, dtype=torch.bool)
        self.gate: Gate | None = None
        self._prompt: Tensor | None = None  # [B, T] bool, which tokens of the first text are not padding

    def serves(self, decoder: Any) -> bool:
        return decoder is self.backbone.decoder

    def set_prompt(self, mask: Tensor) -> None:  # [B, T] bool
        """Take note of the first text, so that every later step knows its masks and positions."""
        front = torch.arange(self.prefix, device=mask.device).expand(len(mask), -1)
        if self.positions is not None:
            front = self.positions[:, : self.prefix]
        text = mask.long().cumsum(1) - 1 + (front >= 0).sum(1, keepdim=True)
        self._keep(torch.cat([front, text.masked_fill(~mask, -1)], dim=1), mask)

    def _keep(self, positions: Tensor, mask: Tensor) -> None:
        plain = torch.arange(positions.shape[1], device=mask.device)
        self.positions, self._prompt = None if bool((positions == plain).all()) else positions, mask
        self.attention_mask = positions >= 0

    def before_decoder(self, rows: int, tokens: int, device: torch.device) -> dict[str, Any]:
        past = self.get_seq_length()
        if self.gate is not None:
            acting = self._acting(rows, past - self.prefix, past - self.prefix + tokens).to(device)
            self.gate.open = None if bool(acting.all()) else acting
        keys = self._positions(rows, past + tokens, device)
        queries, own = self._asking(keys, past, rows)
        hidden = self.positions is not None and (tokens > 1 or bool((keys < 0).any()))
        arguments: dict[str, Any] = {"position_ids": queries.clamp(min=0), "attention_mask": None}
        if hidden or own is not None or (self.backbone.sliding and (self.positions is not None or self._exempts)):
            own = torch.arange(past, past + tokens, device=device)[None] if own is None else own
            masks = self.backbone.masks_of(lambda window: self._seen(keys, queries, own, window))
            arguments["attention_mask"] = masks
        return arguments

    def _acting(self, rows: int, start: int, end: int) -> Tensor:  # [rows, end - start] bool
        """For which tokens of the text the reading adapter acts."""
        return self.reads.repeat_interleave(rows // len(self.reads), dim=0).expand(rows, end - start)

    @property
    def _exempts(self) -> bool:
        return self.exempt is not None and self.exempt.shape[1] > 0

    def _positions(self, rows: int, end: int, device: torch.device) -> Tensor:  # [rows or 1, end]
        """Of all entries, those of the call that begins among them."""
        if self.positions is None:
            return torch.arange(end, device=device)[None]
        known = self.positions.repeat_interleave(rows // len(self.positions), dim=0)[:, :end]
        if (more := end - known.shape[1]) > 0:
            following = known.amax(dim=1, keepdim=True) + torch.arange(1, more + 1, device=device)
            known = torch.cat([known, following], dim=1)
        return known

    def _asking(self, keys: Tensor, past: int, rows: int) -> tuple[Tensor, Tensor | None]:
        """Positions `[rows or 1, T]` of a call's tokens, and in which entries they lie if not behind all others."""
        return keys[:, past:], None

    def _seen(self, keys: Tensor, queries: Tensor, own: Tensor, window: int | None) -> Tensor:  # -> [B, 1, T, S] bool
        """Which entries queries see: those that stand at no later position, within the window.

        A query that is padding sees itself, since a softmax over nothing is not a number.

        Args:
            keys: `[B, S]`, positions of all entries; queries: `[B, T]`; own: `[B or 1, T]`, which entries they are.
        """
        entry, asking = keys[:, None, None, :], queries[:, None, :, None]
        seen = (entry >= 0) & (entry <= asking)
        if window is not None:
            near = asking - entry < window
            if self.exempt is not None:
                exempt = self.exempt.repeat_interleave(max(1, len(near) // len(self.exempt)), dim=0)
                near = near.expand(max(len(near), len(exempt)), -1, -1, -1).clone()
                near[..., : exempt.shape[1]] |= exempt[:, None, None, :]
            seen = seen & near
        return seen | (torch.arange(keys.shape[1], device=keys.device) == own[:, None, :, None])

    def before_attention(self, layer: int, normed: Tensor) -> None:  # [rows, T, d]
        """Retrieve for this layer, before its keys and values arrive here."""
        if self.retrieval is not None and self.retrieval.observe(layer, normed, self._prompt):
            assert self.fill_retrieved is not None
            self.fill_retrieved(layer)

    def before_checkpoint(self, layer: int, hidden: Tensor) -> None:
        self.before_attention(layer, self.backbone.normed(layer, hidden))

    @property
    def unset(self) -> bool:
        """Whether the first text is not known yet."""
        return self.attention_mask is None

    def restart(self, tokens: int) -> None:
        """Begin again in front of the whole text, whose length may turn all keys otherwise.

        Raises:
            UnsupportedModelError: what is fed is not the whole text, so memory would be lost.
        """
        text = self.get_seq_length() - self.prefix
        if text and (tokens <= text or self.positions is not None or self.fill is None):
            raise UnsupportedModelError(
                f"{type(self.backbone.hf).__name__} dropped the cache that memory is read from, in the middle of a "
                "text; read it in one call, or with fewer tokens"
            )
        for layer in self.layers:
            layer.reset()
        if text:
            assert self._prompt is not None
            self.set_prompt(self._prompt.new_ones(len(self._prompt), tokens))
        if self.fill is not None:
            self.fill(self.prefix + tokens - 1)

    def buffers(self) -> list[Buffers]:
        """Keys and values of all layers, for another prefix when this one is done."""
        return [(layer.keys, layer.values) for layer in self.layers]


def new_layers(
    backbone: Backbone, rows: int, prefix: int, room: int, spare: Sequence[Buffers] = ()
) -> tuple[list[PrefixLayer], bool]:
    """A layer's buffers each, those to spare where they are large enough; and whether these are used."""
    shape = (rows, prefix + room, backbone.kv_heads, backbone.head_dim)
    like: dict[str, Any] = {"dtype": backbone.dtype, "device": backbone.device}
    reused = bool(spare) and spare[0][0].dtype == backbone.dtype and _holds(spare[0][0].shape, shape)
    if not reused:
        spare = [(torch.empty(shape, **like), torch.empty(shape, **like)) for _ in backbone.layers]
    return [PrefixLayer(buffers, prefix) for buffers in spare], reused


def _holds(there: Sequence[int], needed: Sequence[int]) -> bool:
    return there[1] >= needed[1] and (there[0], *there[2:]) == (needed[0], *needed[2:])


def pool_prefix(
    backbone: Backbone,
    pools: Sequence[Pool | None],
    bos: Sequence[tuple[Tensor, Tensor]] | None,
    *,
    tokens: int,
    room: int = 0,
    retrieval: Retrieval | None = None,
    spare: tuple[list[Buffers], bool] = ([], False),
) -> PrefixCache:
    """The prefix of a read of learned slots: per row [bos | retrieved | pool], each oldest first, turned by its place.

    Rows without a pool have no prefix.

    Args:
        bos: its key (turned) and value `[1, H, D]` in each layer.
        tokens: of the longest prompt; room: tokens that may follow.
        spare: buffers of an earlier prefix, and whether what stays of this one is in them.
    """
    front = 0 if bos is None else 1
    retrieved = [0] * len(pools)
    if retrieval is not None:
        retrieved = [0 if pool is None else size for pool, size in zip(pools, retrieval.sizes, strict=True)]
    lengths = [0 if pool is None else front + r + pool.size for pool, r in zip(pools, retrieved, strict=True)]
    prefix, rows, device = max(lengths), len(pools), backbone.device
    positions = torch.arange(prefix, device=device)[None]
    if min(lengths) < prefix:
        positions = positions - (prefix - torch.tensor(lengths, device=device)[:, None])
    layers, reused = new_layers(backbone, rows, prefix, tokens + room, spare[0])
    exempt = torch.ones(1, prefix, dtype=torch.bool, device=device)
    made = [layer for layer in layers if isinstance(layer, CacheLayerMixin)]
    cache = PrefixCache(
        backbone, made, prefix, positions if len(positions) > 1 else None, exempt=exempt, retrieval=retrieval
    )
    cache.reads = torch.tensor(lengths)[:, None] > 0
    scratch = torch.empty(prefix, backbone.kv_heads, backbone.head_dim, dtype=backbone.dtype, device=device)
    fast = backbone.split_halves
    rotary = None

    def angles(layer: int) -> tuple[Tensor, Tensor]:  # [B or 1, prefix, R] each
        assert rotary is not None
        cos, sin = rotary(layer)
        return cos.expand(rows, -1, -1), sin.expand(rows, -1, -1)

    def put(layer: int, out: Tensor, keys: Tensor, places: Tensor, cos: Tensor, sin: Tensor) -> None:
        if fast:
            rotate_rows(out, keys, places, cos, sin, scratch[: len(places)])
        else:
            out.copy_(backbone.rotate(layer, keys[places], cos, sin))

    def fill(longest: int) -> None:
        nonlocal rotary
        rotary = backbone.rotary(positions.clamp(min=0), scratch, longest)
        for layer, held in enumerate(layers) if prefix else ():
            cos, sin = angles(layer)
            for row, pool in enumerate(pools):
                start = prefix - lengths[row]
                keys, values = held.keys[row, :prefix], held.values[row, :prefix]
                keys[:start], values[:start] = 0, 0
                if pool is None:
                    continue
                if bos is not None:
                    keys[start], values[start] = bos[layer][0][0], bos[layer][1][0]
                start, order = start + front + retrieved[row], pool.order[layer]
                put(layer, keys[start:], pool.keys[layer], order, cos[row, start:], sin[row, start:])
                torch.index_select(pool.values[layer], 0, order, out=values[start:])

    def fill_retrieved(layer: int) -> None:
        assert retrieval is not None
        (cos, sin), held = angles(layer), layers[layer]
        copies = len(held.keys) // rows
        for row, found in enumerate(retrieval.found[layer]):
            if found is None or not retrieved[row]:
                continue
            start = prefix - lengths[row] + front
            at, every = slice(start, start + retrieved[row]), torch.arange(retrieved[row], device=device)
            for copy in range(row * copies, (row + 1) * copies):
                put(layer, held.keys[copy, at], found.keys, every, cos[row, at], sin[row, at])
                held.values[copy, at] = found.values

    longest = prefix + tokens - 1
    if reused and spare[1] and not backbone.length_dependent:
        rotary = backbone.rotary(positions.clamp(min=0), scratch, longest)
    else:
        fill(longest)
    cache.fill, cache.fill_retrieved = fill, fill_retrieved
    return cache


def hidden_prefix(
    backbone: Backbone, hidden: Tensor, mask: Tensor | None = None
) -> list[CacheLayerMixin]:  # hidden [B, L, P, d], mask [B, P]
    """Layers whose prefix is projected from hidden states, so that gradients reach them.

    Positions count the entries that the mask keeps, from 0.
    """
    positions = torch.arange(hidden.shape[2], device=hidden.device)[None]
    if mask is not None:
        positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    rotary = backbone.rotary(positions, hidden[..., :0])
    layers: list[CacheLayerMixin] = []
    for index in range(hidden.shape[1]):
        keys, values = backbone.project(index, hidden[:, index])
        layer = DynamicLayer()
        layer.update(backbone.rotate(index, keys, *rotary(index)).transpose(1, 2), values.transpose(1, 2))
        layers.append(layer)
    return layers
