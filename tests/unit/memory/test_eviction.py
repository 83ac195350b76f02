"""Who leaves the pool."""

import pytest
import torch

from remanence.errors import InvalidInputError
from remanence.memory.eviction import chosen, draw_evicted


@pytest.mark.parametrize(("slots", "count"), [(40, 6), (24, 12), (24, 24), (8, 1)])
def test_draw_evicted_takes_every_slot_equally_often(slots: int, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    draws = 1000
    drawn = torch.cat([draw_evicted(4, slots, count, generator) for _ in range(draws // 4)])
    times = torch.bincount(drawn.flatten(), minlength=slots).double()
    expected = draws * count / slots
    # Drawing without replacement varies less than a chi-square supposes, so this bound is generous.
    chi_square = float(((times - expected) ** 2 / expected).sum())
    assert chi_square < slots + 4.5 * (2 * slots) ** 0.5


@pytest.mark.parametrize(("slots", "count"), [(40, 6), (40, 10), (24, 23), (24, 24), (5, 0)])
@pytest.mark.parametrize("shared", [True, False])
def test_draw_evicted_gives_distinct_ascending_ranks_of_the_pool(slots: int, count: int, shared: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        drawn = draw_evicted(3, slots, count, generator, shared=shared)
        assert drawn.shape == (3, count)
        assert bool((drawn[:, 1:] > drawn[:, :-1]).all())
        assert bool(((drawn >= 0) & (drawn < slots)).all())


def test_draw_evicted_differs_between_layers_unless_shared() -> None:
    generator = torch.Generator().manual_seed(0)
    own = draw_evicted(4, 100, 10, generator)
    shared = draw_evicted(4, 100, 10, generator, shared=True)
    assert len({tuple(row) for row in own.tolist()}) == 4
    assert len({tuple(row) for row in shared.tolist()}) == 1


def test_draw_evicted_depends_on_the_generator_alone() -> None:
    first, second = (draw_evicted(3, 50, 7, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, second)


def test_draw_evicted_refuses_more_than_there_are() -> None:
    with pytest.raises(InvalidInputError, match="cannot evict 9 of 8"):
        draw_evicted(2, 8, 9, torch.Generator())


def pick(ranks: torch.Tensor | None, made: int = 2) -> torch.Tensor:
    return chosen(ranks, 2, 4, made, torch.Generator().manual_seed(5), shared=False)


def test_chosen_draws_where_no_ranks_are_given() -> None:
    assert torch.equal(pick(None), draw_evicted(2, 4, 2, torch.Generator().manual_seed(5)))


def test_chosen_sorts_given_ranks() -> None:
    assert pick(torch.tensor([[3, 1], [0, 2]])).tolist() == [[1, 3], [0, 2]]


@pytest.mark.parametrize(
    ("ranks", "says"),
    [
        (torch.tensor([0, 1]), "shape"),
        (torch.tensor([[0, 1]]), "shape"),
        (torch.tensor([[0.0], [1.0]]), "integer"),
        (torch.tensor([[True], [False]]), "integer"),
        (torch.tensor([[0, 4], [0, 1]]), r"outside 0\.\.3"),
        (torch.tensor([[-1, 2], [0, 1]]), r"outside 0\.\.3"),
        (torch.tensor([[1, 1], [0, 1]]), "twice"),
        (torch.tensor([[0, 1, 2], [0, 1, 2]]), "makes only 2"),
    ],
)
def test_chosen_refuses_ranks_that_do_not_fit(ranks: torch.Tensor, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        pick(ranks)
