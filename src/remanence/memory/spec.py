"""What a memory must agree on with the model that reads it. Imports no torch."""

from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any, Self

from remanence.config import WriterName, check_slots
from remanence.errors import InvalidInputError, MemoryMismatchError

if TYPE_CHECKING:
    import torch

KEYS_BY = "; keys by "
_DTYPES = ("float64", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class MemorySpec:
    """Shape, dtype and origin of a memory.

    Attributes:
        layers: L, of the decoder.
        slots: N, slots in each layer's pool; 0 for text memories.
        slots_per_write: K, slots that one chunk makes and evicts; 0 for text memories.
        hidden_size: d, of a slot in hidden form.
        kv_heads, head_dim: of a slot in K/V form: `2 * kv_heads * head_dim` numbers.
        dtype: of all slots, as `torch` spells it (`"float32"`).
        shared_eviction: one draw for all layers instead of one per layer.
        model: fingerprint of the weights that made its slots.
        retrieval_size: of a slot's or chunk's retrieval key; 0 if there are none.
        writer: what made its slots: "learned" or "text".
        retrieval: what made its retrieval keys; "" where that is part of `model`. Of a text memory: how latent vectors
            are made, and behind `KEYS_BY` what made the keys of tokens, if anything did. Those are made anew where it
            was another, so memories may differ in it.
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
    writer: WriterName = "learned"
    retrieval: str = ""

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            raise InvalidInputError(f"slots are {', '.join(_DTYPES)}, not {self.dtype!r}")
        if self.writer == "learned":
            check_slots(self.slots, self.slots_per_write)

    @property
    def torch_dtype(self) -> "torch.dtype":
        import torch

        dtype = getattr(torch, self.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype

    def differing(self, other: Self) -> list[str]:
        """The names of the fields that keep a model of this spec from reading a memory of `other`."""
        return [each.name for each in fields(self) if self._fixed(each.name) != other._fixed(each.name)]

    def _fixed(self, name: str) -> Any:
        value = getattr(self, name)
        return value.partition(KEYS_BY)[0] if name == "retrieval" else value

    def require(self, other: Self) -> None:
        """Raise `MemoryMismatchError` that lists every field in which a memory (`other`) differs from this model's."""
        names = {"model": "model (weights fingerprint)"}
        differing = [
            f"{names.get(name, name)}: the memory has {getattr(other, name)}, the model {getattr(self, name)}"
            for name in self.differing(other)
        ]
        if differing:
            raise MemoryMismatchError(
                "this memory was written by another model; load the model that wrote it, "
                "or start a new memory with model.new_memory(). " + "; ".join(differing)
            )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
