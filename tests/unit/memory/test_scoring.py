"""A slot's score tells it from others by one token of a long prompt, in any dtype."""

import pytest
import torch

from remanence.memory.scoring import mean_sigmoid


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_slots_that_one_token_of_many_tells_apart_score_apart(dtype: torch.dtype) -> None:
    queries, keys = torch.zeros(300, 2, dtype=dtype), torch.tensor([[-4, 0], [4, 0], [0, 9]], dtype=dtype)
    queries[7, 0] = 1
    scores = mean_sigmoid(queries, keys)
    expected = torch.tensor([-4.0, 4.0, 0.0]).sigmoid() / 300 + 0.5 * 299 / 300
    torch.testing.assert_close(scores, expected, atol=2e-5, rtol=0)
    assert scores.argsort().tolist() == [0, 2, 1]
