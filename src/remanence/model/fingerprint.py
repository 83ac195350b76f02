"""Which model a memory belongs to: a digest of its parameters."""

import hashlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from remanence.errors import UnsupportedModelError

_SAMPLED = 61  # numbers of each parameter


class Fingerprint:
    """The digest of a model, made anew when a parameter was changed, replaced or moved.

    Attributes:
        stamp: differs after every change, also where the digest's sample does not.
    """

    def __init__(self) -> None:
        self.stamp, self._digest = -1, ""

    def of(self, model: nn.Module, kind: str) -> str:
        """Of names, shapes and a sample of values; `kind` tells apart what has the same parameters.

        A quantized parameter counts by the tensors that it is packed into. Tied parameters count once.

        Raises:
            UnsupportedModelError: a parameter is sharded over processes, of which each sees its part only.
        """
        stamp = _stamp(model)
        if stamp != self.stamp:
            digest = hashlib.blake2b(kind.encode(), digest_size=16)
            for name, parameter in model.named_parameters():
                for stored, tensor in _stored(name, parameter):
                    flat = tensor.detach().reshape(-1)
                    sample = _numbers(flat[:: max(1, flat.numel() // _SAMPLED)]).cpu()
                    digest.update(f"{stored}{list(tensor.shape)}".encode() + sample.numpy().tobytes())
            self.stamp, self._digest = stamp, digest.hexdigest()
        return self._digest


def _stored(name: str, tensor: Any) -> Iterator[tuple[str, Tensor]]:
    """A plain tensor by its name; of one that is packed into others, as quantized ones are, each of these."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    if hasattr(tensor, "full_tensor"):
        raise UnsupportedModelError(
            f"the parameter {name} is sharded over processes, and a memory belongs to a whole model; save the model "
            "with save_pretrained, and load it to write and read"
        )
    for part in tensor.__tensor_flatten__()[0]:
        yield from _stored(f"{name}.{part}", getattr(tensor, part))


def _numbers(sample: Tensor) -> Tensor:  # [n], any dtype -> float32
    try:
        return sample.float()
    except RuntimeError:  # numbers of less than a byte have no conversion; what they are packed into has
        return sample.view(torch.uint8).float()


def _stamp(model: nn.Module) -> int:
    """Over `model.parameters()`, which takes several times as long to walk: this is done at every prompt."""
    seen: list[tuple[int, int]] = []
    modules: list[nn.Module | None] = [model]
    while modules:
        if (module := modules.pop()) is not None:
            for parameter in module._parameters.values():
                if type(parameter) is nn.Parameter:
                    seen.append((parameter._version, parameter.data_ptr()))
                elif parameter is not None:
                    seen += [(part._version, part.data_ptr()) for part in _parts(parameter)]
            modules += module._modules.values()
    return hash(tuple(seen))


def _parts(tensor: Any) -> Iterator[Tensor]:
    """The tensors that one is packed into; itself if it is not."""
    names = tensor.__tensor_flatten__()[0] if hasattr(tensor, "__tensor_flatten__") else ()
    for name in names:
        yield from _parts(getattr(tensor, name))
    if not names:
        yield tensor
