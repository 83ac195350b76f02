"""What prompts read of text memories: chunks are found by their scores, then tried one by one by a trained reader."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from remanence.config import logit, sigmoid
from remanence.errors import CorruptMemoryError
from remanence.memory.chunks import Chunk
from remanence.memory.memory import Memory
from remanence.model.chat import TODAY, Prompt
from remanence.model.decoder import MemoryDecoder
from remanence.model.hooks import expecting
from remanence.model.inputs import left_padded
from remanence.model.text import TextPrefixCache, TextWriter, chunks_of, text_prefix

Source = tuple[int, float]  # id of a write, and its score
Picked = tuple[Memory, Chunk]

_AT_ONCE = 64  # chunks that are tried in one pass


class Scored(NamedTuple):
    """A chunk of a memory, and its score against a prompt."""

    score: float
    memory: Memory
    chunk: Chunk


class Tried(NamedTuple):
    """A pass over a prompt behind one chunk: the cache, and the row in it."""

    cache: TextPrefixCache
    row: int


class Choice(NamedTuple):
    """What rows read.

    Attributes:
        chosen: the chunks of each, oldest first; sources: the writes that they are of, best first.
        tried: of a single row that reads a single chunk, the pass in which that was tried; None: it was not.
    """

    chosen: list[list[Picked]]
    sources: list[list[Source]]
    tried: Tried | None


def choose(
    model: MemoryDecoder, writer: TextWriter, rows: Sequence[Sequence[Memory]], prompts: Sequence[Prompt], room: int = 0
) -> Choice:
    """The chunks that rows read."""
    config = model.config.retrieval
    passes: dict[int, Tried] = {}
    picked = [
        _fitting(model, writer, memories, prompt, ranked, room)
        for memories, prompt, ranked in zip(rows, prompts, scores(writer, rows, prompts), strict=True)
    ]
    if config.refusal is not None and config.rerank is not None:
        talks = [place for place, prompt in enumerate(prompts) if prompt.chat and len(picked[place]) > 1]
        tried = [(place, one) for place in talks for one in picked[place][: config.rerank]]
        for place, best in _reranked(model, writer, rows, prompts, tried, passes).items():
            picked[place] = best
    chosen: list[list[Picked]] = []
    for memories, own in zip(rows, picked, strict=True):
        order = {id(memory): place for place, memory in enumerate(memories)}
        own = sorted(own, key=lambda one: (order[id(one.memory)], one.chunk.key))
        chosen.append([(one.memory, one.chunk) for one in own])
    alone = len(rows) == 1 and len(picked[0]) == 1
    return Choice(chosen, [sources_of(own) for own in picked], passes.get(id(picked[0][0].chunk)) if alone else None)


def _fitting(
    model: MemoryDecoder,
    writer: TextWriter,
    memories: Sequence[Memory],
    prompt: Prompt,
    ranked: Sequence[Scored],
    room: int,
) -> list[Scored]:
    """The chunks that score well enough, best first, as many as there is room for."""
    config, limit = model.config.retrieval, model.positions
    left = config.slots
    if limit is not None and ranked:
        left = min(left, limit - len(prompt.behind(writer.head_of(memories[0]))[0]) - room)
    picked: list[Scored] = []
    least = config.least(ranked[0].score, chat=prompt.chat) if ranked else 0.0
    for one in ranked:
        if one.score < least:
            break
        if one.chunk.tokens <= left:
            picked.append(one)
            left -= one.chunk.tokens
    return picked


def scores(writer: TextWriter, rows: Sequence[Sequence[Memory]], prompts: Sequence[Prompt]) -> list[list[Scored]]:
    """All chunks of each row's memories, best first; of equal score the later first."""
    found: list[list[Scored]] = []
    for memories, prompt in zip(rows, prompts, strict=True):
        ranked: list[Scored] = []
        if any(memory.written for memory in memories):
            queries = writer.queries(prompt, writer.head_of(memories[0]))
            for memory in memories:
                with memory.lock:
                    writer.make_keys(memory)
                    each = [chunks_of(memory).scores(query) for query in queries]
                ranked += [Scored(max(one[chunk] for one in each), memory, chunk) for chunk in each[0]]
            ranked.sort(key=lambda one: (-one.score, -one.chunk.key))
        found.append(ranked)
    return found


def sources_of(scored: Sequence[Scored]) -> list[Source]:
    """The writes that chunks are of, in the order of these, each with its best score."""
    best: dict[int, float] = {}
    for one in scored:
        best[one.chunk.write] = max(one.score, best.get(one.chunk.write, 0.0))
    return list(best.items())


@torch.no_grad()
def _reranked(
    model: MemoryDecoder,
    writer: TextWriter,
    rows: Sequence[Sequence[Memory]],
    prompts: Sequence[Prompt],
    tried: Sequence[tuple[int, Scored]],
    passes: dict[int, Tried],
) -> dict[int, list[Scored]]:
    """Of each row that is tried, the chunks that are read, best first.

    The reader is shown each chunk by itself. What it says is evidence beside the retriever's: the odds of a chunk's
    score are divided by the odds that the reader begins to refuse.

    Args:
        tried: places of rows, and chunks that these may read.
        passes: takes the pass of each chunk, by its identity, where there is a single row.
    """
    weighed: dict[int, list[tuple[float, Scored]]] = {}
    token = refusal_token(model)
    for start in range(0, len(tried), _AT_ONCE):
        batch = tried[start : start + _AT_ONCE]
        own_rows, own_prompts = [rows[place] for place, _ in batch], [prompts[place] for place, _ in batch]
        behind = prefix(model, writer, own_rows, own_prompts, [[(one.memory, one.chunk)] for _, one in batch])
        assert behind is not None
        ids, _, cache = behind
        with model.role("read"), expecting(cache):
            logits = model.hf(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        require_finite(logits)
        if len(rows) == 1:
            passes |= {id(one.chunk): Tried(cache, row) for row, (_, one) in enumerate(batch)}
        for (place, one), refusing in zip(batch, logits.float().softmax(-1)[:, token].tolist(), strict=True):
            weight = sigmoid(logit(one.score) - logit(refusing))
            weighed.setdefault(place, []).append((weight, one))
    made, near = dict[int, list[Scored]](), model.config.retrieval.near_best
    for place, found in weighed.items():
        best = max(weight for weight, _ in found)
        kept = [(weight, one) for weight, one in found if weight >= near * best]
        made[place] = [one for _, one in sorted(kept, key=lambda item: -item[0])]
    return made


def refusal_token(model: MemoryDecoder) -> int:
    """The token that the reader's refusal begins with."""
    assert model.config.retrieval.refusal is not None
    return int(model.texts.ids(model.config.retrieval.refusal, model.device, date=TODAY)[0])


def require_finite(logits: Tensor) -> None:
    if bool(logits.isnan().any()):
        raise CorruptMemoryError(
            "reading gave logits that are not numbers: the pool or the weights hold NaN or infinity. "
            "Go back to a saved memory, or check the model in float32"
        )


def prefix(
    model: MemoryDecoder,
    writer: TextWriter,
    rows: Sequence[Sequence[Memory]],
    prompts: Sequence[Prompt],
    chosen: Sequence[Sequence[Picked]],
    *,
    room: int = 0,
    fed: bool = False,
    tried: Tried | None = None,
) -> tuple[Tensor, Tensor, TextPrefixCache] | None:
    """What the decoder is fed `[B, T]`, padded on the left, its mask, and the cache of rows that read these chunks.

    None where no row reads any.

    Args:
        room: tokens that may follow; fed: whether the first pass is over the heads too.
        tried: the pass over this prompt behind this chunk; the first one then is over the last token only.
    """
    if not any(chosen):
        return None
    ids, heads, fronts, slots = [], [], [], []
    for memories, prompt, picked in zip(rows, prompts, chosen, strict=True):
        row, head, _ = prompt.behind(writer.head_of(memories[0])) if picked else (prompt.ids, 0, 0)
        ids.append(row)
        heads.append(head)
        fronts.append(writer.latents.head_slots(tuple(row[:head].tolist())) if head and not fed else None)
        of_memory = [(memory, [chunk for owner, chunk in picked if owner is memory]) for memory in memories]
        slots.append([part for memory, chunks in of_memory for part in writer.slots(memory, chunks)])
    padded, mask = left_padded(ids, model.pad)
    cache = text_prefix(model.backbone, slots, heads, mask, fronts=None if fed else fronts, room=room)
    cache.gate = None if model.adapters is None else model.adapters.gate
    if tried is not None and not fed and not model.backbone.length_dependent:
        cache.go_on(*tried)
    return padded, mask, cache
