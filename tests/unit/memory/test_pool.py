"""Slots are replaced in place, and a pool cannot be left half written."""

import pytest
import torch
from torch import Tensor

from remanence.errors import InvalidInputError
from remanence.memory import Pool

LAYERS, SLOTS = 2, 6


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


def contents(pool: Pool) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in pool.tensors.items()}


def same(pool: Pool, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in pool.tensors.items())


NEW = torch.tensor([[70, 71], [80, 81]])
EVICTED = torch.tensor([[0, 3], [4, 5]])


def test_survivors_keep_their_order_and_new_slots_come_last() -> None:
    pool = start()
    with pool.replacing(EVICTED, pool_of(NEW, SLOTS)):
        pass
    assert held(pool) == [[1, 2, 4, 5, 70, 71], [100, 101, 102, 103, 80, 81]]
    with pool.replacing(torch.tensor([[1, 4], [0, 5]]), pool_of(NEW + 2, SLOTS + 2)):
        pass
    assert held(pool) == [[1, 4, 5, 71, 72, 73], [101, 102, 103, 80, 82, 83]]


def test_order_stays_that_of_the_serials_over_many_writes() -> None:
    pool, generator = start(), torch.Generator().manual_seed(0)
    for write in range(50):
        ranks = torch.stack([torch.randperm(SLOTS, generator=generator)[:2].sort().values for _ in range(LAYERS)])
        with pool.replacing(ranks, pool_of(NEW + write, SLOTS + 2 * write)):
            pass
        held(pool)


def test_slots_that_stay_do_not_move() -> None:
    pool = start()
    where, before = pool.keys.data_ptr(), pool.keys.clone()
    with pool.replacing(EVICTED, pool_of(NEW, SLOTS)):
        pass
    assert pool.keys.data_ptr() == where
    stayed = torch.ones(LAYERS, SLOTS, dtype=torch.bool).scatter_(1, EVICTED, False)
    assert torch.equal(pool.keys[stayed], before[stayed])


def test_a_pool_grows_when_fewer_leave_than_come() -> None:
    pool = start()
    with pool.replacing(torch.tensor([[0], [5]]), pool_of(NEW, SLOTS)):
        pass
    assert pool.size == SLOTS + 1
    assert held(pool) == [[1, 2, 3, 4, 5, 70, 71], [100, 101, 102, 103, 104, 80, 81]]


@pytest.mark.parametrize("evicted", [EVICTED, EVICTED[:, :1]], ids=["in place", "growing"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_interrupted_replacement_leaves_the_pool_as_it_was(evicted: Tensor, error: type[BaseException]) -> None:
    pool = start()
    with pool.replacing(EVICTED, pool_of(NEW, SLOTS)):
        pass
    before, order = contents(pool), held(pool)
    new = pool_of(NEW + 5, SLOTS + 2)
    with pytest.raises(error), pool.replacing(evicted, new):  # noqa: PT012
        assert held(pool) != order
        raise error
    assert same(pool, before) and held(pool) == order


def test_a_failing_copy_leaves_the_pool_as_it_was() -> None:
    pool = start()
    before, order = contents(pool), held(pool)
    new = pool_of(NEW, SLOTS)
    new.hidden = torch.zeros(1, 1, 7)  # keys and values are copied before this fails
    with pytest.raises(RuntimeError), pool.replacing(EVICTED, new):
        pass
    assert same(pool, before) and held(pool) == order


def test_a_clone_shares_nothing() -> None:
    pool = start()
    copy = pool.clone()
    with copy.replacing(EVICTED, pool_of(NEW, SLOTS)):
        pass
    assert same(pool, contents(start()))


def test_hidden_states_that_were_not_kept_are_refused() -> None:
    pool = pool_of(NEW, hidden=False)
    with pytest.raises(InvalidInputError, match="keep_hidden=True"):
        pool.slots()


def test_bytes_are_those_of_all_tensors() -> None:
    assert pool_of(NEW, hidden=False).nbytes == LAYERS * 2 * (2 * 2 * 3 * 4 + 8)
