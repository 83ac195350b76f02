"""How long-term memory scales, against the plain path that does what the published code does.

    python benchmarks/longterm/run.py --json benchmarks/longterm/results.json

Everything is measured in one run, with two threads, on slots of a random Llama (d 512, 8 layers, 8 heads, 2 key/value
heads; float32 unless --dtype says otherwise) with retrieval keys of 256 numbers; the first token also with two layers
of the published size. Both decoders compute by the same kernels. What is compared is measured in turns, A B A B, so
that a machine that is busy for a while slows both alike. Takes about 20 GB of memory and, for a while, 4 GB of disk in
--folder.
"""

import ctypes
import gc
import itertools
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import psutil
import torch
from torch import Tensor

from remanence import Memory
from remanence.config import LongTermConfig, StorageConfig
from remanence.kernels.optimize import optimize_for_cpu
from remanence.memory.longterm import Evicted, LongTerm, LongTermLayer
from remanence.memory.scoring import best
from remanence.memory.storage import Layout
from remanence.memory.undo import Undo
from remanence.model import reference
from remanence.model.learned import LearnedWriter

sys.path.insert(0, str(Path(__file__).parent.parent))

from measure import (
    GREEDY,
    PROMPT,
    SETTINGS,
    THREADS,
    Figures,
    Setting,
    compared,
    in_turns,
    parser,
    report,
    setting,
    summary,
)

KEY = 256  # numbers in a retrieval key
TOKENS = 64  # of a prompt, where one layer is scored
RETRIEVED = 2560  # K0, where one layer is measured
MADE = 256  # slots per write, where appending is measured
CHUNK = 1024

Size = Callable[[int], int]  # a number of slots, scaled by --scale


def layout_of(on: Setting, storage: StorageConfig) -> Layout:
    return Layout(on.kv_heads, on.head, on.dtype, KEY, torch.device(on.device), storage)


def filled(layout: Layout, slots: int) -> LongTermLayer:
    """One layer with so many random slots, born one after another; the same ones in every tier."""
    layer, random = LongTermLayer(layout), torch.Generator().manual_seed(0)
    for start in range(0, slots, CHUNK):
        rows = torch.arange(start, min(slots, start + CHUNK))
        made = torch.randn(len(rows), 2, layout.heads, layout.head_dim, generator=random).to(layout.dtype)
        keys = torch.randn(len(rows), layout.key_size, generator=random).to(layout.dtype)
        layer.append(made, keys, rows, rows, Undo())
    return layer


def keys_of(layer: LongTermLayer) -> Tensor:  # [M, P], where the plain path has them: in host memory, in one piece
    size = layer.layout.block_rows
    parts = [block.rows["keys"].first(min(size, layer.count - number * size)) for number, block in layer.blocks.items()]
    return torch.cat(parts).cpu()


def fits(needed: float) -> bool:
    gc.collect()
    return needed < 0.9 * psutil.virtual_memory().available


def scoring(on: Setting, size: Size, repeats: int) -> Figures:
    """One layer: scores of all slots, the best K0, and their order."""
    layout, count = layout_of(on, StorageConfig()), size(RETRIEVED)
    key_bytes, hidden_bytes = KEY * on.dtype.itemsize, on.size * on.dtype.itemsize
    rows, left_out = [], []
    for slots in (size(10_000), size(150_000), size(1_000_000)):
        if not fits(slots * (layout.slot_bytes + 3 * key_bytes + 2 * TOKENS * on.dtype.itemsize)):
            left_out.append(slots)
            continue
        layer, queries = filled(layout, slots), on.random(TOKENS, KEY, seed=1) / KEY**0.5
        keys, ages = keys_of(layer), slots - torch.arange(slots)

        def chosen(layer: LongTermLayer = layer, queries: Tensor = queries) -> Tensor:
            return layer.by_age(best(layer.scores(queries), count))

        def fast(chosen: Callable[[], Tensor] = chosen) -> None:
            chosen()

        def plain(queries: Tensor = queries, keys: Tensor = keys, ages: Tensor = ages) -> None:
            reference.retrieve(queries, keys, ages, count)

        mine, theirs = chosen(), reference.retrieve(queries, keys, ages, count)
        moved = {"remanence": count * layout.slot_bytes, "reference": slots * key_bytes + count * hidden_bytes}
        rows.append(
            {
                "slots": slots,
                **compared(in_turns(repeats, remanence=fast, reference=plain)),
                "same_slots": int(torch.isin(mine, theirs).sum()),
                "same_order": torch.equal(mine, theirs.cpu()),
                "bytes_to_device": moved,
            }
        )
        del layer, keys, ages, chosen, fast, plain
    about = {"prompt_tokens": TOKENS, "retrieved": count, "key_size": KEY}
    return {**about, "by_slots": rows, "left_out_for_want_of_memory": left_out}


def append(on: Setting, size: Size, repeats: int, folder: Path) -> Figures:
    """One layer, full: 256 slots more come, the oldest 256 go. The plain path keeps them all, as hidden states."""
    few, many = size(10_000), size(1_000_000)
    shape = (1, MADE, on.kv_heads, on.head)
    counts = torch.arange(MADE)[None]
    evicted = Evicted(on.random(*shape), on.random(*shape), on.random(1, MADE, KEY), counts.flip(1), counts)

    def fast(slots: int, storage: StorageConfig) -> Callable[[], None]:
        rules = LongTermConfig(retrieved=size(RETRIEVED), capacity=slots)
        longterm = LongTerm(rules, [filled(layout_of(on, storage), slots)], clock=slots)

        def add() -> None:
            longterm.append(evicted, MADE, Undo())

        return add

    def plain(slots: int) -> Callable[[], None]:
        hidden, keys = (torch.ones(1, slots, size, dtype=on.dtype) for size in (on.size, KEY))
        held = reference.LongTerm(hidden, keys, torch.arange(slots)[None])
        new = reference.LongTerm(on.random(1, MADE, on.size), evicted.retrieval, evicted.ages)
        return lambda: void(reference.append(held, new, MADE))

    figures: Figures = {"slots": [few, many], "slots_per_write": MADE}
    for storage in (StorageConfig("host"), StorageConfig("disk", folder=folder)):
        # An append costs more where its block has to grow. Whole blocks are filled, so that it evens out.
        block = layout_of(on, storage).block_rows // MADE
        seconds = in_turns(-(-4 * repeats // block) * block, few=fast(few, storage), many=fast(many, storage))
        means = {name: 1e3 * statistics.mean(taken) for name, taken in seconds.items()}
        figures[storage.tier] = compared(seconds) | {
            "mean_ms": {name: round(mean, 4) for name, mean in means.items()},
            "mean_ratio": round(means["many"] / means["few"], 3),
        }
    if fits(2.1 * many * (on.size + KEY) * on.dtype.itemsize):
        figures["reference"] = compared(in_turns(max(3, repeats // 5), few=plain(few), many=plain(many)))
    return figures


def void(_: object) -> None:
    """Let go of a result, inside the time that is taken."""


def gather(on: Setting, size: Size, repeats: int, folder: Path) -> Figures:
    """K0 slots of one layer, other ones every time. What lies on disk is in the system's cache of files by then."""
    slots, count = size(150_000), size(RETRIEVED)
    random = torch.Generator().manual_seed(1)
    places = [torch.randperm(slots, generator=random)[:count] for _ in range(repeats + 2)]
    storages = {
        "device": StorageConfig("device"),
        "host": StorageConfig("host"),
        "disk": StorageConfig("disk", folder=folder),
    }
    layers = {tier: filled(layout_of(on, storage), slots) for tier, storage in storages.items()}

    def taking(layer: LongTermLayer) -> Callable[[], None]:
        turn = itertools.cycle(places)
        return lambda: void(layer.take(next(turn)))

    def plain() -> Callable[[], None]:
        hidden, turn = torch.ones(slots, on.size, dtype=on.dtype), itertools.cycle(places)
        return lambda: void(hidden[next(turn)].to(on.device))

    seconds = in_turns(repeats, **{tier: taking(layer) for tier, layer in layers.items()}, reference=plain())
    taken = [torch.stack(layer.take(places[0])) for layer in layers.values()]
    return {
        "slots": slots,
        "retrieved": count,
        **{name: summary(times) for name, times in seconds.items()},
        "same_bits": all(torch.equal(taken[0], other) for other in taken[1:]),
    }


def first_token(on: Setting, slots: int, count: int, repeats: int) -> Figures:
    """From prompt to first token, with full pool and full long-term memory, prefix included.

    "remanence" prompts two memories in turns, and keeps one prefix only, so that it finds none of the prompt before;
    "again" finds one.
    """
    rules = LongTermConfig(retrieved=count, capacity=slots)
    model, stock = on.model(longterm=rules, retrieval_size=KEY).optimize_for_cpu(), on.decoder()
    optimize_for_cpu(stock)
    model.prefixes.limit = 0
    retriever, bos = model.retriever, model.bos_embedding
    assert retriever is not None and isinstance(model.writer, LearnedWriter)
    pool, hidden = (on.random(on.layers, n, on.size, seed=seed) for seed, n in enumerate((on.slots, slots)))
    held = fill(
        model.new_memory(), model.backbone.project, keys := reference.retrieval_keys(stock, retriever, hidden), hidden
    )
    memories = [model.writer.memory_of(pool, 0, longterm) for longterm in (held, held.fork(), held.fork())]
    ages = (slots - torch.arange(slots)).repeat(on.layers, 1)
    plainly = reference.LongTerm(hidden.cpu(), keys.cpu(), ages)
    ids, turn = on.prompt(), itertools.cycle(memories[:2])

    def fast() -> None:
        model.generate(next(turn), ids, max_new_tokens=1, **GREEDY)

    def again() -> None:
        model.generate(memories[2], ids, max_new_tokens=1, **GREEDY)

    def plain() -> None:
        reference.read(stock, bos, pool, ids, plainly, retriever, count)[-1].argmax()

    seconds = in_turns(repeats, remanence=fast, reference=plain)
    logits = model.read(memories[0], ids).logits[0]
    apart = (logits - reference.read(stock, bos, pool, ids, plainly, retriever, count)).abs().max()
    return {
        "prompt_tokens": PROMPT,
        "layers": on.layers,
        "size": on.size,
        "slots": on.slots,
        "longterm_slots": slots,
        "retrieved": count,
        **compared(seconds),
        "again": summary(in_turns(repeats, again=again)["again"]),
        "max_logit_difference": float(apart),
    }


def published(on: Setting) -> Setting:
    """Two of the 32 layers of Llama-3.1-8B and the pool of M+ (section 4.1), with a fourth of the vocabulary."""
    return replace(SETTINGS["8b"], layers=2, slots=10_240, vocabulary=32_000, device=on.device, dtype=on.dtype)


def fill(
    memory: Memory, project: Callable[[int, Tensor], tuple[Tensor, Tensor]], keys: Tensor, hidden: Tensor
) -> LongTerm:
    """The long-term memory of a new memory, with these slots in it, `[L, M, d]` and keys `[L, M, P]`."""
    longterm, rows = memory.longterm, torch.arange(hidden.shape[1])
    assert longterm is not None
    with torch.no_grad():
        for index, layer in enumerate(longterm.layers):
            layer.append(torch.stack(project(index, hidden[index]), dim=1), keys[index], rows, rows, Undo())
    longterm.clock = len(rows)
    return longterm


def resident(size: Size, folder: Path) -> Figures:
    """The disk tier, with the shape of the bundled checkpoint: what stays in memory beside keys and bookkeeping."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as own:
        return own.submit(resident_in_process, size(1_000_000), size(RETRIEVED), folder).result()


def resident_in_process(slots: int, count: int, folder: Path) -> Figures:
    torch.set_num_threads(THREADS)
    layers, random = 4, torch.Generator().manual_seed(0)
    storages = {"disk": StorageConfig("disk", folder=folder), "host": StorageConfig("host")}
    disk, host = (Layout(4, 32, torch.float32, 64, torch.device("cpu"), storage) for storage in storages.values())
    places = torch.randperm(slots, generator=random)[:count]

    def held() -> int:
        """What is resident and in use: what the allocator keeps for later is given back first, where it can be."""
        gc.collect()
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
        return int(psutil.Process().memory_info().rss)

    filled(disk, CHUNK).take(places % CHUNK)  # what torch loads at first use
    before = held()
    on_disk = [filled(disk, slots) for _ in range(layers)]
    after = held()
    taken = [torch.stack(layer.take(places)) for layer in on_disk]
    gathered = held() - sum(slots.nbytes for slots in taken)
    rows = layers * slots
    named = {
        "retrieval_keys": rows * disk.key_size * disk.dtype.itemsize,
        "bookkeeping": rows * 2 * torch.int64.itemsize,
    }
    in_host = torch.stack(filled(host, slots).take(places))
    return {
        "layers": layers,
        "slots": slots,
        "slot_bytes_on_disk": rows * disk.slot_bytes,
        "growth_bytes": after - before,
        **{f"{name}_bytes": counted for name, counted in named.items()},
        "beside_bytes": after - before - sum(named.values()),
        "beside_after_gathers_bytes": gathered - before - sum(named.values()),
        "folder": os.fspath(folder),
        "disk_and_host_same_bits": all(torch.equal(part, in_host) for part in taken),
    }


def main(arguments: list[str] | None = None) -> None:
    named = parser(__doc__)
    named.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="of the disk tier")
    named.add_argument("--scale", type=float, default=1.0, help="scale all numbers of long-term slots, to try this out")
    options = named.parse_args(arguments)
    on, repeats, folder = setting(options), options.repeats, options.folder

    def size(slots: int) -> int:
        return max(1, round(slots * options.scale))

    parts: dict[str, Callable[[], Figures]] = {
        "scoring": lambda: scoring(on, size, repeats),
        "append": lambda: append(on, size, repeats, folder),
        "gather": lambda: gather(on, size, repeats, folder),
        "first_token": lambda: first_token(on, size(20_000), size(480), repeats),
        "first_token_full": lambda: first_token(on, size(150_000), size(480), repeats),
        "resident": lambda: resident(size, folder),
    }
    if options.shape == "small":  # a shape of its own, and too large to try out another with
        parts["first_token_published"] = lambda: first_token(
            published(on), size(150_000), size(RETRIEVED), max(5, repeats // 3)
        )
    report(on, parts, options.json)


if __name__ == "__main__":
    main()
