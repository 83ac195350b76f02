"""Reading: which slots stand in front of each row, and the stock call behind them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList

from remanence.errors import CorruptMemoryError, InvalidInputError
from remanence.memory.chunks import Chunk
from remanence.memory.memory import Memory, locked
from remanence.model.cache import PrefixCache, pool_prefix
from remanence.model.chat import TODAY, Prompt
from remanence.model.decoder import MemoryDecoder
from remanence.model.hooks import expecting
from remanence.model.inputs import left_padded
from remanence.model.retriever import Retrieval
from remanence.model.text import TextWriter, chunks_of, text_prefix

Source = tuple[int, float]  # id of a write, and its score
_ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")
SET_HERE = ("input_ids", "inputs", "inputs_embeds", "past_key_values", "position_ids", "cache_position")


@dataclass(frozen=True)
class Answer:
    """What a memory says to a question.

    Attributes:
        text: the answer.
        found: whether the memory had anything to read for it, and the answer is not that it was not told.
        sources: the writes that were read, best first: id and score.
    """

    text: str
    found: bool
    sources: list[tuple[int, float]]

    def __str__(self) -> str:
        return self.text


class FiniteOnly(LogitsProcessor):
    """Stops a generation whose first logits are not numbers."""

    def __init__(self) -> None:
        self._checked = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self._checked:
            require_finite(scores)
            self._checked = True
        return scores


def require_finite(logits: Tensor) -> None:
    if bool(logits.isnan().any()):
        raise CorruptMemoryError(
            "reading gave logits that are not numbers: the pool or the weights hold NaN or infinity. "
            "Go back to a saved memory, or check the model in float32"
        )


@dataclass
class Reading:
    """What one call reads.

    Attributes:
        ids, mask: `[B, T]`, what the decoder is fed, padded on the left.
        given: `[B, T]`, the rows as the caller gave them; fewer columns where a head was put in front.
        cache: None where no row reads anything: the stock call.
        sources: per row, the writes that are read, best first.
        memory: the one that a single row reads, where it is a learned one.
        key: what its prefix depends on, if that is to be kept.
    """

    ids: Tensor
    mask: Tensor
    given: Tensor
    cache: PrefixCache | None = None
    sources: list[list[Source]] = field(default_factory=list)
    memory: Memory | None = None
    key: Any = None

    def restore(self, ids: Tensor, mask: Tensor) -> None:  # [B, T] each
        """Take the rows as they were given, with padding of their own."""
        self.given = ids
        if self.cache is None:
            self.ids, self.mask = ids, mask != 0


def require_room(model: MemoryDecoder, tokens: int) -> None:
    """Raise where a prompt does not fit by itself."""
    most = model.positions
    if most is not None and tokens > most:
        raise InvalidInputError(
            f"the prompt has {tokens} tokens, but {model.name} reads {most}; shorten it by {tokens - most} tokens, or "
            "write its text into the memory and ask about that"
        )


def learned_reading(
    model: MemoryDecoder,
    memories: Sequence[Memory],
    prompts: Sequence[Prompt],
    kwargs: dict[str, Any] | None = None,
    retrieve_every: int | None = None,
) -> Reading:
    """What rows read of learned memories, one each. Prefixes are built while the memories are held.

    `kwargs`: options of `generate`; None: one forward pass.

    Raises:
        InvalidInputError: `retrieve_every` counts no tokens, or an option reads the prompt in parts.
    """
    if retrieve_every is not None and retrieve_every < 1:
        raise InvalidInputError(f"retrieve_every counts generated tokens, so {retrieve_every} makes no sense")
    room = 0 if kwargs is None else new_tokens(model, kwargs)
    kwargs = {} if kwargs is None else kwargs
    if retrieve_every is not None and any(option(model, kwargs, name) is not None for name in _ASSISTED):
        raise InvalidInputError(
            "retrieve_every counts the tokens of the text, and those of an assistant may be taken back; leave out one"
        )
    if any(memory.longterm is not None for memory in memories) and option(model, kwargs, "prefill_chunk_size"):
        raise InvalidInputError(
            "what a prompt retrieves depends on all of it, so it cannot be read in parts; leave out prefill_chunk_size"
        )
    sequences = option(model, kwargs, "num_return_sequences") or 1
    if retrieve_every is not None and sequences > 1 and _drawn_apart(model, kwargs):
        memories = [memory for memory in memories for _ in range(sequences)]
        prompts = [prompt for prompt in prompts for _ in range(sequences)]
        kwargs["num_return_sequences"] = 1
    with locked(list(memories)):
        written = [memory.written for memory in memories]
        rows = [prompt.bare if there else prompt.ids for prompt, there in zip(prompts, written, strict=True)]
        ids, mask = left_padded(rows, model.pad)
        require_room(model, ids.shape[1])
        if not any(written):
            return Reading(ids, mask, ids, sources=[[] for _ in memories])
        pools = [memory.pool_or_none for memory in memories]
        longterms = [None if memory.longterm is None else memory.longterm.view() for memory in memories]
        retrieval = None
        if model.retriever is not None and any(longterm is not None for longterm in longterms):
            rivals = [
                pool.clone() if pool is not None and longterm is not None and longterm.rules.cross_layer_prior else None
                for pool, longterm in zip(pools, longterms, strict=True)
            ]
            retrieval = Retrieval(model.retriever, longterms, rivals, model.slots_per_write, retrieve_every)
        reading = Reading(ids, mask, ids, sources=[[] for _ in memories])
        reading.memory = memories[0] if len(memories) == 1 else None
        spare: Any = ([], False)
        if len(memories) == 1 and model.device.type == "cpu" and pools[0] is not None:
            sizes = 0 if retrieval is None else retrieval.sizes[0]
            reading.key = (pools[0].version, model.last_stamp, sizes)
            spare = model.prefixes.acquire(pools[0], reading.key)
        with model.role("read"):
            reading.cache = pool_prefix(
                model.backbone,
                pools,
                model.bos_slots(stamp=model.last_stamp),
                tokens=ids.shape[1],
                room=room,
                retrieval=retrieval,
                spare=spare,
            )
            reading.cache.gate = None if model.adapters is None else model.adapters.gate
    return reading


def text_reading(
    model: MemoryDecoder,
    writer: TextWriter,
    rows: Sequence[Sequence[Memory]],
    prompts: Sequence[Prompt],
    kwargs: dict[str, Any] | None = None,
) -> Reading:
    """What rows read of text memories, one or several each. `kwargs`: options of `generate`, if it is one."""
    room = 0 if kwargs is None else new_tokens(model, kwargs)
    stock, stock_mask = left_padded([prompt.ids for prompt in prompts], model.pad)
    require_room(model, stock.shape[1])
    chosen, sources = choose(model, writer, rows, prompts, room)
    made = _chosen_reading(model, writer, rows, prompts, chosen, room)
    if made is not None and any(refused := _refused(model, made, prompts, sources)):
        chosen = [[] if no else picked for picked, no in zip(chosen, refused, strict=True)]
        sources = [[] if no else found for found, no in zip(sources, refused, strict=True)]
        made = _chosen_reading(model, writer, rows, prompts, chosen, room)
    if made is None:
        return Reading(stock, stock_mask, stock, sources=sources)
    made.given, made.sources = stock, sources
    return made


def _chosen_reading(
    model: MemoryDecoder,
    writer: TextWriter,
    rows: Sequence[Sequence[Memory]],
    prompts: Sequence[Prompt],
    chosen: Sequence[Sequence[tuple[Memory, Chunk]]],
    room: int,
) -> Reading | None:
    """What rows read that read these chunks; None where no row reads any."""
    if not any(chosen):
        return None
    ids, heads, slots = [], [], []
    for memories, prompt, picked in zip(rows, prompts, chosen, strict=True):
        row, head, _ = prompt.behind(writer.head_of(memories[0])) if picked else (prompt.ids, 0, 0)
        ids.append(row)
        heads.append(head)
        of_memory = [(memory, [chunk for owner, chunk in picked if owner is memory]) for memory in memories]
        slots.append([part for memory, chunks in of_memory for part in writer.slots(memory, chunks)])
    padded, mask = left_padded(ids, model.pad)
    cache = text_prefix(model.backbone, slots, heads, mask, room=room)
    cache.gate = None if model.adapters is None else model.adapters.gate
    return Reading(padded, mask, padded, cache)


def _refused(
    model: MemoryDecoder, reading: Reading, prompts: Sequence[Prompt], sources: Sequence[Sequence[Source]]
) -> list[bool]:
    """Whether the reader would say, for each row of a conversation, that it was not told."""
    config, cache = model.config.retrieval, reading.cache
    if config.refusal is None or cache is None or not any(prompt.chat for prompt in prompts):
        return [False] * len(prompts)
    first = int(model.texts.ids(config.refusal, model.device, date=TODAY)[0])
    logits = forward(model, reading, {"logits_to_keep": 1}).logits[:, -1].float()
    for layer in cache.layers:
        layer.reset()
    refusing = logits.softmax(-1)[:, first].tolist()
    return [
        prompt.chat and bool(read) and not config.found(read[0][1], each)
        for each, prompt, read in zip(refusing, prompts, sources, strict=True)
    ]


def choose(
    model: MemoryDecoder, writer: TextWriter, rows: Sequence[Sequence[Memory]], prompts: Sequence[Prompt], room: int = 0
) -> tuple[list[list[tuple[Memory, Chunk]]], list[list[Source]]]:
    """The chunks that each row reads, oldest first, and the writes that they are of, best first."""
    limit, config = model.positions, model.config.retrieval
    chosen: list[list[tuple[Memory, Chunk]]] = []
    sources: list[list[Source]] = []
    scored = scores(writer, rows, prompts)
    for memories, prompt, ranked in zip(rows, prompts, scored, strict=True):
        left = config.slots
        if limit is not None and ranked:
            left = min(left, limit - len(prompt.behind(writer.head_of(memories[0]))[0]) - room)
        picked: list[tuple[float, Memory, Chunk]] = []
        floor = (
            0.0 if config.min_score is None or not ranked else max(config.min_score, config.near_best * ranked[0][0])
        )
        for score, memory, chunk in ranked:
            if score < floor:
                break
            if chunk.tokens <= left:
                picked.append((score, memory, chunk))
                left -= chunk.tokens
        best: dict[int, float] = {}
        for score, _, chunk in picked:
            best.setdefault(chunk.write, score)
        sources.append(list(best.items()))
        order = {id(memory): place for place, memory in enumerate(memories)}
        picked.sort(key=lambda item: (order[id(item[1])], item[2].key))
        chosen.append([(memory, chunk) for _, memory, chunk in picked])
    return chosen, sources


def scores(
    writer: TextWriter, rows: Sequence[Sequence[Memory]], prompts: Sequence[Prompt]
) -> list[list[tuple[float, Memory, Chunk]]]:
    """All chunks of each row's memories, best first; of equal score the later first."""
    found: list[list[tuple[float, Memory, Chunk]]] = []
    for memories, prompt in zip(rows, prompts, strict=True):
        ranked: list[tuple[float, Memory, Chunk]] = []
        if any(memory.written for memory in memories):
            queries = writer.queries(prompt, writer.head_of(memories[0]))
            for memory in memories:
                with memory.lock:
                    writer.make_keys(memory)
                    each = [chunks_of(memory).scores(query) for query in queries]
                ranked += [(max(one[chunk] for one in each), memory, chunk) for chunk in each[0]]
            ranked.sort(key=lambda item: (-item[0], -item[2].key))
        found.append(ranked)
    return found


def forward(model: MemoryDecoder, reading: Reading, kwargs: dict[str, Any]) -> Any:
    """One forward pass over the prompts: what the decoder returns, for the rows as they were given."""
    for name in (*SET_HERE, "use_cache"):
        if name in kwargs:
            raise InvalidInputError(f"read sets {name} itself; leave it out")
    cache = reading.cache
    if cache is None:
        padded = {} if bool(reading.mask.all()) else {"attention_mask": reading.mask.long()}
        with model.stock():
            return model.hf(input_ids=reading.ids, **padded, **kwargs)
    with model.role("read"), expecting(cache):
        if cache.unset:
            cache.set_prompt(reading.mask)
        out = model.hf(input_ids=reading.ids, past_key_values=cache, use_cache=True, **kwargs)
    require_finite(out.logits[:, -1])
    columns, width = reading.ids.shape[1], reading.given.shape[1]
    if (made := out.logits.shape[1]) > width or made == columns:  # a head was put in front, or padding was left out
        out.logits = nn.functional.pad(out.logits, (0, 0, width - made, 0))
    return out


def generate(model: MemoryDecoder, reading: Reading, kwargs: dict[str, Any]) -> Any:
    """What transformers' `generate` returns for the prompts, as they were given."""
    cache, given = reading.cache, reading.given
    if kwargs.get("stop_strings") is not None:
        kwargs.setdefault("tokenizer", model.tokenizer)
    if cache is None:
        with model.stock():
            return model.hf.generate(input_ids=reading.ids, attention_mask=reading.mask.long(), **kwargs)
    if model.hf.generation_config.pad_token_id is None:
        kwargs.setdefault("pad_token_id", model.pad)
    processors = LogitsProcessorList([FiniteOnly(), *(kwargs.pop("logits_processor", None) or [])])
    with model.role("read"), expecting(cache):
        if cache.unset:
            cache.set_prompt(reading.mask)
        assert cache.attention_mask is not None
        out = model.hf.generate(
            input_ids=reading.ids,
            attention_mask=cache.attention_mask.long(),
            past_key_values=cache,
            use_cache=True,
            logits_processor=processors,
            **kwargs,
        )
    if reading.key is not None and isinstance(out, Tensor) and len(cache.buffers()[0][0]) == 1:
        assert reading.memory is not None
        model.prefixes.release(reading.memory.pool, reading.key, cache.buffers())
    if given.shape == reading.ids.shape:
        return out
    made = out if isinstance(out, Tensor) else out.sequences
    front = given.repeat_interleave(len(made) // len(given), dim=0)
    sequences = torch.cat([front, made[:, reading.ids.shape[1] :]], dim=1)
    if isinstance(out, Tensor):
        return sequences
    out.sequences = sequences
    return out


def option(model: MemoryDecoder, kwargs: dict[str, Any], name: str) -> Any:
    """An option of `generate` as transformers will find it; None where nobody set it."""
    given = kwargs.get(name)
    for config in (kwargs.get("generation_config"), model.hf.generation_config):
        given = getattr(config, name, None) if given is None else given
    return given


def new_tokens(model: MemoryDecoder, kwargs: dict[str, Any]) -> int:
    """Tokens that a generation may add, to size its buffers; a guess is enough, they grow."""
    return int(option(model, kwargs, "max_new_tokens") or option(model, kwargs, "max_length") or 20)


def _drawn_apart(model: MemoryDecoder, kwargs: dict[str, Any]) -> bool:
    """Whether the sequences of one prompt are drawn one by one. Beams take over each other's text instead."""
    return bool(option(model, kwargs, "do_sample")) and (option(model, kwargs, "num_beams") or 1) == 1


def found_writes(reading: Reading) -> list[Source]:
    """The writes that the first row read, best first: of a learned memory, by their share of the retrieved slots."""
    cache = reading.cache
    if cache is None or cache.retrieval is None or reading.memory is None:
        return reading.sources[0]
    found = [row[0] for row in cache.retrieval.found if row[0] is not None]
    writes = reading.memory.written_by(torch.cat([slots.serial for slots in found]))
    ids, counts = writes[writes >= 0].unique(return_counts=True)
    shares = (counts / max(1, len(writes))).tolist()
    return sorted(zip(ids.tolist(), shares, strict=True), key=lambda item: (-item[1], item[0]))
