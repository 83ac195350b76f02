"""What nobody wrote shows in a test: `tests/conftest.py` sees to it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from tests.support.tiny import decoder

Make = Callable[[torch.dtype], Tensor]
MAKERS: dict[str, Make] = {
    "empty": lambda dtype: torch.empty(2, 3, dtype=dtype),
    "empty_like": lambda dtype: torch.empty_like(torch.zeros(2, 3, dtype=dtype)),
    "new_empty": lambda dtype: torch.zeros(1, dtype=dtype).new_empty(2, 3),
    "empty_strided": lambda dtype: torch.empty_strided((2, 3), (3, 1), dtype=dtype),
    "resize_": lambda dtype: torch.zeros(0, dtype=dtype).resize_(2, 3),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_empty_floats_are_not_numbers(make: Make, dtype: torch.dtype) -> None:
    assert make(dtype).isnan().all()


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.int8])
@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_empty_integers_are_the_largest(make: Make, dtype: torch.dtype) -> None:
    assert (make(dtype) == torch.iinfo(dtype).max).all()


def test_empty_is_filled_in_inference_mode_and_where_a_gradient_is_asked_for() -> None:
    with torch.inference_mode():
        assert torch.empty(3).isnan().all()
    leaf = torch.empty(3, requires_grad=True)
    assert leaf.isnan().all() and leaf.is_leaf
    assert nn.utils.skip_init(nn.Linear, 2, 3).weight.isnan().all()


def test_tensors_without_memory_stay_without() -> None:
    with torch.device("meta"):
        assert torch.empty(3).is_meta and decoder().device.type == "meta"
    with FakeTensorMode():
        assert isinstance(torch.empty(3) + 1, FakeTensor)
