"""Slots are replaced in place, and a pool cannot be left half written."""

import pytest
import torch
from torch import Tensor

from remanence.errors import CorruptMemoryError, InvalidInputError
from remanence.memory import Pool
from remanence.memory.order import Order
from remanence.memory.published import replace_growing
from remanence.memory.undo import Undo, undoing

LAYERS, SLOTS = 2, 6
NEW = torch.tensor([[70, 71], [80, 81]])
EVICTED = torch.tensor([[0, 3], [4, 5]])


def pool_of(numbers: Tensor, first: int = 0, hidden: bool = True) -> Pool:  # numbers [L, n]: what each slot holds
    size = numbers.shape[1]
    keys = numbers[..., None, None].expand(-1, -1, 2, 3).float().clone()
    serial = torch.arange(first, first + size).repeat(len(numbers), 1)
    return Pool(keys, -keys, serial, numbers[..., None].expand(-1, -1, 5).float().clone() if hidden else None)


def start() -> Pool:
    return pool_of(torch.arange(SLOTS).repeat(LAYERS, 1) + 100 * torch.arange(LAYERS)[:, None])


def held(pool: Pool) -> list[list[int]]:
    """What the slots hold, oldest first, which keys, values and hidden states agree on."""
    slots = pool.slots()[..., 0]
    ordered = pool.keys.gather(1, pool.order[..., None, None].expand_as(pool.keys))
    assert torch.equal(ordered[..., 0, 0], slots) and torch.equal(pool.keys, -pool.values)
    assert torch.equal(pool.order, pool.serial.argsort(dim=1))
    return slots.int().tolist()


def contents(pool: Pool) -> dict[str, list[float]]:
    return {name: tensor.tolist() for name, tensor in pool.tensors.items()} | {"held": held(pool)}


def test_replace_keeps_the_order_of_survivors_and_puts_new_slots_last() -> None:
    pool = start()
    pool.replace(EVICTED, pool_of(NEW, SLOTS), Undo())
    assert held(pool) == [[1, 2, 4, 5, 70, 71], [100, 101, 102, 103, 80, 81]]
    pool.replace(torch.tensor([[1, 4], [0, 5]]), pool_of(NEW + 2, SLOTS + 2), Undo())
    assert held(pool) == [[1, 4, 5, 71, 72, 73], [101, 102, 103, 80, 82, 83]]


def test_replace_returns_what_was_there() -> None:
    gone = start().replace(EVICTED, pool_of(NEW, SLOTS), Undo())
    assert gone["hidden"][..., 0].tolist() == [[0, 3], [104, 105]]
    assert gone["serial"].tolist() == EVICTED.tolist()


def test_replace_moves_no_slot_that_stays() -> None:
    pool = start()
    where, before = pool.keys.data_ptr(), pool.keys.clone()
    pool.replace(EVICTED, pool_of(NEW, SLOTS), Undo())
    assert pool.keys.data_ptr() == where
    stayed = torch.ones(LAYERS, SLOTS, dtype=torch.bool).scatter_(1, EVICTED, False)
    assert torch.equal(pool.keys[stayed], before[stayed])


def test_replace_growing_takes_in_more_than_leave() -> None:
    pool = start()
    replace_growing(pool, torch.tensor([[0], [5]]), pool_of(NEW, SLOTS), Undo())
    assert pool.size == SLOTS + 1
    assert held(pool) == [[1, 2, 3, 4, 5, 70, 71], [100, 101, 102, 103, 104, 80, 81]]


@pytest.mark.parametrize("grows", [False, True])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_replace_is_taken_back_whatever_a_write_had_overwritten(grows: bool, error: type[BaseException]) -> None:
    pool = start()
    pool.replace(EVICTED, pool_of(NEW, SLOTS), Undo())
    before, versions = contents(pool), [pool.version]
    with pytest.raises(error), undoing(SLOTS + 2) as undo:  # noqa: PT012
        for step in range(4):  # what the first two put in, the others evict
            replace = replace_growing if grows and step == 1 else Pool.replace
            ranks = torch.tensor([[4], [5]]) if grows and step == 1 else torch.tensor([[0, 4], [4, 5]])
            replace(pool, ranks, pool_of(NEW + step, SLOTS + 2 + 2 * step), undo)
            versions.append(pool.version)
        assert contents(pool) != before
        raise error
    assert contents(pool) == before and len({*versions, pool.version}) == 6


def test_replace_keeps_only_what_was_there_before_the_write() -> None:
    """However long a write is, its undo list holds no more slots than the pool."""
    pool, undo, kept = start(), Undo(SLOTS), 0
    put_back = pool._put_back

    def counting(at: Tensor, rows: dict[str, Tensor]) -> None:
        nonlocal kept
        kept += len(at)
        put_back(at, rows)

    pool._put_back = counting  # type: ignore[method-assign]
    for step in range(40):
        pool.replace(torch.tensor([[0, 1], [2, 5]]), pool_of(NEW + step, SLOTS + 2 * step), undo)
    undo.run()
    assert 0 < kept <= LAYERS * SLOTS and contents(pool) == contents(start())


def test_replace_that_fails_halfway_leaves_the_pool_as_it_was() -> None:
    pool = start()
    before, new = contents(pool), pool_of(NEW, SLOTS)
    new.hidden = torch.zeros(1, 1, 7)  # keys and values are copied before this fails
    with pytest.raises(RuntimeError), undoing() as undo:
        pool.replace(EVICTED, new, undo)
    assert contents(pool) == before


def test_replace_refuses_to_hand_on_slots_that_are_not_finite() -> None:
    pool = start()
    pool.keys[0, 3] = torch.nan
    with pytest.raises(CorruptMemoryError, match="not finite"):
        pool.replace(EVICTED, pool_of(NEW, SLOTS), Undo())


def test_clone_shares_nothing() -> None:
    pool = start()
    pool.clone().replace(EVICTED, pool_of(NEW, SLOTS), Undo())
    assert contents(pool) == contents(start())


def test_slots_that_were_not_kept_hidden_are_refused() -> None:
    with pytest.raises(InvalidInputError, match="keep_hidden=True"):
        pool_of(NEW, hidden=False).slots()


def test_nbytes_is_that_of_all_tensors() -> None:
    assert pool_of(NEW, hidden=False).nbytes == LAYERS * 2 * (2 * 2 * 3 * 4 + 8)


@pytest.mark.parametrize(("slots", "count"), [(300, 2), (300, 40), (30, 30), (1, 1)])
def test_order_is_that_of_a_list_over_many_moves(slots: int, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    expected = torch.stack([torch.randperm(slots, generator=generator) for _ in range(LAYERS)])
    order = Order(expected)
    for step in range(200):
        ranks = torch.stack([torch.randperm(slots, generator=generator)[:count] for _ in range(LAYERS)])
        assert torch.equal(order.find(ranks), expected.gather(1, ranks))
        ranks = ranks.sort(dim=1).values
        stays = torch.ones_like(expected, dtype=torch.bool).scatter_(1, ranks, False)
        moved = [torch.cat([row[kept], row[at]]) for row, kept, at in zip(expected, stays, ranks, strict=True)]
        order.to_the_end(ranks)
        expected = torch.stack(moved)
        if step % 20 == 0:
            assert torch.equal(order.places, expected)
    assert torch.equal(order.places, expected)
