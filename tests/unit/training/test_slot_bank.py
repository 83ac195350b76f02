"""The bank: what earlier steps wrote, and what of it is hardest to tell from what is asked about."""

import pytest
import torch
from torch import Tensor

from remanence.training.tasks.longterm_task import SlotBank

LAYERS, K, D, P = 2, 3, 4, 5


def chunks(*numbers: int) -> tuple[Tensor, Tensor]:
    """Chunks whose slots and keys say which they are."""
    value = torch.tensor(numbers, dtype=torch.float32)[:, None, None, None]
    return value.expand(-1, LAYERS, K, D), value.expand(-1, LAYERS, K, P)


def held(bank: SlotBank) -> list[int]:
    return sorted(bank.chunks(torch.arange(len(bank)))[:, 0, 0, 0].int().tolist())


def test_the_newest_stay() -> None:
    bank = SlotBank(5)
    bank.add(*chunks(1, 2))
    assert held(bank) == [1, 2]
    bank.add(*chunks(3, 4))
    bank.add(*chunks(5, 6))
    assert held(bank) == [2, 3, 4, 5, 6]
    bank.add(*chunks(7, 8))
    assert held(bank) == [4, 5, 6, 7, 8]


@pytest.mark.parametrize("capacity", [0, 2])
def test_of_a_step_that_is_larger_than_the_bank_all_stays(capacity: int) -> None:
    bank = SlotBank(capacity)
    bank.add(*chunks(1, 2, 3))
    bank.add(*chunks(4, 5, 6, 7))
    assert held(bank) == [4, 5, 6, 7]


def test_a_smaller_step_after_one_that_was_larger_than_the_bank_holds_what_it_wrote() -> None:
    bank = SlotBank(3)
    bank.add(*chunks(1, 2, 3, 4))
    bank.add(*chunks(5, 6))
    assert held(bank) == [5, 6]


def test_chunks_are_drawn_once_each() -> None:
    bank = SlotBank(8)
    bank.add(*chunks(*range(8)))
    drawn = bank.draw(8, torch.Generator().manual_seed(0))
    assert sorted(drawn.tolist()) == list(range(8)) != drawn.tolist()
    assert len(bank.draw(20, torch.Generator())) == 8


def test_the_hardest_are_those_that_any_row_scores_highest_as_a_read_scores_them() -> None:
    generator = torch.Generator().manual_seed(0)
    bank = SlotBank(20)
    slots, keys = (torch.randn(12, LAYERS, K, size, generator=generator) for size in (D, P))
    bank.add(slots, keys)
    queries, known = 4 * torch.randn(3, 6, P, generator=generator), torch.tensor([2, 7])
    counted = torch.tensor([[0, 1, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1]], dtype=torch.bool)
    free = torch.tensor([c for c in range(12) if c not in (2, 7)])
    for layer in range(LAYERS):
        there = keys[free, layer].flatten(0, 1)
        each = (asking[tokens] @ there.t() for asking, tokens in zip(queries, counted, strict=True))
        scores = [products.sigmoid().mean(0) for products in each]
        best = {int(i) for row in scores for i in row.argsort(descending=True)[:4]}
        expected = slots[free, layer].flatten(0, 1)[sorted(best)]
        found, numbers = bank.hardest(layer, queries, counted, 4, known)
        assert torch.equal(bank.slots[layer].flatten(0, 1)[numbers], found)
        assert torch.equal(found.sort(dim=0).values, expected.sort(dim=0).values)
    assert len(bank.hardest(0, queries, counted, 1000, known)[0]) == len(free) * K


def test_a_bank_goes_on_where_it_was_saved() -> None:
    for filled in (3, 5, 7):
        bank, other = SlotBank(5), SlotBank(5)
        for number in range(filled):
            bank.add(*chunks(number))
        other.load_state_dict(bank.state_dict(), torch.device("cpu"))
        for number in (10, 11):
            bank.add(*chunks(number))
            other.add(*chunks(number))
        assert torch.equal(bank.slots[:, : len(bank)], other.slots[:, : len(other)])
        assert torch.equal(bank.keys[:, : len(bank)], other.keys[:, : len(other)])
