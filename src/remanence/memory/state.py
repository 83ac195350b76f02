"""A memory as plain data: one JSON-able header, and tensors by name. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as validated

from remanence.config import LongTermConfig, StorageConfig
from remanence.errors import InvalidInputError
from remanence.memory.spec import MemorySpec
from remanence.memory.writes import WriteRecord

if TYPE_CHECKING:
    from torch import Tensor

_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
Count = Annotated[int, Field(ge=0, lt=2**63)]


@validated(frozen=True, config=_STRICT)
class Frequencies:
    """How often slots count as recalled, in the published code (`published.RecallFrequency`).

    Attributes:
        merge_after: slots written between two merges; until then evicted slots wait in a buffer.
        initial: frequency of a slot that leaves the buffer; at every merge all slots lose `decay`.
    """

    merge_after: int = 15_360
    initial: float = 10.0
    decay: float = 1.0

    def __post_init__(self) -> None:
        if self.merge_after < 1:
            raise InvalidInputError("merge_after must be at least 1")
        if not (isfinite(self.initial) and isfinite(self.decay)):
            raise InvalidInputError("frequency and decay must be finite; a decay of 0 keeps every slot")


@validated(frozen=True, config=_STRICT)
class FrequencyHeader:
    """State of the published policy; each layer's frequencies are a tensor, `longterm.frequency.<layer>`."""

    settings: Frequencies
    waited: Count
    merged: list[Count]


@validated(frozen=True, config=_STRICT)
class LayerHeader:
    """Positions of one layer's long-term slots. Block n holds the positions from n times `rows` on."""

    start: Count
    count: Count


@validated(frozen=True, config=_STRICT)
class LongTermHeader:
    """A long-term memory. Its slots are blocks, named by `block_name`."""

    rules: LongTermConfig
    storage: StorageConfig
    clock: Count
    rows: Count
    layers: list[LayerHeader]
    frequency: FrequencyHeader | None = None

    @staticmethod
    def block_name(layer: int, number: int) -> str:
        return f"layer-{layer:03d}-block-{number:06d}"

    def blocks(self, layer: int) -> range:
        """Numbers of the blocks that a layer has."""
        held = self.layers[layer]
        return range(held.start // self.rows, -(-held.count // self.rows))


@validated(frozen=True, config=_STRICT)
class ChunkHeader:
    """One chunk of a text memory; its ids, latent vector and keys are rows of `chunks.ids`, `.latents` and `.keys`."""

    key: Count
    write: Count
    place: Count
    tokens: Count
    text: str | None = None


@validated(frozen=True, config=_STRICT)
class ChunksHeader:
    """The chunks of a text memory, oldest first. In tiers that keep slots, each write has a block of them."""

    storage: StorageConfig
    head: list[Count] | None
    date: str
    capacity: Count | None
    random: bool
    seed: int
    keep_text: bool
    next_key: Count
    dropped: int
    items: list[ChunkHeader]

    @staticmethod
    def block_name(write: int) -> str:
        return f"write-{write:09d}"


@validated(frozen=True, config=_STRICT)
class MemoryHeader:
    """All of a memory but its tensors.

    Attributes:
        model_name: what the model was called, for people to read.
        most_writes: records of writes at which those without slots are dropped next; None: not yet thought of.
    """

    spec: MemorySpec
    model_name: str
    keep_hidden: bool
    write_count: Count
    next_serial: Count
    writes: list[WriteRecord]
    longterm: LongTermHeader | None = None
    chunks: ChunksHeader | None = None
    most_writes: Count | None = None

    def to_json(self) -> dict[str, Any]:
        made: dict[str, Any] = _HEADER.dump_python(self, mode="json")
        return made

    @classmethod
    def from_json(cls, text: str) -> "MemoryHeader":
        """Raises ValueError where something is missing, unknown, or of another type."""
        try:
            return _HEADER.validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


_HEADER = TypeAdapter(MemoryHeader)


@dataclass(frozen=True)
class MemoryState:
    """A memory as plain data: `Memory.state()` makes it, `Memory.from_state()` takes it.

    Attributes:
        header: everything but tensors.
        tensors: the pool, the random state, what is known of chunks.
        blocks: slots that may be many, in pieces that are looked up one by one: long-term slots of a layer, or the
            slots of a write.
    """

    header: MemoryHeader
    tensors: Mapping[str, "Tensor"]
    blocks: Mapping[str, Mapping[str, "Tensor"]] = field(default_factory=dict)


class Source:
    """Names what a block holds, where that will never change."""


class FrozenBlock(dict[str, "Tensor"]):
    """A block whose tensors will never change. A save that has written them before knows them by their `source`."""

    def __init__(self, tensors: Mapping[str, "Tensor"], source: Source) -> None:
        super().__init__(tensors)
        self.source = source
