"""How likely a continuation is, behind one memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence

from remanence.memory import Memory
from remanence.model.chat import TODAY
from remanence.model.hooks import MemoryCache
from remanence.model.inputs import left_padded
from remanence.model.model import MemoryModel


def room(model: MemoryModel, *, written: bool) -> int:
    """Tokens of text that fit behind a memory, whatever it finds for them."""
    positions: int = model.backbone.config.max_position_embeddings
    if not written:
        return positions
    if model.config.writer == "text":
        return positions - model.config.retrieval.slots - len(model.texts.head(TODAY))
    return positions - 1 - model.slots - (0 if model.config.longterm is None else model.config.longterm.retrieved)


@dataclass(frozen=True)
class Scored:
    """Of each token of a continuation, behind those before it.

    Attributes:
        likelihoods: its log-probability.
        greedy: whether it is the most probable.
    """

    likelihoods: list[float]
    greedy: list[bool]


@torch.no_grad()
def score_tokens(
    model: MemoryModel, memory: Memory, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> tuple[list[Scored], bool]:
    """Continuations behind their contexts, in one batch; and whether any of the rows read anything of the memory.

    What is retrieved hangs on the context alone, as when the model goes on by itself.

    Args:
        pairs: ids of context and continuation, neither empty.
    """
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
