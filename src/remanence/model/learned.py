"""The learned writer: K slots a chunk, which a trained model compresses it into (MemoryLLM, section 3.1.2; M+)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from remanence.config import LongTermConfig, StorageConfig, integer
from remanence.errors import InvalidInputError
from remanence.memory.longterm import LongTerm
from remanence.memory.memory import Memory
from remanence.memory.pool import NewSlots, Pool
from remanence.memory.snapshot import layout_of
from remanence.memory.transaction import Evicted, Piece, Progress, Row
from remanence.model.backbone import Backbone
from remanence.model.cache import PrefixCache, hidden_prefix
from remanence.model.chat import TODAY
from remanence.model.decoder import MemoryDecoder
from remanence.model.inputs import chunked, left_padded
from remanence.model.lora import Role


class WriteCache(PrefixCache):
    """What the layers of one write share. It travels with the call, so that writes on one model can run side by side.

    Attributes:
        delta: the new slots of each layer passed so far, `[B, min(K, T), d]` each.
    """

    def __init__(
        self,
        backbone: Backbone,
        layers: list[CacheLayerMixin],
        prefix: int,
        positions: Tensor | None,
        exempt: Tensor,  # [B, prefix + T]: what no window hides
        slots: int,
        positional: Tensor,
        stand_in: tuple[Tensor, Tensor] | None,
        unwritten: Tensor | None,
    ) -> None:
        super().__init__(backbone, layers, prefix, positions, exempt=exempt)
        self.slots, self.positional, self.stand_in, self.unwritten = slots, positional, stand_in, unwritten
        self.delta: list[Tensor] = []

    def before_layer(self, layer: int, hidden: Tensor) -> Tensor:  # [B, T, d]
        if self.stand_in is not None:
            where, rows = self.stand_in
            hidden = torch.where(where[..., None], rows[:, layer], hidden)
        kept, last = hidden[:, : -self.slots], hidden[:, -self.slots :]
        return torch.cat([kept, last + self.positional], dim=1)

    def after_layer(self, layer: int, hidden: Tensor) -> None:  # [B, T, d]
        delta = hidden[:, -self.slots :]
        if self.unwritten is not None and layer < len(self.layers) - 1:
            # The published code adds the embedding for the next layer in place, into storage that the delta shares.
            delta = delta + self.unwritten[:, None, None] * self.positional
        self.delta.append(delta)


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
    in_text = torch.zeros(rows, tokens, dtype=torch.bool, device=device)  # slots that stand among the queries
    stand_in = None
    whole = newest is None or (all(written) and min(lengths) >= k)  # every row has the same slots in front
    layers: list[CacheLayerMixin]
    if newest is None:
        front = torch.zeros(rows, 0, dtype=torch.bool, device=device)
        layers = [DynamicLayer() for _ in backbone.layers]
    else:
        short = (count < k) & torch.tensor(written, device=device)[:, None]  # [B, 1]
        slots = newest if bos is None else torch.cat([bos[None].expand(rows, -1, -1, -1), newest], dim=2)
        front = torch.ones(rows, slots.shape[2], dtype=torch.bool, device=device)
        if any(w and n < k for w, n in zip(written, lengths, strict=True)):
            front[:, -k:] = (torch.arange(k, device=device) < count) | ~short
            in_text = short & (torch.arange(tokens, device=device) >= tokens - k) & ~queries
            padded = torch.cat([newest.new_zeros(rows, newest.shape[1], tokens - k, newest.shape[3]), newest], dim=2)
            stand_in = (in_text, _shifted(padded, count))
            queries = queries | in_text
        if unwritten is not None:
            front = front & ~unwritten[:, None]
        layers = hidden_prefix(backbone, slots, None if whole else front)
    kept = torch.cat([front, queries], dim=1)
    positions = None if whole and min(lengths) == tokens else (kept.long().cumsum(1) - 1).masked_fill(~kept, -1)
    exempt = torch.cat([torch.ones_like(front), in_text], dim=1)
    cache = WriteCache(backbone, layers, front.shape[1], positions, exempt, k, positional, stand_in, unwritten)
    backbone.decoder(input_ids=ids, past_key_values=cache, use_cache=True)
    return torch.stack(cache.delta, dim=1)


def _shifted(newest: Tensor, count: Tensor) -> Tensor:  # [B, L, T, d], count [B, 1]
    """Slots moved left by n: position T - K + i of a short row holds slot n + i, so that the newest meets the text."""
    tokens = newest.shape[2]
    source = (torch.arange(tokens, device=newest.device) + count).clamp(max=tokens - 1)
    return newest.gather(2, source[:, None, :, None].expand_as(newest))


class LearnedWriter:
    """MemoryLLM and M+: a chunk is read behind the K newest slots, and the layers' outputs at its last K positions are
    the new slots."""

    def __init__(self, model: MemoryDecoder) -> None:
        self.model = model
        self.shipped: Any = None  # makes the long-term memory that a published checkpoint comes with

    @torch.inference_mode(False)
    @torch.no_grad()
    def new_memory(
        self, seed: int, storage: StorageConfig | None, *, longterm: bool = True, capacity: int | None = None
    ) -> Memory:
        """A memory as the checkpoint ships it: with the pool it was trained with, or never written.

        Args:
            longterm: keep what the pool evicts, where the model has a retriever.
            capacity: M, the most long-term slots per layer; None: as the model says.
        """
        model = self.model
        storage = StorageConfig() if storage is None else storage
        if not isinstance(storage, StorageConfig):
            raise InvalidInputError(f"storage takes a StorageConfig, such as StorageConfig('disk'), got {storage!r}")
        if storage.tier == "text":
            raise InvalidInputError(
                "learned slots cannot be made again from their text; take tier device, host or disk"
            )
        kept = self._longterm(capacity, storage) if longterm else None
        if model.shipped_pool is None:
            keep = model.config.keep_hidden
            return Memory(model.spec, seed=seed, keep_hidden=keep, longterm=kept, model_name=model.name)
        return self.memory_of(model.shipped_pool, seed, kept)

    def memory_of(self, hidden: Tensor, seed: int, longterm: LongTerm | None) -> Memory:
        """A memory whose pool holds slots in hidden form, `[L, N, d]`, oldest first."""
        model = self.model
        if self.checked(hidden).shape[1] != model.slots:
            raise InvalidInputError(f"the pool takes {model.slots} slots per layer, got {hidden.shape[1]}")
        hidden = hidden.clone(memory_format=torch.contiguous_format)
        new = self.projected(hidden[None], [0])[0]
        serial = torch.arange(model.slots, device=model.device).repeat(len(new.keys), 1)
        kept = {} if longterm is None else {"retrieval": new.retrieval, "ages": torch.zeros_like(serial)}
        return Memory(
            model.spec,
            seed=seed,
            keep_hidden=model.config.keep_hidden,
            pool=Pool(new.keys, new.values, serial, hidden if model.config.keep_hidden else None, **kept),
            newest=hidden[:, -model.slots_per_write :].clone(),
            longterm=longterm,
            model_name=model.name,
        )

    def _longterm(self, capacity: int | None, storage: StorageConfig) -> LongTerm | None:
        rules: LongTermConfig | None = self.model.config.longterm
        if capacity is not None:
            capacity = integer("capacity", capacity)
        if rules is None:
            return None
        layout = layout_of(self.model.spec, self.model.device, storage)
        if self.shipped is not None:
            if capacity is not None:
                raise InvalidInputError("this model drops slots by how often they are recalled; leave capacity= out")
            shipped: LongTerm = self.shipped.longterm(self.model, rules, layout)
            return shipped
        rules = rules if capacity is None else rules.replace(capacity=capacity)
        if 0 < rules.capacity < self.model.slots_per_write:
            raise InvalidInputError(
                f"a long-term capacity of {rules.capacity} slots is smaller than one write's "
                f"{self.model.slots_per_write}; take more, or 0 for none"
            )
        return LongTerm.empty(rules, layout, self.model.spec.layers)

    def pieces(self, memory: Memory, content: Any, allow_special: bool) -> list[Piece]:
        texts, model = self.model.texts, self.model
        ids = texts.ids(content, model.device, date=TODAY, allow_special=allow_special)
        return [(part, None) for part in chunked(ids, model.longest_chunk(1 + model.slots_per_write))]

    def put(self, rows: Sequence[Row], evict: Tensor | None, progress: Progress | None) -> list[Evicted]:
        evicted: list[list[Tensor | None]] = [[] for _ in rows]
        rounds = max(len(row.pieces) for row in rows)
        for index in range(rounds):
            active = [number for number, row in enumerate(rows) if index < len(row.pieces)]
            chunks = [rows[number].pieces[index][0] for number in active]
            new = self.new_slots([rows[number].memory for number in active], chunks)
            for number, slots in zip(active, new, strict=True):
                evicted[number].append(rows[number].memory.put(slots, rows[number].undo, evict))
            if progress is not None:
                progress(index + 1, rounds)
        return [tuple(ranks) for ranks in evicted]

    def new_slots(self, memories: Sequence[Memory], chunks: Sequence[Tensor]) -> list[NewSlots]:
        """The slots that one chunk each makes in several memories, as one batch."""
        hidden = self.encoded(chunks, [m.newest if m.written else None for m in memories])
        tokens = [len(chunk) for chunk in chunks]
        if len({h.shape[1] for h in hidden}) == 1:
            return self.projected(torch.stack(hidden), tokens)
        return [self.projected(h[None], [n])[0] for h, n in zip(hidden, tokens, strict=True)]

    def encoded(self, rows: Sequence[Tensor], newest: Sequence[Tensor | None]) -> list[Tensor]:  # [L, q, d] each
        """New slots in hidden form; `newest` `[L, K, d]` of each memory, None where it was never written."""
        model, k = self.model, self.model.slots_per_write
        assert model.new_memory_positional_emb is not None
        written = [n is not None for n in newest]
        lengths = [len(row) for row in rows]
        short = any(w and n < k for w, n in zip(written, lengths, strict=True))
        ids, _ = left_padded(rows, model.pad, k if short else 0)
        held = [n for n in newest if n is not None]
        stacked = torch.stack([torch.zeros_like(held[0]) if n is None else n for n in newest]) if held else None
        with model.role("write"):
            delta = encode(
                model.backbone,
                ids,
                stacked,
                slots_per_write=k,
                bos=model.bos_embedding,
                positional=model.new_memory_positional_emb,
                lengths=lengths,
                written=written,
            )
        counts = [k if w else min(n, k) for w, n in zip(written, lengths, strict=True)]
        return [delta[row][:, -count:] for row, count in enumerate(counts)]

    def projected(self, hidden: Tensor, tokens: Sequence[int], role: Role = "read") -> list[NewSlots]:  # [B, L, q, d]
        """Slots in hidden form as keys and values, by the adapter that will read them, and as retrieval keys."""
        backbone, retriever = self.model.backbone, self.model.retriever
        with self.model.role(role):
            pairs = [backbone.project(layer, hidden[:, layer]) for layer in range(hidden.shape[1])]
        dtype = backbone.dtype  # whatever autocast makes of them
        keys, values = (torch.stack(part, dim=1).to(dtype) for part in zip(*pairs, strict=True))
        hidden = hidden.to(dtype)
        found = [None] * len(hidden) if retriever is None else retriever.keys(backbone.normed, hidden).to(dtype)
        return [NewSlots(*parts) for parts in zip(hidden, keys, values, tokens, found, strict=True)]

    def checked(self, slots: Tensor) -> Tensor:  # [L, q, d]
        """Slots in hidden form, if they are this model's."""
        backbone = self.model.backbone
        expected = (len(backbone.layers), backbone.config.hidden_size)
        fits = slots.dim() == 3 and (slots.shape[0], slots.shape[2]) == expected and slots.shape[1] > 0
        if not fits or slots.dtype != backbone.dtype or slots.device != self.model.device:
            raise InvalidInputError(
                f"slots must be {backbone.dtype} of shape [{expected[0]}, q, {expected[1]}] on {self.model.device}, "
                f"got {slots.dtype} of shape {list(slots.shape)} on {slots.device}"
            )
        return slots
