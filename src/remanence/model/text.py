"""The text writer: the slots of a chunk are its own keys and values, encoded behind a head. It needs no training."""

import weakref
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from remanence.config import StorageConfig
from remanence.errors import CorruptMemoryError, InvalidInputError
from remanence.memory.chunks import Chunk, Chunks, Query
from remanence.memory.finite import all_finite
from remanence.memory.lexical import asked
from remanence.memory.memory import Memory
from remanence.memory.storage import KeptSlots
from remanence.memory.transaction import Evicted, Piece, Progress, Row
from remanence.model.backbone import Backbone
from remanence.model.cache import PrefixCache, PrefixLayer, new_layers
from remanence.model.chat import TODAY, Prompt, questions
from remanence.model.decoder import MemoryDecoder
from remanence.model.latent import Encoded, Latents
from remanence.model.prefix_store import SlotCache

_AT_ONCE = 4096  # tokens that are encoded in one pass


class TextPrefixCache(PrefixCache):
    """A cache whose memory stands behind the head of the text.

    Args:
        heads: tokens of each row's head; lengths: slots that each row reads.
    """

    def __init__(
        self, backbone: Backbone, layers: list[PrefixLayer], prefix: int, heads: list[int], lengths: list[int]
    ) -> None:
        super().__init__(backbone, list[CacheLayerMixin](layers), prefix)
        self._heads, self._lengths = torch.tensor(heads)[:, None], torch.tensor(lengths)[:, None]
        self.reads = self._lengths > 0

    def set_prompt(self, mask: Tensor) -> None:  # [B, T] bool
        self._prompt, tokens = mask, mask.shape[1]
        _, places = self._text(0, tokens)
        for layer in self.layers:
            layer.places = places
        lengths, padding = self._lengths.to(mask.device), tokens - mask.sum(1, keepdim=True)
        entry = torch.arange(self.prefix + tokens, device=mask.device)[None] - padding - (self.prefix - lengths)
        self._keep(entry.clamp(min=-1), mask)

    def _text(self, start: int, end: int) -> tuple[Tensor, Tensor]:  # [B, end - start] each
        """Positions of some tokens of the text, padding counted along, and the entries in which they lie."""
        assert self._prompt is not None
        device = self._prompt.device
        heads, lengths = self._heads.to(device), self._lengths.to(device)
        column, padding = torch.arange(start, end, device=device)[None], (~self._prompt).sum(1, keepdim=True)
        in_head = column < padding + heads
        positions = column - padding + torch.where(in_head, 0, lengths)
        places = column + torch.where(in_head, self.prefix - lengths, self.prefix)
        return positions.masked_fill(column < padding, -1), places

    @property
    def starts(self) -> list[int]:
        """The first entry of each row's memory."""
        assert self._prompt is not None
        padding = (~self._prompt).sum(1).tolist()
        lengths, heads = self._lengths[:, 0].tolist(), self._heads[:, 0].tolist()
        return [self.prefix - n + p + h for n, p, h in zip(lengths, padding, heads, strict=True)]

    @property
    def left_out(self) -> int:
        first = self.layers[0]
        assert isinstance(first, PrefixLayer)
        return first.held if first.get_seq_length() == self.prefix + first.held else 0

    def go_on(self, other: "TextPrefixCache", row: int) -> None:
        """Begin behind all but the last token of the prompt: another cache has them in a row, behind the same chunk."""
        assert self._prompt is not None
        last = self._prompt.shape[1] - 1
        for own, held in zip(self.layers, other.layers, strict=True):
            assert isinstance(own, PrefixLayer) and isinstance(held, PrefixLayer)
            to, of = (slice(cache.prefix + own.held, cache.prefix + last) for cache in (self, other))
            own.keys[0, to], own.values[0, to] = held.keys[row, of], held.values[row, of]
            own.hold(last)

    def _acting(self, rows: int, start: int, end: int) -> Tensor:
        """Behind the head, whose keys and values are the stock model's."""
        acting = super()._acting(rows, start, end)
        if self._prompt is None or start >= self._prompt.shape[1]:
            return acting
        prompt = self._prompt.cpu()
        front = (~prompt).sum(1, keepdim=True) + self._heads
        behind = (torch.arange(start, end)[None] >= front).repeat_interleave(rows // len(prompt), dim=0)
        return acting & behind

    def _asking(self, keys: Tensor, past: int, rows: int) -> tuple[Tensor, Tensor | None]:
        start, end = past - self.prefix, keys.shape[1] - self.prefix
        if self._prompt is None or start >= self._prompt.shape[1]:
            return super()._asking(keys, past, rows)
        copies = rows // len(self._prompt)
        positions, places = (part.repeat_interleave(copies, dim=0) for part in self._text(start, end))
        return positions, places


def text_prefix(
    backbone: Backbone,
    rows: Sequence[Sequence[Tensor]],
    heads: Sequence[int],
    mask: Tensor,
    *,
    fronts: Sequence[Tensor | None] | None = None,
    room: int = 0,
    kind: type[TextPrefixCache] = TextPrefixCache,
) -> TextPrefixCache:
    """The prefix of a read of text slots: per row its chunks `[2, L, n, H, D]`, one behind the other.

    Args:
        heads: tokens of each row's head, which is part of its prompt.
        mask: `[B, T]` bool of the prompts, padded on the left; room: tokens that may follow.
        fronts: the slots of each row's head `[2, L, h, H, D]`, None where it has none: columns that are head or padding
            in every row are then left out of the first pass. None: the heads are fed.
        kind: of cache, which is told the mask.
    """
    lengths = [sum(chunk.shape[2] for chunk in row) for row in rows]
    prefix, tokens = max(lengths), mask.shape[1]
    layers, _ = new_layers(backbone, len(rows), prefix, tokens + room)
    cache = kind(backbone, layers, prefix, list(heads), lengths)
    cache.set_prompt(mask)
    padding: list[int] = []
    if fronts is not None:
        padding = (~mask).sum(1).tolist()
        left_out = min(tokens - 1, *(p + h for p, h in zip(padding, heads, strict=True)))
        for layer in layers:
            layer.hold(left_out)
    own_cache = weakref.proxy(cache)  # a circle would hold the slots until the garbage collector comes

    def fill(longest: int) -> None:
        rotary = backbone.rotary(torch.arange(max(heads) + prefix, device=mask.device)[None], layers[0].keys, longest)
        blocks: list[tuple[Sequence[Tensor], int, int, int]] = []  # slots, their row, first entry and first position
        for row, (start, head) in enumerate(zip(own_cache.starts, heads, strict=True)):
            front = None if fronts is None else fronts[row]
            if front is not None and (count := min(head, layers[0].held - padding[row])) > 0:
                blocks.append(([front[:, :, :count]], row, start - head, 0))
            if rows[row]:
                blocks.append((rows[row], row, start, head))
        for layer, held in enumerate(layers):
            cos, sin = (part[0] for part in rotary(layer))
            held.keys[:, : prefix + tokens], held.values[:, : prefix + tokens] = 0, 0  # padding, finite
            for parts, row, entry, position in blocks:
                slots = torch.cat([part[:, layer] for part in parts], dim=1)  # [2, n, H, D]
                at, own = (slice(first, first + slots.shape[1]) for first in (entry, position))
                held.keys[row, at] = backbone.rotate(layer, slots[0], cos[own], sin[own])
                held.values[row, at] = slots[1]

    cache.fill = fill
    fill(prefix + tokens - 1)
    return cache


class TextWriter:
    """Writes and finds chunks of text slots.

    Attributes:
        cache: encoded chunks of memories that keep token ids only.
        latents: what chunks and questions are compared by.
    """

    def __init__(self, model: MemoryDecoder) -> None:
        self.model = model
        self.cache = SlotCache(model.config.cache_bytes)
        self.latents = Latents(model)

    def new_memory(
        self, seed: int, storage: StorageConfig | None, *, head: Sequence[int] | None = None, date: str | None = None
    ) -> Memory:
        """A memory with nothing written.

        Args:
            head: token ids that stand in front of every chunk and prompt; None: those of the chat template or the
                tokenizer.
            date: what a template that prints today's date prints; None: a fixed one.
        """
        model, config = self.model, self.model.config
        storage = StorageConfig("text" if config.keep_text else "host") if storage is None else storage
        if not isinstance(storage, StorageConfig):
            raise InvalidInputError(f"storage takes a StorageConfig, such as StorageConfig('disk'), got {storage!r}")
        if storage.tier == "text" and not config.keep_text:
            raise InvalidInputError("the text tier keeps token ids; with keep_text=False take tier host or disk")
        date = TODAY if date is None else date
        chunks = Chunks(
            storage,
            head=model.texts.head(date) if head is None else tuple(head),
            date=date,
            capacity=config.slots,
            random=config.eviction == "random",
            seed=seed,
            keep_text=config.keep_text,
        )
        return Memory(model.spec, seed=seed, chunks=chunks, model_name=model.name)

    def pieces(self, memory: Memory, content: Any, allow_special: bool) -> list[Piece]:
        model, chunks = self.model, chunks_of(memory)
        longest = model.longest_chunk(len(self.head_of(memory)))
        return model.texts.chunks(content, model.device, longest, date=chunks.date, allow_special=allow_special)

    def put(self, rows: Sequence[Row], evict: Tensor | None, progress: Progress | None) -> list[Evicted]:
        if evict is not None:
            raise InvalidInputError("evict= replays a learned memory's draw; a text memory evicts whole chunks")
        places = [(row, place) for row in rows for place in range(len(row.pieces))]
        for row in rows:
            if (chunks := chunks_of(row.memory)).head is None:
                row.undo.set(chunks, head=self.model.texts.head(chunks.date))
            self.make_keys(row.memory)
        done = 0
        for batch in _batches(places, [len(row.pieces[place][0]) for row, place in places]):
            keys = [(self.head_of(row.memory), row.pieces[place][0]) for row, place in batch]
            for (row, place), key, encoded in zip(batch, keys, self.encode(keys), strict=True):
                self._add(row, place, key, encoded)
            done += len(batch)
            if progress is not None:
                progress(done, len(places))
        return [(None,) * len(row.pieces) for row in rows]

    def _add(self, row: Row, place: int, key: tuple[tuple[int, ...], Tensor], encoded: Encoded) -> None:
        chunks, (ids, text), slots = chunks_of(row.memory), row.pieces[place], encoded.slots
        if not all_finite(slots):
            raise CorruptMemoryError(
                "the write made slots that are not finite; the memory is unchanged. The weights hold NaN or infinity, "
                "or the dtype overflows: check the model in float32"
            )
        kept = None
        if chunks.storage.tier == "text":
            self.cache.put(self._key(*key), slots)
        else:
            kept = KeptSlots(slots, chunks.storage)
        chunk = Chunk(
            key=chunks.next_key,
            write=row.memory.next_id,
            place=place,
            tokens=len(ids),
            ids=ids.to("cpu", torch.int32) if chunks.keep_text else None,
            text=text if chunks.keep_text else None,
            latent=self.latents.of_chunk(encoded.mean, key[0]).half(),
            slots=kept,
            keys=None if self.model.token_retriever is None else self.model.token_retriever.keys(slots),
        )
        chunks.add(chunk, row.undo)

    def head_of(self, memory: Memory) -> tuple[int, ...]:
        """The head of a memory; of one that has none yet, what it will be."""
        chunks = chunks_of(memory)
        return self.model.texts.head(chunks.date) if chunks.head is None else chunks.head

    def encode(self, texts: Sequence[tuple[Sequence[int], Tensor]]) -> list[Encoded]:
        """Encode texts, each a head and ids `[n]`, in one pass for each head."""
        made: dict[int, Encoded] = {}
        for head in dict.fromkeys(tuple(head) for head, _ in texts):
            places = [place for place, (own, _) in enumerate(texts) if tuple(own) == head]
            made |= zip(places, self.latents.encode([texts[place][1] for place in places], head), strict=True)
        return [made[place] for place in range(len(texts))]

    def slots(self, memory: Memory, chunks: Sequence[Chunk]) -> list[Tensor]:  # [2, L, n, H, D] each
        """The slots of some chunks on the model's device: kept, remembered, or encoded again."""
        kept = {chunk.key: chunk.slots.load(self.model.device) for chunk in chunks if chunk.slots is not None}
        others = [(chunk.key, chunk.ids) for chunk in chunks if chunk.slots is None and chunk.ids is not None]
        made = self.encoded(self.head_of(memory), [ids for _, ids in others])
        found = kept | dict(zip((key for key, _ in others), made, strict=True))
        return [found[chunk.key] for chunk in chunks]

    def encoded(self, head: Sequence[int], texts: Sequence[Tensor]) -> list[Tensor]:  # [n] each -> [2, L, n, H, D] each
        """The slots of texts behind a head, remembered or encoded."""
        found = [self.cache.get(self._key(head, ids)) for ids in texts]
        missing = [place for place, slots in enumerate(found) if slots is None]
        missing.sort(key=lambda place: len(texts[place]))  # less padding
        for batch in _batches(missing, [len(texts[place]) for place in missing]):
            made = self.encode([(head, texts[place]) for place in batch])
            for place, one in zip(batch, made, strict=True):
                self.cache.put(self._key(head, texts[place]), one.slots)
                found[place] = one.slots
        return [slots for slots in found if slots is not None]

    def make_keys(self, memory: Memory) -> None:
        """Make the retrieval keys of chunks that have none, and of all where another retriever made them; or none."""
        retriever, spec, chunks = self.model.token_retriever, self.model.spec, chunks_of(memory)
        if retriever is None:
            return
        same = memory.spec.retrieval == spec.retrieval
        wanted = [chunk for chunk in chunks if chunk.keys is None or not same]
        if same and not wanted:
            return
        with memory.changing() as undo:
            for batch in _batches(wanted, [chunk.tokens for chunk in wanted]):
                slots = self.slots(memory, batch)
                made = {chunk.key: retriever.keys(own) for chunk, own in zip(batch, slots, strict=True)}
                chunks.replace_keys(made, undo)
            undo.set(memory, spec=spec)

    def _key(self, head: Sequence[int], ids: Tensor) -> Any:
        return self.model.last_stamp, tuple(head), ids.to("cpu", torch.int32).numpy().tobytes()

    def queries(self, prompt: Prompt, head: tuple[int, ...]) -> list[Query]:
        """What a prompt asks, each question by itself, encoded behind the head of the memories that it asks.

        A greeting or an instruction around a question would drown it.
        """
        if prompt.query_text is None:
            return self._queries([prompt.query], [prompt.query.tolist()], head)
        model, parts = self.model, questions(prompt.query_text)
        ids = [model.texts.ids(part, model.device, date=TODAY) for part in parts]
        return self._queries(ids, [asked(part) for part in parts], head)

    def _queries(
        self, ids: Sequence[Tensor], words: Sequence[Sequence[Hashable]], head: tuple[int, ...]
    ) -> list[Query]:
        retriever, latents = self.model.token_retriever, self.latents
        if retriever is None:
            means = latents.means(ids, head)
            return [Query(own, latents.of_question(mean, head)) for own, mean in zip(words, means, strict=True)]
        slots = latents.lower_slots(ids, head, max(retriever.layers))
        lates = [retriever.asked(retriever.features(one)) for one in slots]
        return [Query(own, late=late) for own, late in zip(words, lates, strict=True)]


def chunks_of(memory: Memory) -> Chunks:
    assert memory.chunks is not None
    return memory.chunks


def _batches(items: Sequence[Any], sizes: Sequence[int]) -> Iterator[list[Any]]:
    """Items in their order, so many at a time as one pass takes, padded to the longest."""
    batch: list[Any] = []
    longest = 0
    for item, size in zip(items, sizes, strict=True):
        if batch and max(longest, size) * (len(batch) + 1) > _AT_ONCE:
            yield batch
            batch, longest = [], 0
        batch.append(item)
        longest = max(longest, size)
    if batch:
        yield batch
