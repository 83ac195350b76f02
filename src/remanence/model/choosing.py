"""What prompts read of text memories: chunks are found by their scores, then tried one by one by a trained reader."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

from remanence.config import logit, sigmoid
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


def choose(
    model: MemoryDecoder, writer: TextWriter, rows: Sequence[Sequence[Memory]], prompts: Sequence[Prompt], room: int = 0
) -> tuple[list[list[Picked]], list[list[Source]]]:
    """The chunks that each row reads, oldest first, and the writes that they are of, best first."""
    config = model.config.retrieval
    left = [_left(model, writer, memories, prompt, room) for memories, prompt in zip(rows, prompts, strict=True)]
    scored = scores(writer, rows, prompts)
    for place, (ranked, prompt) in enumerate(zip(scored, prompts, strict=True)):
        scored[place] = [one for one in ranked if one.score >= config.least(chat=prompt.chat)]
    if config.refusal is not None and config.rerank is not None:
        tried = [
            [one for one in ranked if one.chunk.tokens <= most][: config.rerank] if prompt.chat else []
            for ranked, most, prompt in zip(scored, left, prompts, strict=True)
        ]
        for place, ranked in _reranked(model, writer, rows, prompts, tried):
            scored[place] = ranked
    chosen: list[list[Picked]] = []
    sources: list[list[Source]] = []
    for memories, ranked, most in zip(rows, scored, left, strict=True):
        picked: list[Scored] = []
        for one in ranked:
            if one.score < config.near(ranked[0].score):
                break
            if one.chunk.tokens <= most:
                picked.append(one)
                most -= one.chunk.tokens
        sources.append(sources_of(picked))
        order = {id(memory): place for place, memory in enumerate(memories)}
        picked.sort(key=lambda one: (order[id(one.memory)], one.chunk.key))
        chosen.append([(one.memory, one.chunk) for one in picked])
    return chosen, sources


def _left(model: MemoryDecoder, writer: TextWriter, memories: Sequence[Memory], prompt: Prompt, room: int) -> int:
    """Most slots that a prompt reads."""
    most, limit = model.config.retrieval.slots, model.positions
    if limit is None or not any(memory.written for memory in memories):
        return most
    return min(most, limit - len(prompt.behind(writer.head_of(memories[0]))[0]) - room)


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
            ranked.sort(key=_best_first)
        found.append(ranked)
    return found


def sources_of(scored: Sequence[Scored]) -> list[Source]:
    """The writes that chunks are of, each with the score of its best chunk; the chunks come best first."""
    best: dict[int, float] = {}
    for one in scored:
        best.setdefault(one.chunk.write, one.score)
    return list(best.items())


def _best_first(one: Scored) -> tuple[float, int]:
    return -one.score, -one.chunk.key


def _reranked(
    model: MemoryDecoder,
    writer: TextWriter,
    rows: Sequence[Sequence[Memory]],
    prompts: Sequence[Prompt],
    scored: Sequence[Sequence[Scored]],
) -> Iterable[tuple[int, list[Scored]]]:
    """The places of rows with chunks that may be read, and these chunks by new scores, best first.

    The reader is shown each chunk by itself. What it says is evidence beside the retriever's: the odds of a score are
    divided by the odds that the reader begins to refuse.
    """
    tried = [(place, one) for place, ranked in enumerate(scored) for one in ranked]
    found: dict[int, list[Scored]] = {place: [] for place, _ in tried}
    token = refusal_token(model)
    for start in range(0, len(tried), _AT_ONCE):
        batch = tried[start : start + _AT_ONCE]
        own_rows, own_prompts = [rows[place] for place, _ in batch], [prompts[place] for place, _ in batch]
        made = prefix(model, writer, own_rows, own_prompts, [[(one.memory, one.chunk)] for _, one in batch])
        assert made is not None
        ids, _, cache = made
        with model.role("read"), expecting(cache):
            logits = model.hf(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]
        for (place, one), refusing in zip(batch, logits.float().softmax(-1)[:, token].tolist(), strict=True):
            found[place].append(one._replace(score=sigmoid(logit(one.score) - logit(refusing))))
    return [(place, sorted(ranked, key=_best_first)) for place, ranked in found.items()]


def refusal_token(model: MemoryDecoder) -> int:
    """The token that the reader's refusal begins with."""
    assert model.config.retrieval.refusal is not None
    return int(model.texts.ids(model.config.retrieval.refusal, model.device, date=TODAY)[0])


def prefix(
    model: MemoryDecoder,
    writer: TextWriter,
    rows: Sequence[Sequence[Memory]],
    prompts: Sequence[Prompt],
    chosen: Sequence[Sequence[Picked]],
    *,
    room: int = 0,
    fed: bool = False,
) -> tuple[Tensor, Tensor, TextPrefixCache] | None:
    """What the decoder is fed `[B, T]`, padded on the left, its mask, and the cache of rows that read these chunks.

    None where no row reads any.

    Args:
        room: tokens that may follow; fed: whether the first pass is over the heads too.
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
    return padded, mask, cache
