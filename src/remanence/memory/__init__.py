"""What is remembered: tensors and bookkeeping. Knows no transformers."""

from remanence.memory.memory import Memory, NewSlots, Receipt, WriteRecord, tiled
from remanence.memory.pool import Pool
from remanence.memory.spec import MemorySpec

__all__ = ["Memory", "MemorySpec", "NewSlots", "Pool", "Receipt", "WriteRecord", "tiled"]
