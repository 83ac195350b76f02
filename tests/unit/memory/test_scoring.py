"""Scores of slots and of chunks."""

import pytest
import torch

from remanence.memory.scoring import best, fused, mean_sigmoid


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mean_sigmoid_tells_slots_apart_by_one_token_of_many(dtype: torch.dtype) -> None:
    queries, keys = torch.zeros(300, 2, dtype=dtype), torch.tensor([[-4, 0], [4, 0], [0, 9]], dtype=dtype)
    queries[7, 0] = 1
    scores = mean_sigmoid(queries, keys)
    expected = torch.tensor([-4.0, 4.0, 0.0]).sigmoid() / 300 + 0.5 * 299 / 300
    torch.testing.assert_close(scores, expected, atol=2e-5, rtol=0)
    assert scores.argsort().tolist() == [0, 2, 1]


def test_mean_sigmoid_of_nothing_is_nothing() -> None:
    assert mean_sigmoid(torch.zeros(3, 2), torch.zeros(0, 2)).shape == (0,)


@pytest.mark.parametrize(("wanted", "expected"), [(0, []), (1, [1]), (2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3])])
def test_best_takes_the_first_of_equal_scores(wanted: int, expected: list[int]) -> None:
    assert best(torch.tensor([0.2, 0.9, 0.2, 0.9]), wanted).tolist() == expected


def test_fused_lies_between_0_and_1_and_grows_with_either_score() -> None:
    steps = [step / 10 for step in range(11)]
    both = [[fused(lexical, latent) for latent in steps] for lexical in steps]
    alone = [fused(None, latent) for latent in steps]
    for scores in (*both, *zip(*both, strict=True), alone):
        assert scores[0] > 0 and list(scores) == sorted(set(scores)) and scores[-1] < 1
