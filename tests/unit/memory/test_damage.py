"""A main file that does not fit its long-term slots is refused by name, whatever is wrong with it."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from remanence.memory.saving import folder_of
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from remanence import Memory
from remanence.errors import MemoryFileError
from remanence.memory import LongTermRules, Storage
from tests.support.longterms import use_small_blocks, written

RECALL = LongTermRules(retrieved=7, policy="recall_frequency", merge_after=128)
Damage = Callable[[dict[str, Any]], object]


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """384 slots in each of two layers: a full block and half of another."""
    use_small_blocks(monkeypatch)
    written(7).save(tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def refused(target: Path, says: str) -> None:
    before = {file: file.read_bytes() for file in target.parent.rglob("*") if file.is_file()}
    for storage in (None, Storage("disk"), Storage("host", int8=True)):
        with pytest.raises(MemoryFileError, match=f"{target}.*{says}"):
            Memory.load(target, storage=storage)
    assert {file: file.read_bytes() for file in target.parent.rglob("*") if file.is_file()} == before


def damage(
    target: Path, change: Damage, tensors: dict[str, Tensor] | None = None, old: str = "", new: str = ""
) -> None:
    """Change the record of long-term memory, then add tensors and replace text."""
    with safe_open(target, framework="pt") as file:
        metadata = file.metadata()
    about = json.loads(metadata["memory"])
    change(about["longterm"])
    metadata["memory"] = json.dumps(about).replace(old, new, 1)
    save_file(load_file(target) | (tensors or {}), target, metadata=metadata)


def layer(**changes: Any) -> Damage:
    return lambda about: about["layers"][0].update(changes)


def block(at: int, /, **changes: Any) -> Damage:
    return lambda about: about["layers"][0]["blocks"][at].update(changes)


def swap(first: tuple[int, int], second: tuple[int, int], *names: str) -> Damage:
    """Interchange what is said of two blocks, each given by layer and number."""

    def change(about: dict[str, Any]) -> None:
        one, other = (about["layers"][at]["blocks"][number] for at, number in (first, second))
        for name in names:
            one[name], other[name] = other[name], one[name]

    return change


DAMAGE = {
    "more slots than the last block has rows": layer(count=400, merged=400),
    "more slots than the blocks have room for": layer(count=600, merged=600),
    "more slots than can be": layer(count=10**30, merged=10**30),
    "a whole block of slots more": layer(count=640, merged=640),
    "fewer slots than rows": layer(count=300, merged=300),
    "a start behind a block that is named": layer(start=256),
    "a start behind the end": layer(start=385),
    "a negative start": layer(start=-1),
    "a buffer that ends behind the end": layer(merged=385),
    "a buffer that starts before the start": layer(start=100, merged=99),
    "no last block": lambda about: about["layers"][1]["blocks"].pop(),
    "no blocks": layer(blocks=[]),
    "a block twice": lambda about: about["layers"][1]["blocks"].append(about["layers"][1]["blocks"][1]),
    "blocks in disorder": lambda about: about["layers"][0]["blocks"].reverse(),
    "blocks of two layers interchanged": swap((0, 0), (1, 0), "file", "digest"),
    "the same with all that is said of them": swap((0, 1), (1, 1), "file", "digest", "number", "rows"),
    "blocks of one layer interchanged": swap((0, 0), (0, 1), "file", "digest"),
    "a file outside the folder": block(0, file="../m.safetensors"),
    "a block with more rows": block(1, rows=256),
    "a block with a number in letters": block(1, number="1"),
    "a digest that is none": block(1, digest=5),
    "one layer": lambda about: about["layers"].pop(),
    "no clock": lambda about: about.pop("clock"),
    "a clock without end": lambda about: about.update(clock=math.inf),
    "a clock without a number": lambda about: about.update(clock=math.nan),
    "a clock that ran backwards": lambda about: about.update(clock=-1),
    "a fraction of a slot that waited": lambda about: about.update(waited=0.5),
    "blocks of a size in letters": lambda about: about.update(rows="256"),
    "another tier": lambda about: about.update(tier="tape"),
    "int8 that is neither yes nor no": lambda about: about.update(int8="no"),
    "int8 slots that are none": lambda about: about.update(int8=True),
    "a folder that is a number": lambda about: about.update(folder=5),
    "a capacity without end": lambda about: about["rules"].update(capacity=math.inf),
    "a decay without a number": lambda about: about["rules"].update(decay=math.nan),
    "a frequency in letters": lambda about: about["rules"].update(initial_frequency="10"),
    "another policy": lambda about: about["rules"].update(policy="newest"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_record_of_long_term_memory_that_does_not_fit_is_refused(target: Path, name: str) -> None:
    damage(target, DAMAGE[name])
    refused(target, "damaged.*older copy")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [('"decay": 1.0', '"decay": 1e999', "the number 1e999"), ('"kv_heads": 2', '"kv_heads": 0', "damaged")],
)
def test_a_number_that_none_of_ours_can_be_is_refused(target: Path, old: str, new: str, says: str) -> None:
    damage(target, lambda about: None, old=old, new=new)
    refused(target, says)


@pytest.mark.parametrize(("first", "second"), [(0, 1), (0, 2), (1, 3)])
def test_files_of_blocks_that_were_interchanged_are_refused(target: Path, first: int, second: int) -> None:
    one, other = (sorted(folder_of(target).iterdir())[at] for at in (first, second))
    one.rename(target.with_name("aside"))
    other.rename(one)
    target.with_name("aside").rename(other)
    refused(target, "cut or changed since it was saved.*put the saved one back")


@pytest.mark.parametrize(
    "frequency",
    [torch.full((383,), 10.0), torch.full((384, 1), 10.0), torch.tensor(10.0), torch.full((384,), math.nan)],
)
def test_recall_frequencies_that_do_not_fit_are_refused(target: Path, frequency: Tensor) -> None:
    written(7, RECALL).save(target)
    Memory.load(target)
    damage(target, lambda about: None, {"longterm.frequency.1": frequency})
    refused(target, "layer 1 of its long-term memory does not add up")


def test_recall_frequencies_must_be_there_if_slots_are_dropped_by_them(target: Path) -> None:
    damage(target, lambda about: about["rules"].update(policy="recall_frequency"))
    refused(target, "layer 0 of its long-term memory does not add up")
    written(7, RECALL).save(target)
    damage(target, lambda about: about["rules"].update(policy="oldest"))
    refused(target, "layer 0 of its long-term memory does not add up")


@pytest.mark.parametrize("capacity", [0, 1, 256, 300])
@pytest.mark.parametrize("writes", [0, 1, 2, 5, 6, 7, 9])
def test_whatever_was_saved_is_whole(target: Path, capacity: int, writes: int) -> None:
    memory = written(writes, LongTermRules(retrieved=7, capacity=capacity))
    memory.save(target)
    loaded = Memory.load(target)
    assert memory.longterm is not None and loaded.longterm is not None
    assert loaded.longterm.sizes() == memory.longterm.sizes()
