"""Generation behind memories: transformers' own, with a prefix, room for its tokens, and a check for numbers."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from remanence.errors import CorruptMemoryError, InvalidInputError
from remanence.memory import LongTerm, Memory, Pool
from remanence.model.adapters import Role
from remanence.model.decoder import MemoryDecoder
from remanence.model.prefix import PrefixCache, PrefixLayer, pool_prefix
from remanence.model.retriever import Retrieval


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


def prefix_for(
    model: MemoryDecoder,
    pools: Sequence[Pool | None],
    longterms: Sequence[LongTerm | None],
    room: int,
    retrieve_every: int | None = None,
    role: Role = "read",
    stamp: int | None = None,
) -> PrefixCache:
    """The prefix of a read, with what is retrieved where a memory has a long-term part.

    `stamp`: of the model's parameters, where it is known.

    Raises:
        InvalidInputError: `retrieve_every` counts no tokens.
    """
    if retrieve_every is not None and retrieve_every < 1:
        raise InvalidInputError(f"retrieve_every counts generated tokens, so {retrieve_every} makes no sense")
    retrieval = None
    if model.retriever is not None and any(longterm is not None for longterm in longterms):
        retrieval = Retrieval(model.retriever, longterms, pools, model.slots_per_write, retrieve_every)
    return pool_prefix(model.backbone, pools, model.bos_slots(role, stamp=stamp), room, retrieval)


def generate(
    model: MemoryDecoder,
    memories: Sequence[Memory],
    ids: Tensor,
    mask: Tensor,
    retrieve_every: int | None,
    kwargs: dict[str, Any],
) -> Any:  # ids and mask [B, T]
    """What transformers' `generate` returns for these prompts behind these memories."""
    if kwargs.get("prefill_chunk_size") and any(memory.longterm is not None for memory in memories):
        raise InvalidInputError(
            "what a prompt retrieves hangs on all of it, so it cannot be read in parts; leave out prefill_chunk_size"
        )
    sequences = _option(model, kwargs, "num_return_sequences") or 1
    if retrieve_every is not None and sequences > 1 and _apart(model, kwargs):
        memories = [memory for memory in memories for _ in range(sequences)]
        ids, mask = (part.repeat_interleave(sequences, dim=0) for part in (ids, mask))
        kwargs["num_return_sequences"] = 1
    with model.role("read"):
        cache = prefix_for(
            model,
            [memory.pool_or_none for memory in memories],
            [memory.longterm for memory in memories],
            room=ids.shape[1] + _new_tokens(model, kwargs),
            retrieve_every=retrieve_every,
            stamp=model.last_stamp,
        )
        kept = memories[0].pool_or_none if len(memories) == 1 and model.device.type == "cpu" else None
        about: tuple[Any, ...] = ()
        if kept is not None:
            about = (kept.version, model.last_stamp, cache.prefix)
            cache.reuse(*model.spare.take(kept, about))
        if model.hf.generation_config.pad_token_id is None:
            kwargs.setdefault("pad_token_id", model.pad)
        if kwargs.get("stop_strings") is not None:
            kwargs.setdefault("tokenizer", model.tokenizer)
        out = model.hf.generate(
            input_ids=ids,
            attention_mask=cache.follow_text(mask).long(),
            past_key_values=cache,
            logits_processor=LogitsProcessorList([FiniteOnly(), *(kwargs.pop("logits_processor", None) or [])]),
            **kwargs,
        )
    if kept is not None and isinstance(out, Tensor) and len(cache.buffers()[0][0]) == 1:
        model.spare.give(kept, about, cache.buffers())
    return out


def prepare(model: MemoryDecoder, memory: Memory) -> None:
    """Make the prefix of the next prompt on this memory, in the buffers of the last."""
    with model.role("read"):
        cache = prefix_for(model, [memory.pool], [memory.longterm], room=0, stamp=model.last_stamp)
        about = (memory.pool.version, model.last_stamp, cache.prefix)
        cache.reuse(*model.spare.take(memory.pool, about))
        made = [layer.prepare() for layer in cache.layers if isinstance(layer, PrefixLayer)]
    if buffers := [each for each in made if each is not None]:
        model.spare.give(memory.pool, about, buffers)


def _option(model: MemoryDecoder, kwargs: dict[str, Any], name: str) -> Any:
    """An option of `generate` as transformers will find it; None where nobody set it."""
    given = kwargs.get(name)
    for config in (kwargs.get("generation_config"), model.hf.generation_config):
        given = getattr(config, name, None) if given is None else given
    return given


def _apart(model: MemoryDecoder, kwargs: dict[str, Any]) -> bool:
    """Whether the sequences of one prompt are drawn one by one. Beams take over each other's text instead."""
    return bool(_option(model, kwargs, "do_sample")) and (_option(model, kwargs, "num_beams") or 1) == 1


def _new_tokens(model: MemoryDecoder, kwargs: dict[str, Any]) -> int:
    """Tokens that a generation may add, to size its buffers; a guess is enough, they grow."""
    return int(_option(model, kwargs, "max_new_tokens") or _option(model, kwargs, "max_length") or 20)
