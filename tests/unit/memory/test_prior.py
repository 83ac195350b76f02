"""The prior that layers hand on: what weighs in a layer is the product of what those below found."""

import math
from collections import defaultdict

import pytest
import torch
from torch import Tensor

from remanence.config import LongTermConfig
from remanence.memory.scoring import CrossLayerPrior
from tests.support.longterms import append, longterm, random

T, K = 0.05, 4


def plain(layers: list[tuple[Tensor, Tensor]]) -> list[float]:
    """The scores of the last layer's slots, in plain words."""
    held: dict[int, float] = defaultdict(float)
    for scores, serial in layers[:-1]:
        whole = sum(math.exp(score / T) for score in scores.tolist())
        shares: dict[int, float] = defaultdict(float)
        for score, number in zip(scores.tolist(), serial.tolist(), strict=True):
            shares[number // K] += math.exp(score / T) / whole
        for write, share in shares.items():
            held[write] += math.log(max(share, 1e-4) / 1e-4)
    scores, serial = layers[-1]
    return [score + T * held[number // K] for score, number in zip(scores.tolist(), serial.tolist(), strict=True)]


def layer(seed: int, first: int, count: int) -> tuple[Tensor, Tensor]:
    """Scores of slots with serial numbers in no order, some of them missing."""
    generator = torch.Generator().manual_seed(seed)
    serial = first + torch.randperm(2 * count, generator=generator)[:count]
    return torch.rand(count, generator=generator), serial


@pytest.mark.parametrize("firsts", [(0, 0, 0, 0), (90, 40, 7, 200), (7, 90, 200, 3)], ids=["alike", "older", "newer"])
def test_apply_multiplies_the_shares_of_the_layers_below_whatever_writes_each_holds(firsts: tuple[int, ...]) -> None:
    layers = [layer(seed, first, 30) for seed, first in enumerate(firsts)]
    prior = CrossLayerPrior(T, K)
    for number, (scores, serial) in enumerate(layers, start=1):
        weighed = prior.apply(scores, serial)
        torch.testing.assert_close(weighed, torch.tensor(plain(layers[:number])), atol=1e-5, rtol=0.0)


def test_apply_leaves_the_first_layer_as_it_is() -> None:
    scores, serial = layer(0, 0, 30)
    assert torch.equal(CrossLayerPrior(T, K).apply(scores, serial), scores)


def test_apply_leaves_dropped_slots_out_however_sure_the_layers_below_are() -> None:
    prior = CrossLayerPrior(1.0, K)
    prior.apply(torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 4, 8]))
    weighed = prior.apply(torch.tensor([-1.0, 0.0, 0.1]), torch.tensor([1, 5, 9]))
    assert weighed.topk(2).indices.tolist() == [2, 1] and weighed[0] == -math.inf


def test_apply_prefers_the_write_that_the_layer_below_found() -> None:
    serial = torch.arange(8)
    below, above = torch.zeros(8), torch.full((8,), 0.1)
    below[5], above[2] = 1.0, 0.2  # the second write below, the first above
    prior = CrossLayerPrior(T, K)
    prior.apply(below, serial)
    assert prior.apply(above, serial).topk(4).indices.sort().values.tolist() == [4, 5, 6, 7]
    assert int(above.argmax()) == 2


def test_retrieve_is_weighed_by_what_the_layer_below_found() -> None:
    held = longterm(LongTermConfig(retrieved=3))
    for _ in range(3):
        append(held, 300)
    asked = random(5, 3, seed=1)
    prior, by_itself = CrossLayerPrior(T, K), held.retrieve(1, asked)
    assert held.retrieve(0, asked, prior=prior).positions.tolist() == held.retrieve(0, asked).positions.tolist()
    scores = [(held.layers[index].scores(asked), torch.arange(900)) for index in range(2)]
    best = torch.tensor(plain(scores)).topk(3).indices
    found = held.retrieve(1, asked, prior=prior).positions
    assert found.sort().values.tolist() == best.sort().values.tolist() != by_itself.positions.sort().values.tolist()


def test_serials_are_those_of_what_was_not_dropped() -> None:
    held = longterm(LongTermConfig(retrieved=3, capacity=500))
    for _ in range(3):
        append(held, 300)
    assert held.layers[0].serials().tolist() == list(range(400, 900))
