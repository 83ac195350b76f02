"""What a model makes of text behind one memory: how likely a continuation is, and how it goes on by itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence

from remanence.memory import Memory
from remanence.model.hooks import MemoryCache
from remanence.model.inputs import left_padded
from remanence.model.model import MemoryModel


def room(model: MemoryModel, *, written: bool) -> int:
    """Tokens of text that fit behind a memory."""
    retrieved = 0 if model.config.longterm is None else model.config.longterm.retrieved
    positions: int = model.backbone.config.max_position_embeddings
    return positions - (1 + retrieved + model.slots if written else 0)


@dataclass(frozen=True)
class Scored:
    """Of each token of a continuation, behind those before it.

    Attributes:
        likelihoods: its log-probability.
        greedy: whether it is the most probable.
    """

    likelihoods: list[float]
    greedy: list[bool]


def score(
    model: MemoryModel, memory: Memory, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> list[tuple[float, bool]]:
    """Log-probability of each continuation after its context, and whether it is what greedy decoding gives; one batch.

    What is retrieved hangs on the context alone, as when the model goes on by itself.

    Args:
        pairs: ids of context and continuation, neither empty.
    """
    return [(sum(one.likelihoods), all(one.greedy)) for one in score_tokens(model, memory, pairs)[0]]


@torch.no_grad()
def score_tokens(
    model: MemoryModel, memory: Memory, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> tuple[list[Scored], bool]:
    """The same token by token, and whether any of the rows read anything of the memory."""
    contexts = [torch.tensor(context, device=model.device) for context, _ in pairs]
    out = model.read([memory] * len(pairs), contexts, logits_to_keep=1)
    rows = [torch.tensor(continuation, device=model.device) for _, continuation in pairs]
    ids, logits = pad_sequence(rows, batch_first=True), out.logits  # [B, T], [B, 1, V]
    assert logits is not None
    if ids.shape[1] > 1:
        cache, mask = out.past_key_values, None
        if not isinstance(cache, MemoryCache):  # which knows by itself where padding stands
            read = left_padded(contexts, model.pad)[1]
            mask = torch.cat([read, torch.ones_like(ids[:, :-1], dtype=torch.bool)], dim=1)
        reading = model.role("read") if isinstance(cache, MemoryCache) else model.stock()
        with reading:
            rest = model.hf(input_ids=ids[:, :-1], attention_mask=mask, past_key_values=cache, use_cache=True).logits
        logits = torch.cat([logits, rest], dim=1)
    each = logits.float().log_softmax(dim=-1).gather(2, ids[..., None])[..., 0]
    greedy = logits.argmax(dim=-1) == ids
    found = [Scored(each[row, : len(one)].tolist(), greedy[row, : len(one)].tolist()) for row, one in enumerate(rows)]
    return found, isinstance(out.past_key_values, MemoryCache)


def complete(
    model: MemoryModel, memory: Memory, prompts: Sequence[Sequence[int]], until: Sequence[str], **options: Any
) -> list[str]:
    """How each prompt goes on, up to the first of the strings in `until`; one batch.

    Args:
        prompts: ids, none empty.
        options: for transformers' `generate`.
    """
    if until:
        options["stop_strings"] = list(until)
    out = model.generate([memory] * len(prompts), [list(prompt) for prompt in prompts], **options)
    texts = model.tokenizer.batch_decode(out[:, max(map(len, prompts)) :], skip_special_tokens=True)
    return [_cut(text, until) for text in texts]


def _cut(text: str, until: Sequence[str]) -> str:
    return text[: min((at for stop in until if (at := text.find(stop)) >= 0), default=len(text))]
