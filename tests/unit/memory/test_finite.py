"""all_finite against isfinite().all()."""

import pytest
import torch

from remanence.memory.finite import all_finite


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_one_number_that_is_not_finite_is_seen_wherever_it_stands(dtype: torch.dtype, bad: float) -> None:
    for size in (1, 7, 64, 1000):
        for at in {0, size // 2, size - 1}:
            numbers = torch.full((size,), torch.finfo(dtype).max, dtype=dtype)
            numbers[::2] = torch.finfo(dtype).min
            assert all_finite(numbers)
            numbers[at] = bad
            assert not all_finite(numbers) and not all_finite(torch.zeros(3), numbers)


def test_no_numbers_and_integers_are_finite() -> None:
    assert all_finite() and all_finite(torch.empty(0), torch.tensor([2**62]))
