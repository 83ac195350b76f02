"""How fast memory is read and written, against the plain path that does what the published code does.

    python benchmarks/read_write/run.py --json benchmarks/read_write/results.json

Everything is measured in one run, with two threads, on a random Llama (d 512, 8 layers, 8 heads, 2 key/value heads;
float32 unless --dtype says otherwise). Decoders with and without memory compute by the same kernels, in float32 on a
CPU those of `optimize_for_cpu`. What is compared is measured in turns, A B A B, so that a machine that is busy for a
while slows both alike.
"""

import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList, StaticCache

from remanence import Memory, MemoryModel
from remanence.kernels.optimize import optimize_for_cpu
from remanence.memory import MemorySpec, NewSlots
from remanence.model import reference

sys.path.insert(0, str(Path(__file__).parent.parent))

from measure import GREEDY, PROMPT, Figures, Setting, compared, in_turns, now, parser, report, setting, summary

MADE = 256  # slots per write where the pool's update is measured


def slope(points: Sequence[tuple[int, float]]) -> float:
    """Milliseconds per 1,000 slots, by least squares."""
    return statistics.linear_regression(*zip(*points, strict=True)).slope * 1000


def plain_decoder(on: Setting) -> Any:
    """Without memory, by the kernels that the model with memory has."""
    made = on.decoder()
    optimize_for_cpu(made)
    return made


def first_token(on: Setting, repeats: int) -> Figures:
    """From prompt to first token.

    | | the prefix |
    |---|---|
    | `unread` | is made, in the buffers of another: the memory was not read lately |
    | `other` | was kept: prompts go to two memories by turns |
    | `after_write` | is made, in its own buffers: there was a write just before, whose time does not count |
    | `again` | was kept: the memory was read last, and not written since |

    `alone` is the same decoder on the same prompt without memory, which no way to read one can undercut.
    `unoptimized` is `again` by a model that was left as `attach` makes it.
    """
    rows: list[Figures] = []
    cases = ("unread", "other", "after_write", "again")
    for slots in (on.slots // 4, on.slots // 2, on.slots, 2 * on.slots):
        model, stock, loose = on.model(slots).optimize_for_cpu(), plain_decoder(on), on.model(slots)
        (memory, pool), (second, _) = on.filled(model), on.filled(model, seed=1)
        ids, text = on.prompt(), on.prompt(seed=1)

        def ask(asked: Memory, model: MemoryModel = model, ids: Tensor = ids) -> float:
            start = now()
            model.generate(asked, ids, max_new_tokens=1, **GREEDY)
            return now() - start

        def other(memory: Memory = memory, second: Memory = second, ask: Callable[..., float] = ask) -> float:
            ask(second)
            return ask(memory)

        def unread(model: MemoryModel = model, other: Callable[[], float] = other) -> float:
            limit, model.prefixes.limit = model.prefixes.limit, 0
            taken = other()
            model.prefixes.limit = limit
            return taken

        def after_write(
            memory: Memory = memory,
            text: Tensor = text,
            model: MemoryModel = model,
            ask: Callable[..., float] = ask,
        ) -> float:
            model.write(memory, text)
            return ask(memory)

        def again(memory: Memory = memory, ask: Callable[..., float] = ask) -> float:
            return ask(memory)

        def unoptimized(memory: Memory = memory, loose: MemoryModel = loose, ask: Callable[..., float] = ask) -> float:
            return ask(memory, loose)

        def alone(model: MemoryModel = model, ids: Tensor = ids) -> None:
            model.hf.generate(ids[None], attention_mask=torch.ones_like(ids)[None], max_new_tokens=1, **GREEDY)

        def plain(stock: Any = stock, bos: Any = model.bos_embedding, pool: Tensor = pool, ids: Tensor = ids) -> None:
            reference.read(stock, bos, pool, ids)[-1].argmax()

        seconds = in_turns(
            repeats,
            unread=unread,
            other=other,
            after_write=after_write,
            again=again,
            unoptimized=unoptimized,
            alone=alone,
            reference=plain,
        )
        middle = {name: statistics.median(taken) for name, taken in seconds.items()}
        ratios = {name: round(middle["reference"] / middle[name], 3) for name in cases}
        rows.append({"slots": slots, **{name: summary(taken) for name, taken in seconds.items()}, "ratio": ratios})
    slopes = {name: slope([(row["slots"], row[name]["median_ms"]) for row in rows]) for name in (*cases, "reference")}
    return {
        "prompt_tokens": PROMPT,
        "by_slots": rows,
        "slope_ms_per_1000_slots": {name: round(value, 3) for name, value in slopes.items()},
        "slope_ratio": round(slopes["unread"] / slopes["reference"], 3),
    }


def pool_update(on: Setting, repeats: int) -> Figures:
    """What a write costs behind its forward pass: 256 new slots per layer are ready, and 256 leave."""
    few, many = 5 * MADE, 50 * MADE
    projected = (on.layers, MADE, on.kv_heads, on.head)
    new = NewSlots(on.random(on.layers, MADE, on.size), on.random(*projected), on.random(*projected), tokens=MADE)
    dtype = str(on.dtype).removeprefix("torch.")

    def fast(slots: int) -> Callable[[], None]:
        sizes = (on.layers, slots, MADE, on.size, on.kv_heads, on.head)
        memory = Memory(MemorySpec(*sizes, dtype, shared_eviction=False, model=""))

        def update() -> None:
            with memory.changing() as undo:
                memory.put(new, undo)

        return update

    def plain(slots: int) -> Callable[[], None]:
        pool = on.random(on.layers, slots, on.size)

        def update() -> None:
            kept = torch.stack([torch.randperm(slots)[: slots - MADE].sort().values for _ in range(on.layers)])
            reference.replace(pool, new.hidden, kept)

        return update

    seconds = in_turns(4 * repeats, few=fast(few), many=fast(many))
    copies = in_turns(repeats, few=plain(few), many=plain(many))
    return {
        "slots": [few, many],
        "slots_per_write": MADE,
        "remanence": compared(seconds),
        "reference": compared(copies),
    }


class Clock(LogitsProcessor):
    """Notes when each token's logits are there."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self.times.append(now())
        return scores

    def per_token(self) -> float:
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)


def decode(on: Setting, repeats: int) -> Figures:
    """Per token, behind the first; the stock model reads as many entries from a static cache."""
    tokens = 64
    model, stock = on.model().optimize_for_cpu(), plain_decoder(on)
    memory, _ = on.filled(model)
    long = on.prompt(tokens=on.slots + 1 + PROMPT)[None]

    def with_memory() -> float:
        clock = Clock()
        model.generate(memory, long[0, -PROMPT:], max_new_tokens=tokens + 1, logits_processor=[clock], **GREEDY)
        return clock.per_token()

    def without() -> float:
        clock = Clock()
        stock.generate(
            long,
            attention_mask=torch.ones_like(long),
            past_key_values=StaticCache(config=stock.config, max_cache_len=long.shape[1] + tokens + 1),
            max_new_tokens=tokens + 1,
            logits_processor=LogitsProcessorList([clock]),
            disable_compile=True,
            **GREEDY,
        )
        return clock.per_token()

    measured = compared(in_turns(repeats, static_cache=without, remanence=with_memory))
    return {"slots": on.slots, "new_tokens": tokens, **measured}


def slot_bytes(on: Setting) -> Figures:
    """Growth of a pool with N, everything counted that grows with it."""
    held = {}
    for slots in (on.slots // 4, 2 * on.slots):
        memory, _ = on.filled(on.model(slots))
        held[slots] = memory.pool.nbytes + memory.pool.order.nbytes
        newest = memory.newest
    (few, small), (many, large) = held.items()
    assert newest is not None
    numbers = 2 * on.kv_heads * on.head * on.dtype.itemsize
    grown = (large - small) / (many - few) / on.layers
    return {
        "bytes_per_slot_and_layer": grown,
        "key_and_value_bytes": numbers,
        "over": round(grown / numbers - 1, 4),
        "hidden_slot_bytes": on.size * on.dtype.itemsize,
        "newest_hidden_bytes": newest.nbytes,
    }


def batch(on: Setting, repeats: int) -> Figures:
    """Eight memories in one call against eight calls, and how far the rows differ."""
    count, tokens = 8, 32
    model = on.model().optimize_for_cpu()
    memories = [on.filled(model, seed)[0] for seed in range(count)]
    ids = torch.stack([on.prompt(seed) for seed in range(count)])
    options = {"max_new_tokens": tokens, "return_dict_in_generate": True, "output_logits": True, **GREEDY}

    def together() -> None:
        model.generate(memories, ids, **options)

    def one_by_one() -> None:
        for memory, row in zip(memories, ids, strict=True):
            model.generate(memory, row, **options)

    measured = compared(in_turns(repeats, together=together, one_by_one=one_by_one))
    joined = model.generate(memories, ids, **options)
    alone = [model.generate(memory, row, **options) for memory, row in zip(memories, ids, strict=True)]
    apart = (torch.stack(joined.logits, 1) - torch.cat([torch.stack(out.logits, 1) for out in alone])).abs().max()
    same = torch.equal(joined.sequences, torch.cat([out.sequences for out in alone]))
    return {
        "memories": count,
        "slots": on.slots,
        "new_tokens": tokens,
        **measured,
        "max_logit_difference": float(apart),
        "same_tokens": same,
    }


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__).parse_args(arguments)
    repeats = options.repeats
    long = min(repeats, max(5, repeats // 3))
    on = setting(options)
    parts: dict[str, Callable[[], Figures]] = {
        "first_token": lambda: first_token(on, repeats),
        "pool_update": lambda: pool_update(on, repeats),
        "decode": lambda: decode(on, long),
        "slot_bytes": lambda: slot_bytes(on),
        "batch": lambda: batch(on, long),
    }
    report(on, parts, options.json)


if __name__ == "__main__":
    main()
