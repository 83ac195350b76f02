"""How fast memory is read and written, against the plain path that does what the published code does.

A random Llama (d 512, 8 layers, 8 heads, 2 key/value heads; float32 unless --dtype says otherwise), two threads.
Decoders with and without memory compute by the same kernels, in float32 on a CPU those of `optimize_for_cpu`.
A first token is timed from the prompt on. Where the memory was not read before, its prefix is made, in the buffers of
another; after a write it is made in its own, and the write's time does not count; otherwise it was kept.
"""

import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StaticCache

from remanence import Memory, MemoryModel
from remanence.config import LongTermConfig
from remanence.memory import MemorySpec, NewSlots
from remanence.memory.undo import Undo
from remanence.model import reference
from remanence.model.learned import LearnedWriter
from shapes import GREEDY, PROMPT, Shape, Shaped
from tables import Figures, Rows, cell
from timing import OURS, PLAIN, Cases, Part, Parts, against, agree, now, ratio, require

Settings = Shaped
NOTE = "A random Llama of the shape `{shape}`, {dtype}."
READ = ("on a memory not read before", "on two memories by turns", "after a write", "on the memory read last")
FIRST, UPDATE = "first token, {}, {}", "pool update, N = {:,}"  # rows
KEY = 256  # numbers in a retrieval key
MADE = 256  # slots per write where the pool's update is measured
POOLS = (5 * MADE, 50 * MADE)  # N there
TOKENS = 64  # in a row, where the next one is timed
MEMORIES, ANSWER = 8, 32  # in one call, and tokens for each


def parts(options: Shaped) -> Parts:
    on = options.on
    return {
        **{f"first token, N = {slots:,}": partial(first_token, on, slots, options.repeats) for slots in sizes(on)},
        "pool update": partial(pool_update, on, 4 * options.repeats),
        "pool update, plain path": partial(pool_copies, on, options.repeats),
        "next token": partial(next_token, on, options.few),
        "memories in one call": partial(batch, on, options.few),
        "bytes": partial(slot_bytes, on),
    }


def finish(options: Shaped, rows: Rows) -> None:
    """How much longer a first token takes with more slots, by least squares, and a write in a larger pool."""
    slots = sizes(options.on)
    for how in READ:
        cells = [rows.get(FIRST.format(how, f"N = {count:,}"), {}) for count in slots]
        if all(cells):
            lines = {column: [cell[column]["median"] for cell in cells] for column in (OURS, PLAIN)}
            more = {column: 1000 * statistics.linear_regression(slots, line).slope for column, line in lines.items()}
            rows[f"first token, {how}, more for every 1,000 slots"] = {
                **{column: cell(round(slope, 3), "ms") for column, slope in more.items()},
                f"{PLAIN} / {OURS}": ratio(more[PLAIN], more[OURS]),
            }
    few, many = map(UPDATE.format, POOLS)
    rows[f"{many} against {few}"] = against(rows, many, few)


def sizes(on: Shape) -> tuple[int, ...]:
    return on.slots // 4, on.slots // 2, on.slots, 2 * on.slots


def first_token(on: Shape, slots: int, repeats: int, longterm: int = 0, count: int = 0) -> Part:
    """With a full pool and, where it has room for any, a full long-term memory, of which so many slots are read."""
    settings: dict[str, Any] = {}
    where = f"N = {slots:,}"
    if longterm:
        settings = {"longterm": LongTermConfig(retrieved=count, capacity=longterm), "retrieval_size": KEY}
        where = f"{on.layers} layers of d {on.size:,}, {where}, M = {longterm:,}, K0 = {count:,}"
    model, stock, loose = on.model(slots, **settings).optimize_for_cpu(), on.plain(), on.model(slots, **settings)
    (memory, pool), (second, _) = on.filled(model), on.filled(model, seed=1)
    ids, text, bos, plainly = on.prompt(), on.prompt(seed=1), model.bos_embedding, None
    if longterm:
        memory, second, plainly = with_longterm(on, model, stock, pool, longterm)

    def ask(asked: Memory = memory, by: MemoryModel = model) -> float:
        start = now()
        by.generate(asked, ids, max_new_tokens=1, **GREEDY)
        return now() - start

    def other() -> float:
        ask(second)
        return ask()

    def unread() -> float:
        limit, model.prefixes.limit = model.prefixes.limit, 0
        taken = other()
        model.prefixes.limit = limit
        return taken

    def after_write() -> float:
        model.write(memory, text)
        return ask()

    def alone() -> None:
        model.hf.generate(ids[None], attention_mask=torch.ones_like(ids)[None], max_new_tokens=1, **GREEDY)

    def plain() -> Tensor:
        return reference.read(stock, bos, pool, ids, plainly, model.retriever, count)

    rows = tuple(FIRST.format(how, where) for how in READ)
    cases: Cases = {((row,), OURS): run for row, run in zip(rows, (unread, other, after_write, ask), strict=True)}
    cases[(FIRST.format(f"{READ[-1]}, not optimized", where),), OURS] = lambda: ask(by=loose)
    cases[(FIRST.format("without any memory", where),), OURS] = alone
    cases[rows, PLAIN] = lambda: plain()[-1].argmax()
    return Part(cases, repeats, lambda: agree("logits of a prompt", model.read(memory, ids).logits[0], plain()))


def with_longterm(
    on: Shape, model: MemoryModel, stock: Any, pool: Tensor, count: int
) -> tuple[Memory, Memory, reference.LongTerm]:
    """Two memories with this pool and so many long-term slots, and these as the plain path has them."""
    hidden, rows, writer = on.random(on.layers, count, on.size, seed=1), torch.arange(count), model.writer
    held = model.new_memory().longterm
    assert isinstance(writer, LearnedWriter) and held is not None
    keys = reference.retrieval_keys(stock, model.retriever, hidden)
    with torch.no_grad():
        for index, layer in enumerate(held.layers):
            slots = torch.stack(model.backbone.project(index, hidden[index]), dim=1)
            layer.append(slots, keys[index], rows, rows, Undo())
    held.clock = count
    plainly = reference.LongTerm(hidden.cpu(), keys.cpu(), (count - rows).repeat(on.layers, 1))
    return writer.memory_of(pool, 0, held), writer.memory_of(pool, 0, held.fork()), plainly


def pool_update(on: Shape, repeats: int) -> Part:
    """What a write costs behind its forward pass: 256 new slots per layer are ready, and 256 leave."""
    new, dtype = coming(on), str(on.dtype).removeprefix("torch.")
    shapes = [(on.layers, slots, MADE, on.size, on.kv_heads, on.head) for slots in POOLS]
    memories = [Memory(MemorySpec(*shape, dtype, shared_eviction=False, model="")) for shape in shapes]

    def update(memory: Memory) -> None:
        with memory.changing() as undo:
            memory.put(new, undo)

    def gate() -> Figures:
        for memory in [*memories, *memories]:  # the first write fills a pool
            update(memory)
            newest = memory.pool.keys[torch.arange(on.layers)[:, None], memory.pool.order[:, -MADE:]]
            require(torch.equal(newest, new.keys), "the newest slots of the pool are not those that were put there")
        return {}

    named = zip(map(UPDATE.format, POOLS), memories, strict=True)
    return Part({((row,), OURS): partial(update, memory) for row, memory in named}, repeats, gate)


def pool_copies(on: Shape, repeats: int) -> Part:
    new = coming(on).hidden

    def update(pool: Tensor) -> Tensor:
        slots = pool.shape[1]
        kept = torch.stack([torch.randperm(slots)[: slots - MADE].sort().values for _ in range(on.layers)])
        return reference.replace(pool, new, kept)

    pools = {((UPDATE.format(slots),), PLAIN): on.random(on.layers, slots, on.size) for slots in POOLS}
    return Part({case: partial(update, pool) for case, pool in pools.items()}, repeats)


def coming(on: Shape) -> NewSlots:
    projected = (on.layers, MADE, on.kv_heads, on.head)
    return NewSlots(on.random(on.layers, MADE, on.size), on.random(*projected), on.random(*projected), tokens=MADE)


def per_token(generate: Callable[..., Any], *read: Any, **options: Any) -> float:
    """Seconds for each token behind the first."""
    times: list[float] = []

    def clock(_: Tensor, scores: Tensor) -> Tensor:
        times.append(now())
        return scores

    generate(*read, max_new_tokens=TOKENS + 1, logits_processor=LogitsProcessorList([clock]), **GREEDY, **options)
    return (times[-1] - times[0]) / TOKENS


def next_token(on: Shape, repeats: int) -> Part:
    """The stock model reads as many entries from a static cache."""
    model, stock = on.model().optimize_for_cpu(), on.plain()
    memory, pool = on.filled(model)
    long = on.prompt(tokens=on.slots + 1 + PROMPT)[None]
    prompt, mask, most = long[0, -PROMPT:], torch.ones_like(long), long.shape[1] + TOKENS + 1

    def without() -> float:
        cache = StaticCache(config=stock.config, max_cache_len=most)
        return per_token(stock.generate, long, attention_mask=mask, past_key_values=cache, disable_compile=True)

    def gate() -> Figures:
        plain = reference.read(stock, model.bos_embedding, pool, prompt)
        return agree("logits of a prompt", model.read(memory, prompt).logits[0], plain)

    row = (f"next token, N = {on.slots:,} (right: stock model, equally long static cache)",)
    ours = partial(per_token, model.generate, memory, prompt)
    return Part({(row, PLAIN): without, (row, OURS): ours}, repeats, gate)


def batch(on: Shape, repeats: int) -> Part:
    """Eight memories in one call against eight calls, and how far the rows differ."""
    model = on.model().optimize_for_cpu()
    memories = [on.filled(model, seed)[0] for seed in range(MEMORIES)]
    ids = torch.stack([on.prompt(seed) for seed in range(MEMORIES)])
    options = {"max_new_tokens": ANSWER, "return_dict_in_generate": True, "output_logits": True, **GREEDY}

    def together() -> Any:
        return model.generate(memories, ids, **options)

    def one_by_one() -> list[Any]:
        return [model.generate(memory, row, **options) for memory, row in zip(memories, ids, strict=True)]

    def gate() -> Figures:
        joined, alone = together(), one_by_one()
        mine, plain = torch.stack(joined.logits, 1), torch.cat([torch.stack(out.logits, 1) for out in alone])
        first = agree("first logits of rows in a batch and alone", mine[:, 0], plain[:, 0])
        same = torch.equal(joined.sequences, torch.cat([out.sequences for out in alone]))
        return {"first_token": first, "max_logit_difference": float((mine - plain).abs().max()), "same_tokens": same}

    row = (f"{MEMORIES} memories, {ANSWER} tokens each (right: one call per memory)",)
    return Part({(row, OURS): together, (row, PLAIN): one_by_one}, repeats, gate)


def slot_bytes(on: Shape) -> Part:
    """Growth of a pool with N, everything counted that grows with it."""
    held, few, many = {}, on.slots // 4, 2 * on.slots
    for slots in (few, many):
        memory, _ = on.filled(on.model(slots))
        held[slots] = memory.pool.nbytes + memory.pool.order.nbytes
    grown = (held[many] - held[few]) / (many - few) / on.layers
    numbers, hidden = 2 * on.kv_heads * on.head * on.dtype.itemsize, on.size * on.dtype.itemsize

    def gate() -> Figures:
        require(numbers <= grown <= 2 * numbers, f"a slot takes {grown} bytes, and its key and value {numbers}")
        newest = 0 if memory.newest is None else memory.newest.nbytes
        return {"key_and_value_bytes": numbers, "over": round(grown / numbers - 1, 4), "newest_hidden_bytes": newest}

    cells = {OURS: round(grown), PLAIN: hidden, f"{PLAIN} / {OURS}": ratio(hidden, grown)}
    return Part(gate=gate, rows={"bytes per slot and layer (right: as a hidden state)": cells})
