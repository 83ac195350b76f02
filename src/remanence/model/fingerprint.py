"""Which model a memory belongs to: a digest of its parameters."""

import hashlib

from torch import nn

_SAMPLED = 61  # numbers of each parameter


class Fingerprint:
    """The digest of a model, made anew when a parameter was changed, replaced or moved.

    Attributes:
        stamp: differs after every change, also where the digest's sample does not.
    """

    def __init__(self) -> None:
        self.stamp, self._digest = -1, ""

    def of(self, model: nn.Module, kind: str) -> str:
        """Of names, shapes and a sample of values; `kind` tells apart what has the same parameters."""
        stamp = _stamp(model)
        if stamp != self.stamp:
            digest = hashlib.blake2b(kind.encode(), digest_size=16)
            for name, parameter in model.named_parameters():
                flat = parameter.detach().reshape(-1)
                sample = flat[:: max(1, flat.numel() // _SAMPLED)].float().cpu()
                digest.update(f"{name}{list(parameter.shape)}".encode() + sample.numpy().tobytes())
            self.stamp, self._digest = stamp, digest.hexdigest()
        return self._digest


def _stamp(model: nn.Module) -> int:
    """Over `model.parameters()`, which takes several times as long to walk: this is done at every prompt."""
    seen: list[tuple[int, int]] = []
    modules: list[nn.Module | None] = [model]
    while modules:
        if (module := modules.pop()) is not None:
            seen += [(p._version, p.data_ptr()) for p in module._parameters.values() if p is not None]
            modules += module._modules.values()
    return hash(tuple(seen))
