"""What a memory must agree on with the model that reads it."""

from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import torch

from remanence.errors import InvalidInputError, MemoryMismatchError


@dataclass(frozen=True)
class MemorySpec:
    """Shape, dtype and origin of a memory.

    Attributes:
        layers: L, one pool per decoder layer.
        slots: N, slots in each layer's pool.
        slots_per_write: K, slots that one write makes and evicts.
        hidden_size: d, of a slot in hidden form.
        kv_heads, head_dim: of a slot in K/V form: `2 * kv_heads * head_dim` numbers.
        dtype: of all slots, as `torch` spells it (`"float32"`).
        shared_eviction: one draw for all layers instead of one per layer.
        model: fingerprint of the weights that wrote it.
        retrieval_size: of a slot's retrieval key; 0 if the model has no retriever.
    """

    layers: int
    slots: int
    slots_per_write: int
    hidden_size: int
    kv_heads: int
    head_dim: int
    dtype: str
    shared_eviction: bool
    model: str
    retrieval_size: int = 0

    def __post_init__(self) -> None:
        n, k = self.slots, self.slots_per_write
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise InvalidInputError(f"{self.dtype!r} is no dtype of torch; take one such as 'bfloat16'")
        if not 0 < k <= n:
            raise InvalidInputError(f"slots_per_write K={k} must be between 1 and slots N={n}")
        if n % k:
            raise InvalidInputError(
                f"slots N={n} is not a multiple of slots_per_write K={k}; take N={n - n % k} or N={n - n % k + k}"
            )

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def require(self, other: Self) -> None:
        """Raise `MemoryMismatchError` that lists every field in which a memory (`other`) differs from this model's."""
        names = {"model": "model (weights fingerprint)"}
        differing = [
            f"{names.get(f.name, f.name)}: the memory has {getattr(other, f.name)}, the model {getattr(self, f.name)}"
            for f in fields(self)
            if getattr(self, f.name) != getattr(other, f.name)
        ]
        if differing:
            raise MemoryMismatchError(
                "this memory was written by another model; load the model that wrote it, "
                "or start a new memory with model.new_memory(). " + "; ".join(differing)
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
