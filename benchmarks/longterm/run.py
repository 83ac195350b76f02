"""How long-term memory scales, against the plain path that does what the published code does.

Slots of a random Llama (d 512, 8 layers, 8 heads, 2 key/value heads; float32 unless --dtype says otherwise) with
retrieval keys of 256 numbers, two threads; the first token also with two layers of the published size. Both decoders
compute by the same kernels. Files of the disk tier are in the system's cache when they are read. Takes about 20 GB of
memory and, for a while, 4 GB of disk in --folder. `--shape tiny --scale 0.001` tries it out.
"""

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from processes import apart, settled
from read_write.run import KEY, first_token
from remanence.config import LongTermConfig, StorageConfig
from remanence.memory.longterm import Evicted, LongTerm, LongTermLayer
from remanence.memory.scoring import best
from remanence.memory.storage import Layout
from remanence.memory.undo import Undo
from remanence.model import reference
from shapes import SHAPES, Shape, Shaped
from tables import Figures, Rows, cell
from timing import OURS, PLAIN, Cases, Part, Parts, against, ratio, require

NOTE = "Random slots and a random Llama of the shape `{shape}`, {dtype}."
TOKENS = 64  # of a prompt, where one layer is scored
RETRIEVED = 2560  # K0, where one layer is measured
MADE = 256  # slots per write, where appending is measured
CHUNK, LAYERS = 1024, 4
APPEND = f"append {MADE} slots to one layer, {{}}, M = {{:,}}"  # row


@dataclass(frozen=True)
class Settings(Shaped):
    folder: Path = field(default=Path(tempfile.gettempdir()), metadata={"help": "of the disk tier"})
    scale: float = field(default=1.0, metadata={"help": "of all numbers of long-term slots"})

    def size(self, slots: int) -> int:
        return max(1, round(slots * self.scale))

    @property
    def tiers(self) -> dict[str, StorageConfig]:
        return {
            "device": StorageConfig("device"),
            "host": StorageConfig("host"),
            "disk": StorageConfig("disk", folder=self.folder),
        }


def parts(options: Settings) -> Parts:
    on, size, repeats, count = options.on, options.size, options.repeats, options.size(RETRIEVED)
    published = replace(SHAPES["8b"], layers=2, slots=10_240, vocabulary=32_000, device=on.device, dtype=on.dtype)
    made: dict[str, Callable[[], Part]] = {}
    for slots in map(size, (10_000, 150_000, 1_000_000)):
        made[f"scores, M = {slots:,}"] = partial(scoring, on, slots, count, repeats)
    made |= {f"append, {tier}": partial(append, options, tier) for tier in ("host", "disk")}
    made["append, plain path"] = partial(append_plainly, options)
    made["gather"] = partial(gather, options, size(150_000), count)
    for slots in map(size, (20_000, 150_000)):
        made[f"first token, M = {slots:,}"] = partial(first_token, on, on.slots, repeats, slots, size(480))
    if options.shape == "small":  # a shape of its own: two layers of Llama-3.1-8B and the pool of M+ (section 4.1)
        read = partial(first_token, published, published.slots, options.few)
        made["first token, published size"] = partial(read, size(150_000), count)
    made["disk tier"] = partial(resident, options)
    return made


def finish(options: Settings, rows: Rows) -> None:
    few, many = map(options.size, (10_000, 1_000_000))
    for tier in ("host", "disk"):
        for name, kind in (("median", "median"), ("mean, making room included", "mean")):
            cells = against(rows, APPEND.format(tier, many), APPEND.format(tier, few), kind)
            rows[f"append, {tier}, M = {many:,} against M = {few:,}, {name}"] = cells


def layout_of(on: Shape, storage: StorageConfig) -> Layout:
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


def scoring(on: Shape, slots: int, count: int, repeats: int) -> Part:
    """One layer: scores of all slots, the best K0, and their order."""
    layer, queries = filled(layout_of(on, StorageConfig()), slots), on.random(TOKENS, KEY, seed=1) / KEY**0.5
    keys, ages = keys_of(layer), slots - torch.arange(slots)

    def fast() -> Tensor:
        return layer.by_age(best(layer.scores(queries), count))

    def plain() -> Tensor:
        return reference.retrieve(queries, keys, ages, count)

    def gate() -> Figures:
        mine, theirs = fast(), plain().cpu()
        same = int(torch.isin(mine, theirs).sum())
        require(same >= 0.99 * count, f"of {count} slots the two find {same} alike")
        return {"same_slots": same, "same_order": torch.equal(mine, theirs)}

    moved = {OURS: count * layer.layout.slot_bytes, PLAIN: (slots * KEY + count * on.size) * on.dtype.itemsize}
    travels: Figures = {column: cell(held, "bytes") for column, held in moved.items()}
    travels[f"{PLAIN} / {OURS}"] = ratio(moved[PLAIN], moved[OURS])
    row, rows = (f"score one layer, M = {slots:,}",), {f"to the device at a prompt, one layer, M = {slots:,}": travels}
    return Part({(row, OURS): fast, (row, PLAIN): plain}, repeats, gate, rows)


def evicted(on: Shape) -> Evicted:
    shape, counts = (1, MADE, on.kv_heads, on.head), torch.arange(MADE)[None]
    return Evicted(on.random(*shape), on.random(*shape), on.random(1, MADE, KEY), counts.flip(1), counts)


def append(options: Settings, tier: str) -> Part:
    """One layer, full: 256 slots more come, the oldest 256 go."""
    on, new = options.on, evicted(options.on)
    layout = layout_of(on, options.tiers[tier])
    held = {}
    for slots in map(options.size, (10_000, 1_000_000)):
        rules = LongTermConfig(retrieved=options.size(RETRIEVED), capacity=slots)
        held[slots] = LongTerm(rules, [filled(layout, slots)], clock=slots)

    def add(longterm: LongTerm) -> None:
        longterm.append(new, MADE, Undo())

    def gate() -> Figures:
        for longterm in held.values():
            add(longterm)
            newest = longterm.layers[0].take(torch.arange(-MADE, 0) + longterm.layers[0].count)[0]
            require(torch.equal(newest, new.keys[0]), "the newest slots are not those that were appended")
        return {}

    # An append costs more where its block has to grow. Whole blocks are filled, so that it evens out.
    block = layout.block_rows // MADE
    cases: Cases = {((APPEND.format(tier, slots),), OURS): partial(add, longterm) for slots, longterm in held.items()}
    return Part(cases, -(-4 * options.repeats // block) * block, gate)


def append_plainly(options: Settings) -> Part:
    """The plain path keeps all, as hidden states."""
    on, new = options.on, evicted(options.on)
    cases: Cases = {}
    more = reference.LongTerm(on.random(1, MADE, on.size), new.retrieval, new.ages)
    for slots in map(options.size, (10_000, 1_000_000)):
        hidden, keys = (torch.ones(1, slots, size, dtype=on.dtype) for size in (on.size, KEY))
        held = reference.LongTerm(hidden, keys, torch.arange(slots)[None])
        rows = tuple(APPEND.format(tier, slots) for tier in ("host", "disk"))
        cases[rows, PLAIN] = partial(reference.append, held, more, MADE)
    return Part(cases, max(3, options.repeats // 5))


def gather(options: Settings, slots: int, count: int) -> Part:
    """K0 slots of one layer, other ones every time."""
    on, random = options.on, torch.Generator().manual_seed(1)
    places = [torch.randperm(slots, generator=random)[:count] for _ in range(options.repeats + 2)]
    layers = {tier: filled(layout_of(on, storage), slots) for tier, storage in options.tiers.items()}
    hidden = torch.ones(slots, on.size, dtype=on.dtype)

    def gate() -> Figures:
        taken = [torch.stack(layer.take(places[0])) for layer in layers.values()]
        require(all(torch.equal(taken[0], other) for other in taken[1:]), "tiers give other slots")
        return {"same_bits": True}

    def taking(take: Callable[[Tensor], object]) -> Callable[[], object]:
        turn = itertools.cycle(places)
        return lambda: take(next(turn))

    rows = tuple(f"gather {count:,} of {slots:,} slots of one layer, {tier}" for tier in layers)
    named = zip(rows, layers.values(), strict=True)
    cases: Cases = {((row,), OURS): taking(layer.take) for row, layer in named}
    cases[rows, PLAIN] = taking(lambda chosen: hidden[chosen].to(on.device))
    return Part(cases, options.repeats, gate)


def resident(options: Settings) -> Part:
    """The disk tier, with the shape of the bundled checkpoint: what stays in memory beside keys and bookkeeping."""
    size, count = options.size(1_000_000), options.size(RETRIEVED)
    held = apart(resident_in_process, size, count, options.folder)
    name = f"disk tier, {LAYERS} layers of {size:,} slots: "
    rows = {name + what: {OURS: cell(count, "bytes")} for what, count in held.items()}
    return Part(gate=lambda: {"disk_and_host_same_bits": True}, rows=rows)


def resident_in_process(slots: int, count: int, folder: Path) -> dict[str, int]:
    storages = StorageConfig("disk", folder=folder), StorageConfig("host")
    disk, host = (Layout(4, 32, torch.float32, 64, torch.device("cpu"), storage) for storage in storages)
    places = torch.randperm(slots, generator=torch.Generator().manual_seed(0))[:count]

    filled(disk, CHUNK).take(places % CHUNK)  # what torch loads at first use
    before = settled()
    on_disk = [filled(disk, slots) for _ in range(LAYERS)]
    after = settled()
    taken = [torch.stack(layer.take(places)) for layer in on_disk]
    gathered, rows = settled() - sum(slots.nbytes for slots in taken), LAYERS * slots
    keys, bookkeeping = rows * disk.key_size * disk.dtype.itemsize, rows * 2 * torch.int64.itemsize
    in_host = torch.stack(filled(host, slots).take(places))
    require(all(torch.equal(part, in_host) for part in taken), "disk and host give other slots")
    return {
        "on disk": rows * disk.slot_bytes,
        "resident memory grew by": after - before,
        "of it retrieval keys": keys,
        "of it bookkeeping": bookkeeping,
        "of it anything else": after - before - keys - bookkeeping,
        "anything else after gathers": gathered - before - keys - bookkeeping,
    }
