"""Linear layers that multiply through `remanence.products`."""

from torch import Tensor, nn

from remanence.products import product


class OneDnnLinear(nn.Linear):
    """`nn.Linear` in every respect but the kernel; results differ by rounding."""

    def forward(self, input: Tensor) -> Tensor:  # [..., in] -> [..., out]
        return product(input, self.weight, self.bias)


def use_onednn(module: nn.Module) -> None:
    """Change the class of every `nn.Linear` inside. Parameters are untouched."""
    for inner in module.modules():
        if type(inner) is nn.Linear:
            inner.__class__ = OneDnnLinear
