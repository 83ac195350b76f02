"""Products with a weight, through oneDNN where float32 is multiplied on a CPU and no gradient is wanted.

torch sends float32 products on a CPU to MKL, which leaves half of an AMD processor unused, most of all at the few rows
of a prompt or a decode step. oneDNN, which torch carries too, does not. The weights stay where and as they are.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

_onednn: Any = None
if torch.backends.mkldnn.is_available():
    _onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # what torch.compile calls on CPUs


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # [..., in], [out, in] -> [..., out]
    """`torch.nn.functional.linear`, but for the kernel; results differ by rounding."""
    fits = (
        _onednn is not None
        and not torch.is_grad_enabled()
        and rows.device.type == "cpu"
        and rows.dtype == weight.dtype == torch.float32
        and weight.is_contiguous()  # it copes with others, a thousand times slower
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and rows.numel() > 0
    )
    if not fits:
        return linear(rows, weight, bias)
    made: Tensor = _onednn(rows, weight, bias, "none", [], "")
    return made
