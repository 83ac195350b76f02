"""Remanence: a latent memory for any decoder-only model in transformers, written in one forward pass.

>>> from remanence import MemoryModel
>>> model = MemoryModel.from_pretrained("path/or/hub-id")
>>> memory = model.new_memory(seed=0)
>>> receipt = model.write(memory, "Alice Brown was born in Oslo.")
>>> model.generate(memory, "Question: Where was Alice Brown born? Answer:", max_new_tokens=4)
"""

from typing import TYPE_CHECKING, Any

from remanence.environment import hush_torchao

if TYPE_CHECKING:
    from remanence.config import MemoryConfig as MemoryConfig
    from remanence.memory.memory import Memory as Memory
    from remanence.model.model import MemoryModel as MemoryModel
    from remanence.store import Store as Store

__all__ = ["Memory", "MemoryConfig", "MemoryModel", "Store", "__version__"]
__version__ = "0.1.0"

hush_torchao()


def __getattr__(name: str) -> Any:
    # torch and transformers take seconds to import, and `remanence --help` must not wait for them.
    if name == "Memory":
        from remanence.memory import Memory

        return Memory
    if name == "MemoryModel":
        from remanence.model.model import MemoryModel

        return MemoryModel
    if name == "MemoryConfig":
        from remanence.config import MemoryConfig

        return MemoryConfig
    if name == "Store":
        from remanence.store import Store

        return Store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
