"""Reading: which slots stand in front of each row, and the stock call behind them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation.streamers import BaseStreamer

from remanence.config import RetrievalConfig
from remanence.errors import InvalidInputError
from remanence.memory.memory import Memory, locked
from remanence.model.cache import PrefixCache, pool_prefix
from remanence.model.chat import Prompt
from remanence.model.choosing import Pass, Source, choose, prefix, refusal_token, require_finite
from remanence.model.decoder import MemoryDecoder
from remanence.model.hooks import expected, expecting
from remanence.model.inputs import drawn_apart, left_padded, new_tokens, option
from remanence.model.retriever import Retrieval
from remanence.model.text import TextWriter

_ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")
_IN_PARTS = (*_ASSISTED, "prefill_chunk_size")  # the first pass is not over the whole prompts
_OF_ALL = ("output_hidden_states", "output_attentions")  # the first pass says something of every token
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
        refusal: which rows read nothing after all; None: that is settled, or nobody was trained to refuse.
    """

    ids: Tensor
    mask: Tensor
    given: Tensor
    cache: PrefixCache | None = None
    sources: list[list[Source]] = field(default_factory=list)
    memory: Memory | None = None
    key: Any = None
    refusal: "Refusal | None" = None

    def become(self, other: "Reading") -> None:
        """Read that instead, for the same rows as they were given."""
        self.ids, self.mask, self.cache, self.sources = other.ids, other.mask, other.cache, other.sources
        self.refusal = None

    def restore(self, ids: Tensor, mask: Tensor) -> None:  # [B, T] each
        """Take the rows as they were given, with padding of their own."""
        self.given = ids
        if self.cache is None:
            self.ids, self.mask = ids, mask != 0


@dataclass(frozen=True)
class Refusal:
    """Which rows of conversations read nothing after all, since the reader would say that it was not told.

    Attributes:
        token: that the refusal begins with.
        scores: of the best chunk of each row; None for a row that reads nothing, or is no conversation.
        config: weighs the two; without: makes the reading in which some rows read nothing.
    """

    token: int
    scores: Sequence[float | None]
    config: RetrievalConfig
    without: Callable[[Sequence[bool]], Reading]

    def instead(self, logits: Tensor) -> Reading | None:  # [rows, V]
        """What is read instead, by the logits behind the prompts, of which a row may have several; None: no other."""
        logits = logits[:: len(logits) // len(self.scores)].float()
        first, likeliest = logits.softmax(-1)[:, self.token].tolist(), logits.argmax(-1).tolist()
        told = [
            score is None or (best != self.token and self.config.found(score, p))
            for score, p, best in zip(self.scores, first, likeliest, strict=True)
        ]
        return None if all(told) else self.without([not each for each in told])


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
    room = 0 if kwargs is None else new_tokens(model.hf, kwargs)
    kwargs = {} if kwargs is None else kwargs
    if retrieve_every is not None and any(option(model.hf, kwargs, name) is not None for name in _ASSISTED):
        raise InvalidInputError(
            "retrieve_every counts the tokens of the text, and those of an assistant may be taken back; leave out one"
        )
    if any(memory.longterm is not None for memory in memories) and option(model.hf, kwargs, "prefill_chunk_size"):
        raise InvalidInputError(
            "what a prompt retrieves depends on all of it, so it cannot be read in parts; leave out prefill_chunk_size"
        )
    sequences = option(model.hf, kwargs, "num_return_sequences") or 1
    if retrieve_every is not None and sequences > 1 and drawn_apart(model.hf, kwargs):
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
    room = 0 if kwargs is None else new_tokens(model.hf, kwargs)
    fed = kwargs is None or any(option(model.hf, kwargs, name) for name in (*_IN_PARTS, *_OF_ALL))
    stock, stock_mask = left_padded([prompt.ids for prompt in prompts], model.pad)
    require_room(model, stock.shape[1])
    chosen, sources, passed = choose(model, writer, rows, prompts, room)

    def without(refused: Sequence[bool], going_on: Pass | None = None) -> Reading:
        read = [[] if no else picked for picked, no in zip(chosen, refused, strict=True)]
        behind = prefix(model, writer, rows, prompts, read, room=room, fed=fed, passed=going_on)
        ids, mask, cache = behind or (stock, stock_mask, None)
        made = Reading(ids, mask, stock, cache)
        made.sources = [[] if no else found for found, no in zip(sources, refused, strict=True)]
        return made

    made = without([False] * len(rows), passed)
    config = model.config.retrieval
    scores = [found[0][1] if prompt.chat and found else None for prompt, found in zip(prompts, sources, strict=True)]
    if config.refusal is not None and any(score is not None for score in scores):
        made.refusal = Refusal(refusal_token(model), scores, config, without)
    return made


def forward(model: MemoryDecoder, reading: Reading, kwargs: dict[str, Any]) -> Any:
    """One forward pass over the prompts: what the decoder returns, for the rows as they were given."""
    for name in (*SET_HERE, "use_cache"):
        if name in kwargs:
            raise InvalidInputError(f"read sets {name} itself; leave it out")
    if isinstance(kwargs.get("logits_to_keep"), Tensor):
        settle(model, reading)  # those behind the prompt may not be among them
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
    if reading.refusal is not None and (other := reading.refusal.instead(out.logits[:, -1])) is not None:
        reading.become(other)
        return forward(model, reading, kwargs)
    columns, width = reading.ids.shape[1], reading.given.shape[1]
    if (made := out.logits.shape[1]) > width or made == columns:  # a head was put in front, or padding was left out
        out.logits = nn.functional.pad(out.logits, (0, 0, width - made, 0))
    return out


def settle(model: MemoryDecoder, reading: Reading) -> None:
    """Find out which rows read nothing after all, by a pass of its own."""
    if reading.refusal is None:
        return
    forward(model, reading, {"logits_to_keep": 1})
    reading.refusal = None
    for layer in [] if reading.cache is None else reading.cache.layers:
        layer.reset()


class _Refused(Exception):
    """`args[0]`: what is read instead."""


class _Again(BaseStreamer):
    """A streamer that was given the prompt before."""

    def __init__(self, streamer: BaseStreamer) -> None:
        self._streamer, self._prompt = streamer, True

    def put(self, value: Tensor) -> None:
        again, self._prompt = self._prompt, False
        if not again:
            self._streamer.put(value)

    def end(self) -> None:
        self._streamer.end()


def generate(model: MemoryDecoder, reading: Reading, kwargs: dict[str, Any]) -> Any:
    """What transformers' `generate` returns for the prompts, as they were given.

    The logits behind the prompts say whether a row reads nothing after all: the generation then starts again.
    """
    if any(option(model.hf, kwargs, name) is not None for name in _IN_PARTS):
        settle(model, reading)
    if reading.refusal is None:
        return _generate(model, reading, kwargs)

    own = reading.cache

    def check(module: nn.Module, args: Any, output: Any) -> None:
        if expected() is not own:  # another thread's call
            return
        refusal, reading.refusal = reading.refusal, None
        if refusal is not None and (other := refusal.instead(output.logits[:, -1])) is not None:
            raise _Refused(other)

    watching = model.hf.register_forward_hook(check)
    try:
        return _generate(model, reading, kwargs)
    except _Refused as refused:
        reading.become(refused.args[0])
    finally:
        watching.remove()
    if (streamer := kwargs.get("streamer")) is not None:
        kwargs = {**kwargs, "streamer": _Again(streamer)}
    return _generate(model, reading, kwargs)


def _generate(model: MemoryDecoder, reading: Reading, options: dict[str, Any]) -> Any:
    cache, given, kwargs = reading.cache, reading.given, dict(options)
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
