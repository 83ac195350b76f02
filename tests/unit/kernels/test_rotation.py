"""Rotation in place gives the bits of the plain one."""

import pytest
import torch

from remanence.kernels.rotation import rotate, rotate_rows


@pytest.mark.parametrize("rotated", [8, 4, 2], ids=["all", "half", "a quarter"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotate_rows_gives_the_bits_of_rotate(rotated: int, dtype: torch.dtype) -> None:
    keys, angles = torch.randn(50, 3, 8, dtype=dtype), torch.randn(70, rotated // 2, dtype=dtype).repeat(1, 2)
    rows, at = torch.randperm(50)[:30], slice(20, 50)
    cos, sin = angles.cos()[at], angles.sin()[at]
    out, scratch = torch.empty(2, 30, 3, 8, dtype=dtype)
    rotate_rows(out, keys, rows, cos, sin, scratch)
    assert torch.equal(out, rotate(keys[rows], cos, sin))
