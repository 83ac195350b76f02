"""What is remembered: tensors and bookkeeping. Knows no transformers."""

from remanence.memory.longterm import LongTerm, LongTermLayer, LongTermRules, Retrieved
from remanence.memory.memory import Memory, NewSlots, Receipt, WriteRecord, tiled
from remanence.memory.pool import Pool
from remanence.memory.spec import MemorySpec
from remanence.memory.tiers import Layout, Storage

__all__ = [
    "Layout",
    "LongTerm",
    "LongTermLayer",
    "LongTermRules",
    "Memory",
    "MemorySpec",
    "NewSlots",
    "Pool",
    "Receipt",
    "Retrieved",
    "Storage",
    "WriteRecord",
    "tiled",
]
