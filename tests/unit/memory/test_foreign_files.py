"""Files that were made or changed by another program, with digests that fit: refused by name, whatever is wrong."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from remanence.config import StorageConfig
from remanence.errors import CorruptMemoryError, MemoryFileError
from remanence.memory import Memory
from tests.support.damage import rewrite
from tests.support.kinds import KINDS, blocks, on_disk
from tests.support.longterms import use_small_blocks

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    use_small_blocks(monkeypatch)

    def saved(kind: str) -> Path:
        KINDS[kind]().save(tmp_path / "m.safetensors")
        return tmp_path / "m.safetensors"

    return saved


def refused(target: Path, storages: tuple[StorageConfig | None, ...] = (None,)) -> None:
    before = on_disk(target)
    for storage in storages:
        with pytest.raises(MemoryFileError, match=f"{target}.* is truncated, damaged.*older copy"):
            Memory.load(target, storage=storage)
    assert on_disk(target) == before


def header(*path: str | int, value: Any) -> Change:
    """Set what stands under a path of names in the header."""

    def change(content: dict[str, Any]) -> None:
        place: Any = content["header"]
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value

    return change


def without(*path: str | int) -> Change:
    def change(content: dict[str, Any]) -> None:
        place: Any = content
        for name in path[:-1]:
            place = place[name]
        del place[path[-1]]

    return change


def swapped(first: str, second: str) -> Change:
    """Two blocks in each other's place."""

    def change(content: dict[str, Any]) -> None:
        held = content["blocks"]
        held[first], held[second] = held[second], held[first]

    return change


def block(name: str, **changes: Any) -> Change:
    return lambda content: content["blocks"][name].update(changes)


FIRST, LAST = "layer-000-block-000000", "layer-000-block-000001"
WRONG: dict[str, tuple[str, Change]] = {
    "no digest of a tensor": ("pool", without("tensors", "pool.keys")),
    "another format": ("pool", lambda content: content.update(format="remanence-memory-3")),
    "no spec": ("pool", without("header", "spec")),
    "an unknown dtype": ("pool", header("spec", "dtype", value="int64")),
    "a size that does not divide": ("pool", header("spec", "slots", value=130)),
    "another dtype than the slots have": ("pool", header("spec", "dtype", value="bfloat16")),
    "fewer slots than there should be": ("pool", header("spec", "slots", value=256)),
    "no heads": ("pool", header("spec", "kv_heads", value=0)),
    "a fraction of a layer": ("pool", header("spec", "layers", value=2.0)),
    "another writer": ("pool", header("spec", "writer", value="text")),
    "a part of a record": ("pool", header("writes", value=[{"id": 3}])),
    "a slot that was never made": ("pool", header("writes", 6, "first_serial", value=10**6)),
    "writes in disorder": ("pool", header("writes", 6, "id", value=2)),
    "a time that is none": ("pool", header("writes", 6, "time", value="yesterday")),
    "tokens without number": ("pool", header("writes", 6, "tokens", value=math.nan)),
    "no count": ("pool", without("header", "write_count")),
    "infinitely many writes": ("pool", header("write_count", value=math.inf)),
    "a count in letters": ("pool", header("write_count", value="7")),
    "fewer writes than are listed": ("pool", header("write_count", value=2)),
    "a serial number that was given already": ("pool", header("next_serial", value=20)),
    "an answer that is neither yes nor no": ("pool", header("keep_hidden", value="no")),
    "hidden states that are not there": ("pool", header("keep_hidden", value=True)),
    "a setting that no version has": ("pool", header("wisdom", value=1)),
    "more slots than the last block has rows": ("long-term, host", header("longterm", "layers", 0, "count", value=400)),
    "more slots than there are blocks": ("long-term, host", header("longterm", "layers", 0, "count", value=640)),
    "fewer slots than rows": ("long-term, host", header("longterm", "layers", 0, "count", value=300)),
    "more slots than can be": ("long-term, host", header("longterm", "layers", 0, "count", value=2**62)),
    "a start behind the end": ("long-term, host", header("longterm", "layers", 0, "start", value=385)),
    "a negative start": ("long-term, host", header("longterm", "layers", 0, "start", value=-1)),
    "one layer": ("long-term, host", without("header", "longterm", "layers", 0)),
    "no clock": ("long-term, host", without("header", "longterm", "clock")),
    "a clock that ran backwards": ("long-term, host", header("longterm", "clock", value=-1)),
    "blocks of another size": ("long-term, host", header("longterm", "rows", value=512)),
    "another tier": ("long-term, host", header("longterm", "storage", "tier", value="tape")),
    "int8 slots that are none": ("long-term, host", header("longterm", "storage", "int8", value=True)),
    "a folder that is a number": ("long-term, host", header("longterm", "storage", "folder", value=5)),
    "a capacity without end": ("long-term, host", header("longterm", "rules", "capacity", value=math.inf)),
    "no last block": ("long-term, host", without("blocks", LAST)),
    "blocks of one layer interchanged": ("long-term, host", swapped(FIRST, LAST)),
    "a digest that is none": ("long-term, host", block(FIRST, digest=5)),
    "a block with more to say": ("long-term, host", block(FIRST, rows=256)),
    "a decay without a number": ("published", header("longterm", "frequency", "settings", "decay", value=math.nan)),
    "a frequency in letters": ("published", header("longterm", "frequency", "settings", "initial", value="10")),
    "a buffer that ends behind the end": ("published", header("longterm", "frequency", "merged", value=[385, 385])),
    "a buffer of one layer": ("published", header("longterm", "frequency", "merged", value=[384])),
    "no chunks": ("text", header("chunks", value=None)),
    "chunks in disorder": ("text", header("chunks", "items", 3, "key", value=1)),
    "a chunk that is still to come": ("text", header("chunks", "next_key", value=9)),
    "a chunk of another length": ("text", header("chunks", "items", 3, "tokens", value=4)),
    "a chunk of no write": ("text", header("chunks", "items", 13, "write", value=60)),
    "one chunk less": ("text", without("header", "chunks", "items", 0)),
    "a head of letters": ("text", header("chunks", "head", value=["a"])),
    "slots of another shape": ("text, host", header("spec", "kv_heads", value=4)),
    "no slots": ("text, host", lambda content: content["blocks"].clear()),
    "int8 where there are no slots": ("text", header("chunks", "storage", "int8", value=True)),
}


@pytest.mark.parametrize("name", WRONG)
def test_load_refuses_what_does_not_fit_together(save: Callable[[str], Path], name: str) -> None:
    kind, change = WRONG[name]
    target = save(kind)
    rewrite(target, lambda content: None)
    Memory.load(target)
    rewrite(target, change)
    refused(target, (None,) if kind == "text" else (None, StorageConfig("disk"), StorageConfig("host", int8=True)))


TENSORS: list[tuple[str, str, Tensor | None]] = [
    ("pool", "pool.keys", None),
    ("pool", "pool.serial", None),
    ("pool", "generator", None),
    ("pool", "newest", None),
    ("pool", "pool.values", torch.zeros(2, 127, 2, 4)),
    ("pool", "pool.keys", torch.zeros(2, 128, 2, 4).half()),
    ("pool", "pool.serial", torch.zeros(2, 128).long()),
    ("pool", "pool.colour", torch.zeros(2, 128)),
    ("pool", "generator", torch.zeros(3, dtype=torch.uint8)),
    ("long-term, host", "pool.retrieval", None),
    ("long-term, host", "pool.ages", torch.zeros(2, 128)),
    ("published", "longterm.frequency.1", None),
    ("published", "longterm.frequency.1", torch.full((383,), 10.0)),
    ("published", "longterm.frequency.1", torch.full((384, 1), 10.0)),
    ("published", "longterm.frequency.1", torch.full((384,), math.nan)),
    ("text", "chunks.latents", None),
    ("text", "chunks.latents", torch.zeros(13, 6).half()),
    ("text", "chunks.latents", torch.full((14, 6), math.nan).half()),
    ("text", "chunks.ids", None),
    ("text", "chunks.ids", torch.zeros(55).int()),
]


@pytest.mark.parametrize(("kind", "name", "tensor"), TENSORS)
def test_load_refuses_tensors_that_do_not_fit(
    save: Callable[[str], Path], kind: str, name: str, tensor: Tensor | None
) -> None:
    target = save(kind)
    rewrite(target, lambda content: None, {name: tensor})
    refused(target)


@pytest.mark.parametrize("name", ["pool.keys", "pool.values", "newest", "pool.retrieval"])
def test_load_refuses_numbers_that_are_not_finite(save: Callable[[str], Path], name: str) -> None:
    target = save("long-term, host")
    before = Memory.load(target).state().tensors[name].clone()
    before.view(-1)[5] = math.nan
    rewrite(target, lambda content: None, {name: before})
    with pytest.raises(CorruptMemoryError, match=f"{target}.*not finite"):
        Memory.load(target)


@pytest.mark.parametrize("name", ["../m.safetensors", "/etc/passwd", "gone.safetensors", ""])
def test_load_looks_for_blocks_in_the_folder_alone(save: Callable[[str], Path], name: str) -> None:
    target = save("long-term, host")
    rewrite(target, block(FIRST, file=name))
    with pytest.raises(MemoryFileError, match=r"is missing; nothing was changed.*copy or move both"):
        Memory.load(target)


@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, 2), (1, 3)])
def test_load_refuses_blocks_whose_files_were_interchanged(
    save: Callable[[str], Path], first: int, second: int
) -> None:
    target = save("long-term, host")
    one, other = blocks(target)[first], blocks(target)[second]
    one.rename(target.with_name("aside"))
    other.rename(one)
    target.with_name("aside").rename(other)
    with pytest.raises(MemoryFileError, match="was cut or changed since it was saved"):
        Memory.load(target)


@pytest.mark.parametrize("which", range(4))
def test_load_names_a_block_that_is_missing(save: Callable[[str], Path], which: int) -> None:
    target = save("long-term, host")
    blocks(target)[which].unlink()
    with pytest.raises(MemoryFileError, match=r"longterm/layer.*is missing.*copy or move both"):
        Memory.load(target)


def test_load_refuses_a_safetensors_file_that_is_no_memory(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "m")
    with pytest.raises(MemoryFileError, match=r"not one that Memory.save made"):
        Memory.load(tmp_path / "m")


def test_from_state_refuses_what_does_not_fit_together(save: Callable[[str], Path]) -> None:
    state = Memory.load(save("pool")).state()
    tensors = dict(state.tensors)
    del tensors["newest"]
    with pytest.raises(MemoryFileError, match="does not fit together"):
        Memory.from_state(type(state)(state.header, tensors, state.blocks))
