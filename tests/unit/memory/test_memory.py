"""Memory is a value: what it records, how it forks, and how it outlives the process."""

import errno
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from remanence.errors import CorruptMemoryError, InvalidInputError, MemoryFileError, MemoryMismatchError
from remanence.memory import Memory, MemorySpec, NewSlots, WriteRecord, tiled
from remanence.memory import saving as module

SPEC = MemorySpec(
    layers=2,
    slots=12,
    slots_per_write=3,
    hidden_size=8,
    kv_heads=1,
    head_dim=4,
    dtype="float32",
    shared_eviction=False,
    model="some weights",
)


def new_slots(number: int, count: int = 3) -> NewSlots:
    generator = torch.Generator().manual_seed(number)
    hidden = torch.randn(2, count, 8, generator=generator)
    return NewSlots(hidden, hidden[..., None, :4], hidden[..., None, 4:], tokens=10 + number)


def write(memory: Memory, number: int, count: int = 3, evict: Tensor | None = None) -> Tensor | None:
    with memory.committing(new_slots(number, count), evict) as (_, evicted):
        return evicted


def written(writes: int, *, seed: int = 0, keep_hidden: bool = True) -> Memory:
    memory = Memory(SPEC, seed=seed, keep_hidden=keep_hidden)
    for number in range(writes):
        write(memory, number)
    return memory


def everything(memory: Memory) -> dict[str, Any]:
    """All that makes a memory what it is, as plain numbers."""
    tensors = {} if not memory.written else {name: t.tolist() for name, t in memory.pool.tensors.items()}
    return {
        **tensors,
        "order": memory.pool.order.tolist() if memory.written else None,
        "newest": None if memory.newest is None else memory.newest.tolist(),
        "writes": memory.writes,
        "write_count": memory.write_count,
        "next": memory._next_serial,
        "random state": memory._generator.get_state().tolist(),
    }


def test_the_first_write_fills_the_pool_with_its_slots_over_and_over() -> None:
    memory = Memory(SPEC, keep_hidden=True)
    assert write(memory, 0, count=5) is None
    made = new_slots(0, 5).hidden
    assert torch.equal(memory.pool.slots(), torch.cat([made, made, made[:, -2:]], dim=1))
    assert memory.newest is not None and torch.equal(memory.newest, memory.pool.slots()[:, -3:])


def test_a_first_write_of_more_slots_than_fit_keeps_the_last() -> None:
    made = new_slots(0, 17)
    assert torch.equal(tiled(made, 12).hidden, made.hidden[:, -12:])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12])
def test_the_newest_slots_are_the_end_of_the_pool(count: int) -> None:
    memory = written(3)
    for number in range(20):
        write(memory, number, count)
        assert memory.newest is not None and torch.equal(memory.newest, memory.pool.slots()[:, -3:])


def test_a_pool_grows_when_a_replayed_draw_is_short() -> None:
    memory = written(2)
    before = memory.pool.slots()
    write(memory, 5, evict=torch.tensor([[0, 11], [3, 4]]))
    assert memory.pool.size == 13
    kept = [[*range(1, 11)], [*range(3), *range(5, 12)]]
    survivors = torch.stack([before[layer, rows] for layer, rows in enumerate(kept)])
    assert torch.equal(memory.pool.slots(), torch.cat([survivors, new_slots(5).hidden], dim=1))


def test_provenance_names_the_write_that_made_each_slot() -> None:
    memory = written(30)
    for layer, row in enumerate(memory.provenance().tolist()):
        for slot, made_by in zip(memory.pool.slots()[layer], row, strict=True):
            assert bool((new_slots(made_by).hidden[layer] == slot).all(dim=-1).any())
    assert memory.provenance()[:, -3:].eq(29).all()


def test_slots_that_no_write_made_have_no_provenance() -> None:
    start = written(1)
    memory = Memory(SPEC, pool=start.pool, newest=start.newest, keep_hidden=True)
    write(memory, 4)
    assert memory.provenance().tolist() == [[-1] * 9 + [0] * 3] * 2


def test_the_table_of_writes_stays_bounded_and_complete() -> None:
    memory = Memory(SPEC)
    for number in range(1000):
        write(memory, number % 7)
        alive = set(memory.provenance().unique().tolist())
        assert alive <= {record.id for record in memory.writes}
        assert len(memory.writes) <= 64 + 8 * 4 + 1
    assert memory.write_count == 1000
    assert memory.writes[-1] == WriteRecord(id=999, tokens=10 + 999 % 7, first_serial=memory._next_serial - 3, slots=3)


@pytest.mark.parametrize("writes", [0, 1, 5])
@pytest.mark.parametrize("evict", [None, torch.tensor([[0], [1]])], ids=["in place", "growing"])
def test_an_interrupted_write_leaves_no_trace(writes: int, evict: Tensor | None) -> None:
    memory = written(writes)
    before = everything(memory)
    if writes == 0:
        evict = None
    with pytest.raises(KeyboardInterrupt), memory.committing(new_slots(9), evict):
        raise KeyboardInterrupt
    assert everything(memory) == before


@pytest.mark.parametrize("part", ["hidden", "keys", "values"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_new_slots_that_are_not_finite_are_refused(part: str, number: float) -> None:
    memory = written(3)
    before = everything(memory)
    new = new_slots(9)
    broken = {name: getattr(new, name).clone() for name in ("hidden", "keys", "values")}
    broken[part].view(-1)[0] = number
    with pytest.raises(CorruptMemoryError, match="unchanged"), memory.committing(NewSlots(**broken, tokens=1)):
        pass
    assert everything(memory) == before


@pytest.mark.parametrize(
    ("writes", "evict", "says"),
    [
        (0, torch.zeros(2, 3, dtype=torch.long), "first write"),
        (2, torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3]]), "makes only 3"),
        (2, torch.tensor([[0, 1, 12], [0, 1, 2]]), "outside"),
    ],
)
def test_a_draw_that_does_not_fit_is_refused(writes: int, evict: Tensor, says: str) -> None:
    memory = written(writes)
    before = everything(memory)
    with pytest.raises(InvalidInputError, match=says):
        write(memory, 1, evict=evict)
    assert everything(memory) == before


def test_the_same_writes_from_the_same_seed_give_the_same_memory() -> None:
    assert everything(written(20, seed=4)) == everything(written(20, seed=4))
    assert everything(written(20, seed=4)) != everything(written(20, seed=5))


def test_a_fork_is_equal_and_independent() -> None:
    memory = written(6)
    copy, before = memory.fork(), everything(memory)
    assert everything(copy) == before
    write(copy, 7)
    assert everything(memory) == before
    write(memory, 7)
    assert everything(memory) == everything(copy)


def test_a_memory_that_was_never_written_has_no_pool() -> None:
    memory = Memory(SPEC)
    assert not memory.written and memory.nbytes == 0
    with pytest.raises(InvalidInputError, match="never written"):
        _ = memory.pool


@pytest.mark.parametrize("writes", [0, 1, 9])
@pytest.mark.parametrize("keep_hidden", [True, False])
def test_a_saved_memory_comes_back_and_goes_on_the_same_way(tmp_path: Path, writes: int, keep_hidden: bool) -> None:
    memory = written(writes, keep_hidden=keep_hidden)
    memory.save(tmp_path / "m.safetensors")
    loaded = Memory.load(tmp_path / "m.safetensors")
    assert loaded.spec == memory.spec and loaded.keep_hidden == keep_hidden
    for number in range(5):
        assert everything(loaded) == everything(memory)
        write(memory, number)
        write(loaded, number)
    assert [path.name for path in tmp_path.iterdir()] == ["m.safetensors"]


def test_a_grown_pool_survives_saving(tmp_path: Path) -> None:
    memory = written(2)
    write(memory, 5, evict=torch.tensor([[0], [3]]))
    memory.save(tmp_path / "m")
    assert everything(Memory.load(tmp_path / "m")) == everything(memory)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    written(4).save(tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        Memory.load(tmp_path / "nowhere")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_truncated_file_is_refused(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(share * len(content))])
    with pytest.raises(MemoryFileError, match="truncated"):
        Memory.load(saved)


@pytest.mark.parametrize("content", [b"", b"not a memory", bytes(range(256)) * 40, b"\x08" + bytes(7) + b'{"a": 1}'])
def test_other_bytes_are_refused(saved: Path, content: bytes) -> None:
    saved.write_bytes(content)
    with pytest.raises(MemoryFileError, match=str(saved)):
        Memory.load(saved)


def test_a_foreign_safetensors_file_is_refused(saved: Path) -> None:
    save_file({"weight": torch.zeros(3)}, saved)
    with pytest.raises(MemoryFileError, match="not a memory saved by"):
        Memory.load(saved)


DAMAGED = [
    pytest.param("tensors", "pool.keys", None, id="keys are missing"),
    pytest.param("tensors", "generator", None, id="random state is missing"),
    pytest.param("tensors", "newest", None, id="newest slots are missing"),
    pytest.param("tensors", "pool.hidden", None, id="hidden states are missing"),
    pytest.param("tensors", "pool.values", torch.zeros(2, 11, 1, 4), id="values of another shape"),
    pytest.param("tensors", "pool.keys", torch.zeros(2, 12, 1, 4).half(), id="keys of another dtype"),
    pytest.param("tensors", "generator", torch.zeros(3, dtype=torch.uint8), id="random state of another shape"),
    pytest.param("about", "spec", {"layers": 2}, id="a part of the spec"),
    pytest.param("about", "spec", {**SPEC.to_json(), "dtype": "number"}, id="an unknown dtype"),
    pytest.param("about", "spec", {**SPEC.to_json(), "slots": 13}, id="a size that does not divide"),
    pytest.param("tensors", "pool.serial", torch.zeros(2, 12).long(), id="slots without an order"),
    pytest.param("about", "spec", {**SPEC.to_json(), "dtype": "nn"}, id="a dtype that is none"),
    pytest.param("about", "spec", {**SPEC.to_json(), "dtype": "int64"}, id="another dtype than the slots have"),
    pytest.param("about", "spec", {**SPEC.to_json(), "slots": 24}, id="fewer slots than there should be"),
    pytest.param("about", "spec", {**SPEC.to_json(), "kv_heads": 0}, id="no heads"),
    pytest.param("about", "spec", {**SPEC.to_json(), "layers": 2.0}, id="a fraction of a layer"),
    pytest.param("about", "writes", [{"id": 3}], id="a part of a record"),
    pytest.param("about", "writes", [vars(WriteRecord(1, 9, 12, 3)), vars(WriteRecord(0, 9, 0, 12))], id="disorder"),
    pytest.param("about", "writes", [vars(WriteRecord(0, 9, 10**30, 3))], id="a slot that was never made"),
    pytest.param(
        "about", "writes", [{**vars(WriteRecord(0, 9, 0, 3)), "tokens": math.nan}], id="tokens without number"
    ),
    pytest.param("about", "write_count", None, id="no count"),
    pytest.param("about", "write_count", math.inf, id="infinitely many writes"),
    pytest.param("about", "write_count", "4", id="a count in letters"),
    pytest.param("about", "write_count", 2, id="fewer writes than are listed"),
    pytest.param("about", "next_serial", 20, id="a serial number that was given already"),
    pytest.param("about", "keep_hidden", "no", id="an answer that is neither yes nor no"),
]


@pytest.mark.parametrize(("where", "name", "value"), DAMAGED)
def test_a_damaged_file_is_refused(saved: Path, where: str, name: str, value: Any) -> None:
    tensors = load_file(saved)
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    holder: dict[str, Any] = tensors if where == "tensors" else json.loads(metadata["memory"])
    if value is None:
        del holder[name]
    else:
        holder[name] = value
    if where == "about":
        metadata["memory"] = json.dumps(holder)
    save_file(tensors, saved, metadata=metadata)
    before = saved.read_bytes()
    with pytest.raises(MemoryFileError, match=f"{saved} is .*damaged.*older copy"):
        Memory.load(saved)
    assert saved.read_bytes() == before


@pytest.mark.parametrize("name", ["pool.keys", "pool.values", "newest"])
def test_numbers_in_a_file_must_be_finite(saved: Path, name: str) -> None:
    tensors = load_file(saved)
    with safe_open(saved, framework="pt") as file:
        metadata = file.metadata()
    tensors[name].view(-1)[5] = float("nan")
    save_file(tensors, saved, metadata=metadata)
    with pytest.raises(CorruptMemoryError, match="not finite"):
        Memory.load(saved)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_a_full_disk_leaves_the_old_file(saved: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    before = saved.read_bytes()

    def full(tensors: dict[str, Tensor], path: str, metadata: dict[str, str]) -> None:
        Path(path).write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(module, "save_file", full)
    expected = MemoryFileError if isinstance(error, OSError) else KeyboardInterrupt
    with pytest.raises(expected):
        written(5).save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o007, 0o660)])
def test_a_new_file_has_the_permissions_of_any_other(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        written(1).save(tmp_path / "m")
    finally:
        os.umask(before)
    assert (tmp_path / "m").stat().st_mode & 0o777 == mode


def test_a_file_saved_again_keeps_its_permissions(saved: Path) -> None:
    saved.chmod(0o640)
    written(5).save(saved)
    assert saved.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("keep_hidden", [False, True])
def test_the_bytes_of_a_memory_are_those_of_its_tensors(keep_hidden: bool) -> None:
    pool, newest = 2 * 12 * (4 + 4 + 8 * keep_hidden), 2 * 3 * 8
    assert written(3, keep_hidden=keep_hidden).nbytes == 4 * (pool + newest) + 8 * 2 * 12


@pytest.mark.parametrize("writes", [0, 3])
def test_a_memory_moves_in_place(writes: int) -> None:
    memory = written(writes)
    assert memory.devices == ({torch.device("cpu")} if writes else set())
    assert memory.to("meta") is memory
    held = [*memory.pool.tensors.values(), memory.newest] if writes else []
    assert all(tensor is not None and tensor.is_meta for tensor in held)
    assert memory.devices == ({torch.device("meta")} if writes else set()) and memory.write_count == writes


def test_who_has_the_old_file_open_goes_on_reading_it(saved: Path) -> None:
    before = saved.read_bytes()
    with saved.open("rb") as reader:
        written(5).save(saved)
        assert reader.read() == before != saved.read_bytes()


def test_saving_where_there_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MemoryFileError, match="No such file"):
        written(1).save(tmp_path / "no" / "folder")


def test_a_mismatch_lists_every_difference() -> None:
    other = MemorySpec(**{**SPEC.to_json(), "slots": 24, "dtype": "bfloat16", "model": "other weights"})
    with pytest.raises(MemoryMismatchError) as caught:
        SPEC.require(other)
    for part in ("slots: the memory has 24, the model 12", "dtype: the memory has bfloat16", "weights fingerprint"):
        assert part in str(caught.value)
    assert "layers" not in str(caught.value)


@pytest.mark.parametrize(("slots", "k", "says"), [(10, 3, "N=9 or N=12"), (2, 3, "between 1 and"), (4, 0, "between 1")])
def test_sizes_that_do_not_fit_are_refused(slots: int, k: int, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        MemorySpec(**{**SPEC.to_json(), "slots": slots, "slots_per_write": k})
