"""Linear layers that multiply float32 through oneDNN when no gradient is wanted.

torch sends float32 products on a CPU to MKL, which leaves half of an AMD processor unused, most of all at the few rows
of a prompt or a decode step. oneDNN, which torch carries too, does not. The weights stay where and as they are.
"""

from typing import Any

import torch
from torch import Tensor, nn

_product: Any = None
if torch.backends.mkldnn.is_available():
    _product = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # what torch.compile calls on CPUs


class OneDnnLinear(nn.Linear):
    """`nn.Linear` in every respect but the kernel; results differ by rounding."""

    def forward(self, input: Tensor) -> Tensor:  # [..., in] -> [..., out]
        plain = (
            torch.is_grad_enabled()
            or input.device.type != "cpu"
            or input.dtype != torch.float32
            or self.weight.dtype != torch.float32
            or torch.is_autocast_enabled("cpu")
            or torch.compiler.is_compiling()
            or input.numel() == 0
        )
        if plain:
            return super().forward(input)
        product: Tensor = _product(input, self.weight, self.bias, "none", [], "")
        return product


def use_onednn(module: nn.Module) -> None:
    """Change the class of every `nn.Linear` inside, where this torch has oneDNN. Parameters are untouched."""
    if _product is None:
        return
    for inner in module.modules():
        if type(inner) is nn.Linear:
            inner.__class__ = OneDnnLinear
