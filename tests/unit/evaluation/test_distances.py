"""Distances are written as people write series."""

import pytest

from remanence import MemoryModel
from remanence.errors import InvalidInputError
from remanence.evaluation.distances import DISTANCES, parse_distances, writes_per_pool
from tests.support.tiny import SLOTS, K, decoder, with_memory


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", [0]),
        ("0,5,10", [0, 5, 10]),
        (" 10 , 0,10 ", [0, 10]),
        ("0,1p,20p", [0, 16, 320]),
        ("0.5p, 0.25p", [4, 8]),
        ("0..5", [0, 1, 2, 3, 4, 5]),
        ("3...1p", list(range(3, 17))),
        ("0,5,…,20p", list(range(0, 321, 5))),
        ("0,5,...,20p", list(range(0, 321, 5))),
        ("0,10,..,2p", [0, 10, 20, 30, 32]),
        ("0,2,…,8,20,…,60,100", [0, 2, 4, 6, 8, 20, 32, 44, 56, 60, 100]),
    ],
)
def test_series_are_read(text: str, expected: list[int]) -> None:
    assert parse_distances(text, 16) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "lack a number"),
        ("0,…", "lack a number"),
        ("…,5", "between numbers"),
        ("0,…,…,5", "between numbers"),
        ("0,x", "'x'"),
        ("-1", "'-1'"),
        ("1.5", "'1.5'"),
        ("5,3,…,20", "do not rise"),
        ("0,5,…,3", "do not rise"),
        ("20p..1", "do not rise"),
    ],
)
def test_what_is_no_series_is_refused_with_the_forms_that_are(text: str, problem: str) -> None:
    with pytest.raises(InvalidInputError, match=problem) as caught:
        parse_distances(text, 16)
    assert "0,5,…,20p" in str(caught.value)


def test_default_distances_start_at_zero_and_pass_a_whole_pool() -> None:
    distances = parse_distances(DISTANCES, 16)
    assert distances[0] == 0
    assert 16 in distances
    assert distances[-1] > 16


def test_writes_per_pool_of_a_model_without_pools_is_refused() -> None:
    assert writes_per_pool(with_memory(decoder())) == SLOTS // K
    with pytest.raises(InvalidInputError, match="text slots, which are in no pool"):
        writes_per_pool(MemoryModel.attach(decoder()))
