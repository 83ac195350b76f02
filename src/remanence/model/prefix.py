"""Cache layers whose first entries are memory, so that a stock decoder attends to it without knowing.

Per layer, memory acts as keys and values only. `PrefixLayer` holds them in front of the text's; `position_ids` then
start behind the prefix by themselves. Two ways to fill it: from pools in K/V form (reading: nothing is projected, and
nothing is copied at a decode step), and from hidden states (writing, training, pending deltas: gradients flow).
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer
from transformers.masking_utils import create_masks_for_generate

from remanence.errors import UnsupportedModelError
from remanence.memory import NewSlots, Pool
from remanence.model.attention import SHARED_HEADS
from remanence.model.backbone import Backbone
from remanence.model.retriever import Retrieval
from remanence.model.rotation import rotate_rows
from remanence.model.spare import Buffers

Fill = Callable[[Tensor, Tensor], None]


class PrefixLayer(CacheLayerMixin):
    """One layer's cache: a prefix of memory, then the text, in one buffer that is allocated once.

    The buffer is `[B, capacity, H, D]`: slots are rows of it, and attention sees it as `[B, H, S, D]` without a copy.
    It is filled when the first text arrives, which may have several rows per memory (beams, return sequences).
    """

    is_croppable = True

    def __init__(self, fill: Fill, renew: Fill, rows: int, prefix: int, room: int) -> None:
        """`fill` writes what stays, bos and pool, and `renew` what was retrieved, into `[B, prefix, H, D]` each."""
        super().__init__()
        self._fill, self._renew, self._rows, self._prefix, self._room = fill, renew, rows, prefix, room
        self._length = prefix
        self._spare: Buffers | None = None
        self._filled = False

    def reuse(self, spare: Buffers, filled: bool) -> None:
        """Take these buffers if they are large enough; `filled`: what stays is in them."""
        self._spare, self._filled = spare, filled

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        batch, heads, text, size = key_states.shape
        shape = (self._rows, self._prefix + max(text, self._room), heads, size)
        spare, self._spare = self._spare, None
        if spare is not None and spare[0].dtype == key_states.dtype and _holds(spare[0].shape, shape):
            keys, values = spare
        else:
            keys, values, self._filled = key_states.new_empty(shape), key_states.new_empty(shape), False
        front = slice(0, self._prefix)
        if not self._filled:
            self._fill(keys[:, front], values[:, front])
        self._renew(keys[:, front], values[:, front])
        per_memory = batch // self._rows
        self.keys = keys if per_memory == 1 else keys.repeat_interleave(per_memory, dim=0)
        self.values = values if per_memory == 1 else values.repeat_interleave(per_memory, dim=0)
        self.is_initialized = True

    def prepare(self) -> Buffers | None:
        """Write what stays into the buffers at hand, for another cache; None where there are none, or too small."""
        if self._spare is None or self._spare[0].shape[1] <= self._prefix:
            return None
        keys, values = self._spare
        self._fill(keys[:, : self._prefix], values[:, : self._prefix])
        return keys, values

    def renew(self) -> None:
        """Put newly retrieved slots where the old ones were."""
        if self.is_initialized:
            self._renew(self.keys, self.values)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._length, self._length + key_states.shape[-2]
        self._reserve(end)
        self.keys[:, start:end] = key_states.transpose(1, 2)
        self.values[:, start:end] = value_states.transpose(1, 2)
        self._length = end
        return self.keys[:, :end].transpose(1, 2), self.values[:, :end].transpose(1, 2)

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
        self._length = self._prefix

    def crop(self, tokens_to_remove: int) -> None:
        self._length = max(self._prefix, self._length - abs(tokens_to_remove))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beams of one memory share its prefix, so only the text moves."""
        text = slice(self._prefix, self._length)
        for held in (self.keys, self.values):
            held[:, text] = held[:, text].index_select(0, beam_idx.to(held.device))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.keys, self.values = (held.repeat_interleave(repeats, dim=0) for held in (self.keys, self.values))

    def batch_select_indices(self, indices: Tensor) -> None:
        self.keys, self.values = self.keys[indices], self.values[indices]


def _holds(there: Sequence[int], asked: Sequence[int]) -> bool:
    return there[1] >= asked[1] and (there[0], *there[2:]) == (asked[0], *asked[2:])


class PrefixCache(Cache):
    """A cache that starts with memory.

    Attributes:
        prefix: entries in front of the text.
        prefix_mask: `[B, prefix]` bool, False where a row has fewer entries than the longest; None if none has.
        mask: `[B, prefix + T]` bool of prefix and first text, set by `follow_text`; None if nothing is masked.
        retrieval: what is retrieved from long-term memory as the layers run; None where there is none.
        last_only: of the call that runs, only the last token's output is wanted.
    """

    def __init__(
        self,
        layers: list[CacheLayerMixin],
        prefix: int,
        prefix_mask: Tensor | None = None,
        retrieval: Retrieval | None = None,
    ) -> None:
        super().__init__(layers=layers)
        self.prefix, self.prefix_mask, self.retrieval = prefix, prefix_mask, retrieval
        self.follows = self.last_only = False
        self.mask: Tensor | None = None

    def retrieving(self, layer: int, normed: Tensor) -> None:  # [rows, T, d], what attention sees at this layer
        """Retrieve for this layer, before its keys and values arrive here."""
        if self.retrieval is None:
            return
        mask = None if self.mask is None else self.mask[:, self.prefix : self.prefix + normed.shape[1]]
        if self.retrieval.observe(layer, normed, mask):
            self.layers[layer].renew()

    def reuse(self, spare: list[Buffers], filled: bool) -> None:
        """Build the prefix in the buffers of an earlier one; `filled`: what stays of it is in them."""
        for layer, buffers in zip(self.layers, spare, strict=False):
            layer.reuse(buffers, filled)

    def buffers(self) -> list[Buffers]:
        """Keys and values of all layers, for another prefix when this one is done."""
        return [(layer.keys, layer.values) for layer in self.layers]

    def in_sight(self, batch: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Whether a key is memory, which no window hides."""
        return key < self.prefix

    def follow_text(self, text: Tensor) -> Tensor:  # [B, T] bool -> [B, prefix + T] bool
        """Take note of what is padding in the first text, so that every later step knows its mask and positions."""
        front = text.new_ones(len(text), self.prefix) if self.prefix_mask is None else self.prefix_mask
        joined = torch.cat([front, text], dim=1)
        self.follows, self.mask = True, None if bool(joined.all()) else joined
        return joined

    def step(self, rows: int, tokens: int, device: torch.device) -> tuple[Tensor | None, Tensor]:
        """Mask `[rows, past + tokens]`, None if nothing is masked, and positions `[rows or 1, tokens]`."""
        past = self.get_seq_length()
        if self.mask is None:
            return None, torch.arange(past, past + tokens, device=device)[None]
        known = self.mask.repeat_interleave(rows // len(self.mask), dim=0)[:, : past + tokens]
        mask = torch.cat([known, known.new_ones(rows, past + tokens - known.shape[1])], dim=1)
        return mask, (mask.long().cumsum(dim=1) - 1).clamp(min=0)[:, -tokens:]


def pool_prefix(
    backbone: Backbone,
    pools: Sequence[Pool | None],
    bos: Sequence[tuple[Tensor, Tensor]] | None,
    room: int,
    retrieval: Retrieval | None = None,
) -> PrefixCache:
    """The prefix of a read: per row [bos | retrieved | pool], each oldest first, rotated by its place.

    Rows without a pool have no prefix. `bos`: its key (rotated) and value `[1, H, D]` in each layer.
    """
    front = 0 if bos is None else 1
    retrieved = [0] * len(pools)
    if retrieval is not None:
        retrieved = [0 if pool is None else size for pool, size in zip(pools, retrieval.sizes, strict=True)]
    lengths = [0 if pool is None else front + r + pool.size for pool, r in zip(pools, retrieved, strict=True)]
    prefix, rows, device = max(lengths), len(pools), backbone.device
    mask = None
    if min(lengths) < prefix:
        mask = torch.arange(prefix, device=device) >= prefix - torch.tensor(lengths, device=device)[:, None]
    offsets = prefix - torch.tensor(lengths if mask is not None else [prefix], device=device)[:, None]
    positions = (torch.arange(prefix, device=device) - offsets).clamp(min=0)
    rotary = backbone.rotary(positions, torch.empty(0, dtype=backbone.dtype, device=device))

    def angles(layer: int) -> tuple[Tensor, Tensor]:  # [B, prefix, R] each
        cos, sin = rotary(layer)
        return cos.expand(rows, -1, -1), sin.expand(rows, -1, -1)

    def put(layer: int, out: Tensor, keys: Tensor, rows: Tensor, cos: Tensor, sin: Tensor) -> None:
        if in_place:
            rotate_rows(out, keys, rows, cos, sin, scratch[: len(rows)])
        else:
            out.copy_(backbone.rotate(layer, keys[rows], cos, sin))

    def put_retrieved(layer: int, keys: Tensor, values: Tensor) -> None:  # [B times the rows of a memory, S, H, D]
        if retrieval is None or not any(retrieved):
            return
        cos, sin = angles(layer)
        every = torch.arange(max(retrieved), device=device)
        for row, found in enumerate(retrieval.found[layer]):
            if found is None or not retrieved[row]:
                continue
            start = prefix - lengths[row] + front
            at = slice(start, start + retrieved[row])
            for copy in range(row * (len(keys) // rows), (row + 1) * (len(keys) // rows)):
                put(layer, keys[copy, at], found.keys, every[: retrieved[row]], cos[row, at], sin[row, at])
                values[copy, at] = found.values

    def fill_layer(layer: int) -> Fill:
        def fill(keys: Tensor, values: Tensor) -> None:  # [B, prefix, H, D] each
            if not prefix:
                return
            cos, sin = angles(layer)
            first = None if bos is None else bos[layer]
            for row, pool in enumerate(pools):
                start = prefix - lengths[row]
                if start:
                    keys[row, :start], values[row, :start] = 0, 0
                if pool is None:
                    continue
                if first is not None:
                    keys[row, start], values[row, start] = first[0][0], first[1][0]
                start, order = start + front + retrieved[row], pool.order[layer]
                put(layer, keys[row, start:], pool.keys[layer], order, cos[row, start:], sin[row, start:])
                torch.index_select(pool.values[layer], 0, order, out=values[row, start:])

        return fill

    in_place = backbone.split_halves
    scratch = torch.empty(prefix, backbone.kv_heads, backbone.head_dim, dtype=backbone.dtype, device=device)
    layers = [
        PrefixLayer(fill_layer(layer), partial(put_retrieved, layer), rows, prefix, room)
        for layer in range(len(backbone.layers))
    ]
    return PrefixCache(list[CacheLayerMixin](layers), prefix, mask, retrieval)


def pool_with_pending(pool: Pool, new: NewSlots, sampled: Tensor | None) -> Pool:
    """A pool to read in which new slots stand behind the `sampled` ranks `[L, N - q]` of another, or alone."""
    keys, values = new.keys, new.values
    if sampled is not None:
        places = pool.places(sampled)
        layers = torch.arange(len(keys), device=keys.device)[:, None]
        keys = torch.cat([pool.keys[layers, places], keys], dim=1)
        values = torch.cat([pool.values[layers, places], values], dim=1)
    serial = torch.arange(keys.shape[1], device=keys.device).repeat(len(keys), 1)
    return Pool(keys, values, serial)


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


def mask_each_step(backbone: Backbone) -> None:
    """Let the cache of a read decide what is masked at every step, and which positions new tokens have.

    What `generate` makes of a mask that is longer than its text differs between versions of transformers and between
    ways to generate: assisted decoding, for one, cuts it to the length of the text.
    """

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        cache = kwargs.get("past_key_values")
        if not isinstance(cache, PrefixCache) or not cache.follows:
            return None
        rows, tokens, device = _shape_of_text(args, kwargs)
        kwargs["attention_mask"], kwargs["position_ids"] = cache.step(rows, tokens, device)
        return args, kwargs

    backbone.decoder.register_forward_pre_hook(hook, with_kwargs=True)


def _shape_of_text(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int, torch.device]:
    """Rows, tokens and device of what a decoder was called with, ids or embeddings."""
    given = kwargs.get("input_ids", args[0] if args else None)
    text: Tensor = kwargs["inputs_embeds"] if given is None else given
    return text.shape[0], text.shape[1], text.device


def show_prefix_to_sliding_layers(backbone: Backbone) -> None:
    """Give layers with a window a mask in which memory is always in sight; the window slides over the text only.

    Raises (at the first read or write):
        UnsupportedModelError: the attention implementation takes no mask, so that old slots would fall out of sight.
    """

    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        cache, mask = kwargs.get("past_key_values"), kwargs.get("attention_mask")
        if not isinstance(cache, PrefixCache) or isinstance(mask, dict) or (mask is not None and mask.dim() == 4):
            return None
        implementation = backbone.config._attn_implementation
        if implementation not in ("sdpa", SHARED_HEADS, "eager"):
            raise UnsupportedModelError(
                f"{implementation} hides memory from sliding-window layers (window {backbone.config.sliding_window}); "
                "use attn_implementation='sdpa' or 'eager' with this model"
            )
        rows, tokens, device = _shape_of_text(args, kwargs)
        kwargs["attention_mask"] = create_masks_for_generate(
            config=backbone.config,
            inputs_embeds=torch.empty(rows, tokens, 0, dtype=backbone.dtype, device=device),
            attention_mask=mask,
            past_key_values=cache,
            position_ids=kwargs.get("position_ids"),
            or_mask_function=lambda batch, head, query, key: cache.in_sight(batch, query, key),
        )
        return args, kwargs

    if backbone.sliding:
        backbone.decoder.register_forward_pre_hook(hook, with_kwargs=True)
