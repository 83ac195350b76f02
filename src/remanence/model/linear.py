"""Linear layers that multiply through `remanence.products`."""

from torch import Tensor, nn

from remanence.products import Packed, multiplies, product


class OneDnnLinear(nn.Linear):
    """`nn.Linear` in every respect but the kernel; results differ by rounding.

    Attributes:
        packed: what `pack` made of the weight; None before it, and from the first call after a change of the weight.
    """

    packed: Packed | None = None

    def forward(self, input: Tensor) -> Tensor:  # [..., in] -> [..., out]
        if self.packed is not None and not self.packed.is_of(self.weight):
            self.packed = None
        return product(input, self.weight, self.bias, self.packed)


def use_onednn(module: nn.Module) -> None:
    """Change the class of every `nn.Linear` inside. Parameters are untouched."""
    for inner in module.modules():
        if type(inner) is nn.Linear:
            inner.__class__ = OneDnnLinear


def pack(module: nn.Module) -> int:
    """Pack the weight of every `OneDnnLinear` inside that oneDNN multiplies; how many these are."""
    layers = [inner for inner in module.modules() if isinstance(inner, OneDnnLinear) and multiplies(inner.weight)]
    for layer in layers:
        layer.packed = Packed(layer.weight)
    return len(layers)
