"""The plain path: what is read and written, over plain tensors. Written to be read.

Text slots: `read_text`. Learned slots: what the published code does at every read and write.

Slots are hidden states. At every prompt all of them are joined to the text, layer by layer, and go through the norm and
the key and value projections again; at every write the whole pool is copied. Long-term memory is hidden states too:
at every prompt all its keys move to the device, and at every write all of it is copied. One prompt, one pool that was
written before, decoders of the Llama family. `MemoryModel` does the same with less work, and a test says that the two
agree.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


@torch.no_grad()
def read_text(hf: Any, head: Tensor, chunks: Sequence[Tensor], rest: Tensor) -> Tensor:
    """Logits `[T, V]` of the rest of a prompt behind its head and some chunks: one block-masked pass.

    Head and chunks are blocks that do not see each other, but that every chunk sees the head, as if it stood directly
    behind it. The rest sees all, one chunk behind the other. A chunk's keys so have two positions: one for the chunk,
    one for the rest.

    Args:
        hf: a `LlamaForCausalLM`.
        head: `[h]` token ids; chunks: `[n]` each; rest: `[T]`.
    """
    blocks = [head, *chunks, rest]
    hidden = [hf.model.embed_tokens(ids) for ids in blocks]
    starts = [0]  # of every block, as the rest sees it
    for ids in blocks[:-1]:
        starts.append(starts[-1] + len(ids))
    for layer in hf.model.layers:
        made = []
        for number, rows in enumerate(hidden):
            if number == 0:
                seen, start = [(rows, 0)], 0
            elif number < len(hidden) - 1:
                seen, start = [(hidden[0], 0), (rows, len(head))], len(head)
            else:
                seen, start = list(zip(hidden, starts, strict=True)), starts[-1]
            made.append(_block(hf, layer, rows, start, seen))
        hidden = made
    return hf.lm_head(hf.model.norm(hidden[-1]))


def _block(hf: Any, layer: Any, rows: Tensor, start: int, seen: list[tuple[Tensor, int]]) -> Tensor:  # [n, d] -> [n, d]
    """One decoder layer over a block at positions from `start` on; `seen`: what it attends to, itself last, and from
    which position on."""
    attention = layer.self_attn
    sees = torch.cat([block for block, _ in seen])
    places = torch.cat([first + torch.arange(len(block)) for block, first in seen]).to(rows.device)
    own = start + torch.arange(len(rows), device=rows.device)
    normed, around = layer.input_layernorm(rows), layer.input_layernorm(sees)
    q, k, v = (
        projected.unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)  # [H, S, D]
        for projected in (attention.q_proj(normed), attention.k_proj(around), attention.v_proj(around))
    )
    q, k = (
        _rotate(heads, *(part[0] for part in hf.model.rotary_emb(rows, at[None])))
        for heads, at in ((q, own), (k, places))
    )
    k, v = (shared.repeat_interleave(len(q) // len(k), dim=0) for shared in (k, v))
    mixed = scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=places <= own[:, None])[0]
    hidden = rows + attention.o_proj(mixed.transpose(0, 1).flatten(1))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


@dataclass(frozen=True)
class LongTerm:
    """M slots per layer that left the pool, in the order in which they left.

    Attributes:
        slots: `[L, M, d]`.
        keys: `[L, M, P]`, by which they are found; see `retrieval_keys`.
        ages: `[L, M]`.
    """

    slots: Tensor
    keys: Tensor
    ages: Tensor


@torch.no_grad()
def read(
    hf: Any,
    bos: Tensor | None,
    pool: Tensor,
    ids: Tensor,
    longterm: LongTerm | None = None,
    retriever: Any = None,
    count: int = 0,
) -> Tensor:
    """Logits `[T, V]` of a prompt behind [bos | retrieved | pool].

    Args:
        hf: a `LlamaForCausalLM`.
        bos: `[L, 1, d]`, or None for a model without.
        pool: `[L, N, d]`, oldest slot first.
        ids: `[T]`.
        longterm: what to retrieve from; None: nothing is retrieved.
        retriever: a `Retriever`; of it, `query[layer]` is asked.
        count: slots that each layer retrieves, fewer where there are fewer.
    """
    hidden = hf.model.embed_tokens(ids)  # [T, d]
    for index, layer in enumerate(hf.model.layers):
        slots = pool[index]
        if longterm is not None:
            queries = retriever.query[index](layer.input_layernorm(hidden))
            count = min(count, longterm.slots.shape[1])
            found = retrieve(queries, longterm.keys[index], longterm.ages[index], count)
            slots = torch.cat([longterm.slots[index][found].to(slots.device), slots])
        rows = torch.cat([_behind_bos(bos, index, slots), hidden])
        hidden = _layer(hf, layer, rows, queries=len(ids))
    return hf.lm_head(hf.model.norm(hidden))


def retrieve(queries: Tensor, keys: Tensor, ages: Tensor, count: int) -> Tensor:  # [T, P], [M, P], [M] -> [count]
    """Indices of the slots with the highest scores, oldest first; of equal age the later first.

    A slot's score is the mean over the prompt's tokens of sigmoid(q·k).
    """
    scores = (queries @ keys.to(queries.device).T).sigmoid().mean(dim=0)  # [M]
    found = scores.topk(count).indices.to(ages.device).sort().values
    return found[ages[found].argsort(stable=True).flip(0)]


@torch.no_grad()
def write(
    hf: Any, bos: Tensor | None, positional: Tensor, pool: Tensor, ids: Tensor, k: int, kept: Tensor
) -> tuple[Tensor, Tensor]:
    """The K new slots of a chunk `[L, K, d]`, and the pool that holds them `[L, N, d]`. The pool given is not changed.

    The chunk is read behind [bos | the K newest slots]. The embedding for new memory is added to the last K rows of
    every layer's input; its output at these rows is the layer's new slots. Where the chunk has n < K tokens, the last
    K - n slots of each layer are among these rows, and are processed like text.

    Args:
        positional: `[1, 1, d]`, the embedding for new memory.
        pool: `[L, N, d]`, oldest slot first.
        ids: `[T]`.
        k: slots per write.
        kept: `[L, N - K]`, ranks of the slots that stay.
    """
    hidden = hf.model.embed_tokens(ids)  # [T, d]
    delta = []
    for index, layer in enumerate(hf.model.layers):
        rows = torch.cat([_behind_bos(bos, index, pool[index, -k:]), hidden])
        rows = torch.cat([rows[:-k], rows[-k:] + positional[0]])
        out = _layer(hf, layer, rows, queries=max(len(ids), k))
        delta.append(out[-k:])
        hidden = out[-len(ids) :]
    new = torch.stack(delta)
    return new, replace(pool, new, kept)


def replace(pool: Tensor, new: Tensor, kept: Tensor) -> Tensor:  # [L, N, d], [L, K, d], [L, N - K] -> [L, N, d]
    """A new pool: the slots that stay, in their order, and behind them the new ones."""
    return torch.stack([torch.cat([pool[index][kept[index]], new[index]]) for index in range(len(pool))])


@torch.no_grad()
def retrieval_keys(hf: Any, retriever: Any, slots: Tensor) -> Tensor:  # [L, P, d] -> [L, P, R]
    """The keys that slots get when they leave the pool."""
    layers = zip(hf.model.layers, retriever.key, slots, strict=True)
    return torch.stack([key(layer.input_layernorm(rows)) for layer, key, rows in layers])


def append(longterm: LongTerm, new: LongTerm, made: int) -> LongTerm:
    """Long-term memory after a write that made so many slots: all others get older by them, and `new` come behind."""
    pairs = (longterm.slots, new.slots), (longterm.keys, new.keys), (longterm.ages + made, new.ages)
    return LongTerm(*(torch.cat([held, more.to(held.device)], dim=1) for held, more in pairs))


def _behind_bos(bos: Tensor | None, index: int, slots: Tensor) -> Tensor:  # [P, d] -> [P + 1, d], or [P, d] without
    return slots if bos is None else torch.cat([bos[index], slots])


def _layer(hf: Any, layer: Any, rows: Tensor, queries: int) -> Tensor:  # rows [S, d] -> [queries, d]
    """One decoder layer over rows at positions 0, 1, 2, ..., of which the last `queries` are processed.

    A processed row sees every row up to and including itself; the others are keys and values only.
    """
    attention = layer.self_attn
    normed = layer.input_layernorm(rows)
    q, k, v = (
        projected.unflatten(-1, (-1, attention.head_dim)).transpose(0, 1)  # [H, S, D]
        for projected in (attention.q_proj(normed[-queries:]), attention.k_proj(normed), attention.v_proj(normed))
    )
    cos, sin = (part[0] for part in hf.model.rotary_emb(rows, torch.arange(len(rows), device=rows.device)[None]))
    q, k = _rotate(q, cos[-queries:], sin[-queries:]), _rotate(k, cos, sin)
    seen = torch.ones(queries, len(rows), dtype=torch.bool, device=rows.device).tril(len(rows) - queries)
    k, v = (shared.repeat_interleave(len(q) // len(k), dim=0) for shared in (k, v))
    mixed = scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=seen)[0]
    hidden = rows[-queries:] + attention.o_proj(mixed.transpose(0, 1).flatten(1))
    return hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def _rotate(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:  # [H, S, D], [S, D], [S, D]
    low, high = heads.chunk(2, dim=-1)
    return heads * cos + torch.cat([-high, low], dim=-1) * sin
