"""Memory files of version 0.1: what is in them, as that version told it, is what is in them now."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remanence.config import StorageConfig, Tier
from remanence.memory import LongTerm, Memory
from remanence.memory.envelope import folder_of, read_envelope
from remanence.memory.published import RecallFrequency
from tests.support.contents import contents
from tests.support.kinds import on_disk
from tests.support.longterms import bits, random, write

FILES = sorted((Path(__file__).parent / "memories").glob("*.mem"))


@pytest.fixture(params=FILES, ids=lambda path: path.stem)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of its own."""
    target = tmp_path / request.param.name
    shutil.copy(request.param, target)
    if folder_of(request.param).exists():
        shutil.copytree(folder_of(request.param), folder_of(target))
    return target


def expected(saved: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FILES[0].parent / f"{saved.stem}.json").read_text())
    return found


def digest(tensor: Tensor) -> str:
    return hashlib.sha256(bits(tensor)).hexdigest()


def told(memory: Memory) -> dict[str, Any]:
    """What a memory holds, as the old version wrote it down."""
    assert memory.newest is not None
    found: dict[str, Any] = {
        "write_count": memory.write_count,
        "ids": [record.id for record in memory.writes],
        "order": memory.pool.order.tolist(),
        "keys": digest(memory.pool.keys),
        "values": digest(memory.pool.values),
        "newest": digest(memory.newest),
        "generator": digest(memory._generator.get_state()),
    }
    return found if memory.longterm is None else {**found, "longterm": told_of(memory.longterm)}


def told_of(held: LongTerm) -> dict[str, Any]:
    published = held.policy if isinstance(held.policy, RecallFrequency) else None
    found: dict[str, Any] = {
        "clock": held.clock,
        "waited": held.clock if published is None else published.waited,  # it counted on where nothing merged
        "buffered": [0, 0] if published is None else published.buffered(held),
    }
    for index, layer in enumerate(held.layers):
        there = layer.candidates()
        keys, values = layer.take(there)
        read = held.retrieve(index, random(5, 3, seed=index))
        found[f"layer {index}"] = {
            "positions": there.tolist(),
            "keys": digest(keys),
            "values": digest(values),
            "serial": layer.known("serial", there).tolist(),
            "ages": held.ages(index).tolist(),
            "frequency": None if published is None else published.frequency[index].tolist(),
            "retrieved": [read.positions.tolist(), digest(read.keys), digest(read.values)],
        }
    return found


def test_load_gives_what_was_saved(saved: Path) -> None:
    before = on_disk(saved)
    assert told(Memory.load(saved)) == expected(saved)
    assert on_disk(saved) == before


def test_save_in_the_new_format_keeps_it(saved: Path) -> None:
    memory = Memory.load(saved)
    before = contents(memory)
    memory.save(saved)
    assert read_envelope(saved).tensors is not None
    assert contents(Memory.load(saved)) == before and told(Memory.load(saved)) == expected(saved)


def test_load_goes_on_as_from_the_new_format(saved: Path) -> None:
    old = Memory.load(saved)
    old.save(saved)
    new = Memory.load(saved)
    for number in range(20, 26):
        write(old, number)
        write(new, number)
    assert contents(old) == contents(new) and old.write_count == expected(saved)["write_count"] + 6


@pytest.mark.parametrize("tier", ["device", "host", "disk"])
def test_load_into_any_tier_gives_the_same(saved: Path, tier: Tier) -> None:
    assert told(Memory.load(saved, storage=StorageConfig(tier))) == expected(saved)


def test_load_leaves_times_open(saved: Path) -> None:
    memory = Memory.load(saved)
    assert {record.time for record in memory.writes} == {None} and memory.model_name == ""
    assert torch.is_tensor(memory.provenance())
