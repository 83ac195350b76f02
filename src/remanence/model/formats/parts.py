"""What a checkpoint is made of, before a model is made of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from remanence.config import MemoryConfig
from remanence.model.lora import TwinLora
from remanence.model.retriever import Retriever, TokenRetriever


@dataclass(frozen=True)
class Checkpoint:
    """The parts of a model with memory.

    Attributes:
        hf: the decoder, adapters in place.
        tensors: the other parameters by name, and `shipped_pool`.
        token_retriever: finds chunks of text memories.
        shipped: makes the long-term memory that a published checkpoint comes with (`longterm(model, rules, layout)`).
    """

    hf: PreTrainedModel
    tokenizer: Any
    config: MemoryConfig
    tensors: Mapping[str, Tensor]
    adapters: TwinLora | None = None
    retriever: Retriever | None = None
    token_retriever: TokenRetriever | None = None
    shipped: Any = None
