"""Tiers: the same slots wherever they lie, in less room as int8, and a full disk that is noticed in time."""

import errno
import os
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from remanence.config import LongTermConfig, StorageConfig, Tier
from remanence.errors import CorruptMemoryError, InvalidInputError, MemoryFileError
from remanence.memory import mapped as module
from remanence.memory.storage import Block, DiskRows, KeptSlots, Layout, MemoryRows, quantised, restored
from tests.support.contents import contents
from tests.support.longterms import (
    append,
    everything,
    joined,
    longterm,
    random,
    use_small_blocks,
    write,
    written,
)

TIERS: list[Tier] = ["device", "host", "disk"]
CPU = torch.device("cpu")
SMAPS = Path("/proc/self/smaps")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("tier", TIERS)
def test_take_gives_the_slots_bit_for_bit_in_every_tier(tier: Tier, int8: bool, dtype: torch.dtype) -> None:
    held = longterm(storage=StorageConfig(tier, int8), dtype=dtype)
    parts = [append(held, count) for count in (7, 300, 100)]
    asked = torch.randperm(407, generator=torch.Generator().manual_seed(0))
    for index, layer in enumerate(held.layers):
        slots = torch.stack([joined(parts, name, index) for name in ("keys", "values")], dim=1)
        expected = restored(*quantised(slots), dtype) if int8 else slots
        keys, values = layer.take(asked)
        assert keys.dtype == dtype and torch.equal(torch.stack([keys, values], dim=1), expected[asked])


@pytest.mark.parametrize("int8", [False, True])
def test_retrieve_finds_the_same_in_every_tier(int8: bool) -> None:
    found = []
    for tier in TIERS:
        held = longterm(LongTermConfig(retrieved=9, capacity=200), StorageConfig(tier, int8))
        for _ in range(7):
            append(held, 60)
        found.append(everything(held))
    assert found[0] == found[1] == found[2]


def test_quantised_slots_are_off_by_half_a_step_at_most() -> None:
    slots = random(50, 2, 3, 8, seed=0) * torch.logspace(-6, 6, 50)[:, None, None, None]
    rows, scales = quantised(slots)
    step = slots.abs().amax(dim=(2, 3), keepdim=True) / 127
    assert rows.dtype == torch.int8 and scales.shape == (50, 2)
    assert bool(((restored(rows, scales, torch.float32) - slots).abs() <= 0.5001 * step).all())


def test_quantised_keys_and_values_have_scales_of_their_own() -> None:
    slots = torch.stack([random(4, 3, 8, seed=0), 1e6 * random(4, 3, 8, seed=1)], dim=1)
    assert torch.allclose(restored(*quantised(slots), torch.float32)[:, 0], slots[:, 0], atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_quantised_keeps_zero_and_the_largest_numbers(dtype: torch.dtype) -> None:
    slots = torch.zeros(2, 2, 3, 8, dtype=dtype)
    large = torch.finfo(dtype).max / 2
    slots[1, :, 0, 0], slots[1, :, 1, 1] = large, -large
    assert torch.allclose(restored(*quantised(slots), dtype), slots, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 4), (torch.bfloat16, 2)])
def test_slot_bytes_of_int8_are_one_for_each_number_and_eight_for_scales(dtype: torch.dtype, share: int) -> None:
    plain, small = (Layout(8, 64, dtype, 16, CPU, StorageConfig("device", int8)).slot_bytes for int8 in (False, True))
    assert small == plain // share + 8


@pytest.mark.parametrize("int8", [False, True])
def test_nbytes_of_long_term_memory_are_those_of_its_tensors(int8: bool) -> None:
    held = longterm(storage=StorageConfig("host", int8))
    append(held, 512)
    taken = {"slots": 0, "keys": 0}
    for block in (block for layer in held.layers for block in layer.blocks.values()):
        for name in ("slots", "scales", "keys"):
            if name in block.rows:
                tensor = block.rows[name].first(512)
                taken["keys" if name == "keys" else "slots"] += tensor.numel() * tensor.element_size()
    assert held.nbytes == taken


def test_memory_rows_grow_as_slots_come() -> None:
    rows = MemoryRows(256, (2,), torch.float32, CPU, whole=False)
    sizes = []
    for at in range(0, 100, 10):
        rows.write(at, torch.full((10, 2), float(at)))
        sizes.append(len(rows.tensor))
    assert sizes == [16, 32, 32, 64, 64, 64, 128, 128, 128, 128]
    assert rows.take(torch.arange(0, 100, 10))[:, 0].tolist() == [*range(0, 100, 10)]


def fill_disk(monkeypatch: pytest.MonkeyPatch, room_for: int) -> None:
    """From now on the disk has room for so many blocks."""
    real, left = module.allocate, iter(range(room_for))

    def allocate(handle: int, size: int) -> None:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle, size)

    monkeypatch.setattr(module, "allocate", allocate)


@pytest.mark.parametrize("there", [0, 100])
@pytest.mark.parametrize("room_for", [0, 1, 3])
def test_append_on_a_full_disk_leaves_long_term_memory_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: int, room_for: int
) -> None:
    held = longterm(storage=StorageConfig("disk", folder=tmp_path))
    append(held, there)
    before, twin = everything(held), held.fork()
    with monkeypatch.context() as patch:
        fill_disk(patch, room_for)
        with pytest.raises(MemoryFileError, match=f"{tmp_path}.*No space left.*Free"):
            append(held, 3 * 256)
        assert everything(held) == before
    for one in (held, twin):
        append(one, 300)
    assert everything(held) == everything(twin)


@pytest.mark.parametrize("room_for", [0, 1, 3])
def test_put_on_a_full_disk_undoes_the_whole_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room_for: int
) -> None:
    memory = written(3, storage=StorageConfig("disk", folder=tmp_path))
    before, twin = contents(memory), memory.fork()
    with monkeypatch.context() as patch:
        fill_disk(patch, room_for)
        with pytest.raises(MemoryFileError, match=str(tmp_path)):
            write(memory, 9, chunks=8)
    assert contents(memory) == before
    for one in (memory, twin):
        write(one, 10, chunks=8)
    assert contents(memory) == contents(twin)


def test_append_names_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(MemoryFileError, match=r"nowhere.*No such file"):
        append(longterm(storage=StorageConfig("disk", folder=tmp_path / "nowhere")), 3)


def test_disk_tier_leaves_no_file_behind(tmp_path: Path) -> None:
    held = longterm(storage=StorageConfig("disk", folder=tmp_path))
    append(held, 300)
    forks = [held, held.fork()]
    assert list(tmp_path.iterdir()) == [] and everything(forks[0]) == everything(forks[1])


def test_append_uses_the_disk_in_the_disk_tier_only(monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch, 0)
    for tier in ("device", "host"):
        append(longterm(storage=StorageConfig(tier)), 300)


@pytest.mark.parametrize("by_hand", [False, True])
def test_allocate_takes_room_beforehand(monkeypatch: pytest.MonkeyPatch, by_hand: bool) -> None:
    if by_hand:
        monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with tempfile.TemporaryFile() as file:
        module.allocate(file.fileno(), 2**21 + 5)
        assert os.fstat(file.fileno()).st_size == 2**21 + 5


def resident(rows: DiskRows) -> int:
    """KiB of the mapping that are in memory."""
    address, inside = rows.tensor.data_ptr(), False
    for line in SMAPS.read_text().splitlines():
        first, _, rest = line.partition(" ")
        if "-" in first:
            start, end = (int(number, 16) for number in first.split("-"))
            inside = start <= address < end
        elif inside and first == "Rss:":
            return int(rest.split()[0])
    raise AssertionError("the mapping is not there")


@pytest.mark.skipif(not SMAPS.exists(), reason="tells resident memory of a mapping on Linux only")
def test_disk_rows_do_not_stay_in_memory(tmp_path: Path) -> None:
    rows = DiskRows(tmp_path, (1024, 256), torch.float32)
    written = random(1024, 256, seed=0)
    rows.write(0, written)
    assert resident(rows) == 0
    assert torch.equal(rows.take(torch.tensor([1000, 3, 500])), written[[1000, 3, 500]])
    assert resident(rows) == 0
    assert torch.equal(rows.tensor, written) and resident(rows) == 1024


def test_copy_of_a_block_is_independent() -> None:
    held = longterm(storage=StorageConfig("disk", int8=True))
    append(held, 5)
    block = held.layers[0].blocks[0]
    copy, before = block.copy(5), block.take(torch.arange(5))
    other = Block.empty(block.layout)
    other.write(0, 2 * before, *(block.rows[name].first(5) for name in ("keys", "born", "serial")))
    copy.write(0, 2 * before, *(block.rows[name].first(5) for name in ("keys", "born", "serial")))
    assert torch.equal(copy.take(torch.arange(5)), other.take(torch.arange(5)))
    assert torch.equal(block.take(torch.arange(5)), before)


def test_layout_refuses_the_text_tier() -> None:
    with pytest.raises(InvalidInputError, match="another tier"):
        Layout(2, 4, torch.float32, 3, CPU, StorageConfig("text"))


def slots_of_a_chunk() -> Tensor:  # [2, L, n, H, D]
    return random(2, 3, 7, 2, 4, seed=0).bfloat16()


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("tier", TIERS)
def test_kept_slots_load_bit_for_bit_in_every_tier(tier: Tier, int8: bool) -> None:
    slots, storage = slots_of_a_chunk(), StorageConfig(tier, int8)
    kept = KeptSlots(slots, storage)
    expected = restored(*quantised(slots), slots.dtype) if int8 else slots.clone()
    again = KeptSlots.as_kept(kept.slots, kept.scales, slots.dtype, storage)
    slots.zero_()
    for one in (kept, again, kept.moved(CPU)):
        assert one.load(CPU).dtype == torch.bfloat16 and torch.equal(one.load(CPU), expected)
        assert one.nbytes == (expected.numel() + 4 * 2 * 3 * 7 if int8 else expected.nbytes)


@pytest.mark.parametrize("after", TIERS)
def test_kept_slots_go_into_int8_and_out_of_it(after: Tier) -> None:
    plain = KeptSlots(slots_of_a_chunk(), StorageConfig("host"))
    small = KeptSlots.as_kept(plain.slots, None, torch.bfloat16, StorageConfig(after, int8=True))
    assert torch.equal(small.load(CPU), KeptSlots(slots_of_a_chunk(), StorageConfig("host", int8=True)).load(CPU))
    large = KeptSlots.as_kept(small.slots, small.scales, torch.bfloat16, StorageConfig(after))
    assert large.scales is None and torch.equal(large.load(CPU), small.load(CPU))


def test_kept_slots_must_be_finite() -> None:
    slots = slots_of_a_chunk()
    slots[1, 2, 3] = torch.nan
    with pytest.raises(CorruptMemoryError, match="not finite"):
        KeptSlots(slots, StorageConfig("host"))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files on Linux only")
def test_kept_slots_on_disk_hold_no_open_files() -> None:
    before = len(os.listdir("/proc/self/fd"))
    held = [KeptSlots(slots_of_a_chunk(), StorageConfig("disk")) for _ in range(20)]
    assert len(os.listdir("/proc/self/fd")) == before and len(held) == 20


@pytest.mark.parametrize("reopened", [True, False])
def test_on_disk_gives_a_tensor_of_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, reopened: bool) -> None:
    if not reopened:
        monkeypatch.setattr(os.path, "isdir", lambda path: False)
    tensors = [module.on_disk(tmp_path, torch.Size((3, 5)), torch.bfloat16) for _ in range(2)]
    for number, tensor in enumerate(tensors):
        tensor.fill_(number + 1)
        module.let_go(tensor)
    assert [int(tensor.sum()) for tensor in tensors] == [15, 30] and not list(tmp_path.iterdir())
