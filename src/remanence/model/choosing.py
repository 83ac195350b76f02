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

_TRIED = 4096  # tokens computed at most to try chunks: a long history is not computed once for each


class Scored(NamedTuple):
    """A chunk of a memory, and its score against a prompt."""

    score: float
    memory: Memory
    chunk: Chunk


class Pass(NamedTuple):
    """A pass over a prompt behind one chunk: the cache, and the row in it."""

    cache: TextPrefixCache
    row: int


class Choice(NamedTuple):
    """What rows read.

    Attributes:
        chosen: the chunks of each, oldest first.
        sources: the writes that they are of, best first, as the reader weighed them where they were tried.
        passed: of a single row that reads a single chunk, the pass in which that was tried; None: it was not.
    """

    chosen: list[list[Picked]]
    sources: list[list[Source]]
    passed: Pass | None


def choose(
    model: MemoryDecoder, writer: TextWriter, rows: Sequence[Sequence[Memory]], prompts: Sequence[Prompt], room: int = 0
) -> Choice:
    """The chunks that rows read."""
    chosen: list[list[Picked]] = []
    sources: list[list[Source]] = []
    passed: Pass | None = None
    for memories, prompt, ranked in zip(rows, prompts, scores(writer, rows, prompts), strict=True):
        picked = _fitting(model, writer, memories, prompt, ranked, room)
        if candidates := _candidates(model, prompt, picked):
            picked, passed = _reranked(model, writer, memories, prompt, candidates)
        sources.append(sources_of(picked))
        order = {id(memory): place for place, memory in enumerate(memories)}
        picked = sorted(picked, key=lambda one: (order[id(one.memory)], one.chunk.key))
        chosen.append([(one.memory, one.chunk) for one in picked])
    return Choice(chosen, sources, passed if len(rows) == 1 else None)


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


def _candidates(model: MemoryDecoder, prompt: Prompt, picked: Sequence[Scored]) -> Sequence[Scored]:
    """The chunks that the reader is shown one by one; none where it cannot say anything, or it would take long."""
    config = model.config.retrieval
    if not prompt.chat or config.refusal is None or config.rerank is None or config.min_score is None:
        return ()
    candidates = picked[: config.rerank]
    return candidates if len(picked) > 1 and len(candidates) * len(prompt.rest) <= _TRIED else ()


@torch.no_grad()
def _reranked(
    model: MemoryDecoder, writer: TextWriter, memories: Sequence[Memory], prompt: Prompt, candidates: Sequence[Scored]
) -> tuple[list[Scored], Pass | None]:
    """The chunks that are read, best first; and the pass over the prompt behind the only one, if one is.

    The reader is shown each chunk by itself. What it says is evidence beside the retriever's: the odds of a chunk's
    score are divided by the odds that the reader begins to refuse.
    """
    count = len(candidates)
    behind = prefix(model, writer, [memories] * count, [prompt] * count, [[(m, chunk)] for _, m, chunk in candidates])
    assert behind is not None
    ids, _, cache = behind
    with model.role("read"), expecting(cache):
        logits = model.hf(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
    require_finite(logits)
    refusing = logits.float().softmax(-1)[:, refusal_token(model)].tolist()
    weights = [sigmoid(logit(one.score) - logit(p)) for one, p in zip(candidates, refusing, strict=True)]
    near = model.config.retrieval.near_best * max(weights)
    order = sorted(range(count), key=lambda row: -weights[row])
    kept = [row for row in order if weights[row] >= near]
    return [candidates[row] for row in kept], Pass(cache, kept[0]) if len(kept) == 1 else None


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
    passed: Pass | None = None,
) -> tuple[Tensor, Tensor, TextPrefixCache] | None:
    """What the decoder is fed `[B, T]`, padded on the left, its mask, and the cache of rows that read these chunks.

    None where no row reads any.

    Args:
        room: tokens that may follow; fed: whether the first pass is over the heads too.
        passed: a pass over this prompt behind this chunk; the first one then is over the last token only.
    """
    if not any(chosen):
        return None
    ids, heads, fronts = [], [], []
    for memories, prompt, picked in zip(rows, prompts, chosen, strict=True):
        row, head, _ = prompt.behind(writer.head_of(memories[0])) if picked else (prompt.ids, 0, 0)
        ids.append(row)
        heads.append(head)
        fronts.append(writer.latents.head_slots(tuple(row[:head].tolist())) if head and not fed else None)
    padded, mask = left_padded(ids, model.pad)
    cache = text_prefix(model.backbone, _slots(writer, chosen), heads, mask, fronts=None if fed else fronts, room=room)
    cache.gate = None if model.adapters is None else model.adapters.gate
    if passed is not None and not fed and not model.backbone.length_dependent:
        cache.go_on(*passed)
    return padded, mask, cache


def _slots(writer: TextWriter, chosen: Sequence[Sequence[Picked]]) -> list[list[Tensor]]:
    """The slots of each row's chunks; those of one memory are loaded or encoded together, once for all rows."""
    wanted: dict[int, tuple[Memory, dict[int, Chunk]]] = {}
    for memory, chunk in (one for picked in chosen for one in picked):
        wanted.setdefault(id(memory), (memory, {}))[1][chunk.key] = chunk
    held: dict[int, dict[int, Tensor]] = {}
    for owner, (memory, own) in wanted.items():
        held[owner] = dict(zip(own, writer.slots(memory, list(own.values())), strict=True))
    return [[held[id(memory)][chunk.key] for memory, chunk in picked] for picked in chosen]
