"""What is remembered: tensors and bookkeeping. Knows no transformers."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remanence.config import StorageConfig as Storage
    from remanence.memory.longterm import LongTerm as LongTerm
    from remanence.memory.memory import Memory as Memory
    from remanence.memory.pool import NewSlots as NewSlots
    from remanence.memory.pool import Pool as Pool
    from remanence.memory.spec import MemorySpec as MemorySpec
    from remanence.memory.state import MemoryState as MemoryState
    from remanence.memory.writes import Receipt as Receipt
    from remanence.memory.writes import WriteRecord as WriteRecord

_HOMES = {
    "LongTerm": "longterm",
    "Memory": "memory",
    "MemorySpec": "spec",
    "MemoryState": "state",
    "NewSlots": "pool",
    "Pool": "pool",
    "Receipt": "writes",
    "WriteRecord": "writes",
}
__all__ = [*sorted(_HOMES), "Storage"]


def __getattr__(name: str) -> Any:
    # What a file says about itself is read without torch, which takes seconds to import.
    from importlib import import_module

    if name == "Storage":
        return import_module("remanence.config").StorageConfig
    if name in _HOMES:
        return getattr(import_module(f"remanence.memory.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
