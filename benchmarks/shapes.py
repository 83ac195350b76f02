"""Random Llamas of some shapes, with pools to measure them with, and the options that choose one."""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from remanence import Memory, MemoryModel
from remanence.kernels.optimize import optimize_for_cpu

PROMPT = 32
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def llama(
    vocabulary: int, size: int, intermediate: int, layers: int, heads: int, kv_heads: int, positions: int, **more: Any
) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=size,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=positions,
        **more,
    )


@dataclass(frozen=True)
class Shape:
    """A random Llama, and the pool to measure it with: N slots, K per write."""

    layers: int
    size: int
    intermediate: int
    heads: int
    kv_heads: int
    slots: int
    slots_per_write: int
    vocabulary: int = 32000
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    @property
    def head(self) -> int:
        return self.size // self.heads

    def decoder(self) -> Any:
        torch.manual_seed(0)
        sizes = self.vocabulary, self.size, self.intermediate, self.layers, self.heads, self.kv_heads, 4 * self.slots
        config = llama(*sizes, dtype=self.dtype)
        with torch.device(self.device):
            return AutoModelForCausalLM.from_config(config, dtype=self.dtype).eval()

    def plain(self) -> Any:
        """A decoder without memory, by the kernels that an optimized model with memory has."""
        made = self.decoder()
        optimize_for_cpu(made)
        return made

    def model(self, slots: int | None = None, **settings: Any) -> MemoryModel:
        slots = self.slots if slots is None else slots
        return MemoryModel.attach(self.decoder(), slots=slots, slots_per_write=self.slots_per_write, **settings)

    def random(self, *shape: int, seed: int = 0) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype)

    def prompt(self, seed: int = 0, tokens: int = PROMPT) -> Tensor:
        ids = torch.randint(3, self.vocabulary, (tokens,), generator=torch.Generator().manual_seed(seed))
        return ids.to(self.device)

    def filled(self, model: MemoryModel, seed: int = 0) -> tuple[Memory, Tensor]:  # and its hidden slots [L, N, d]
        slots = self.random(self.layers, model.slots, self.size, seed=seed)
        return model.memory_from_slots(slots, seed), slots


SHAPES = {
    "tiny": Shape(2, 32, 48, 4, 2, slots=48, slots_per_write=12, vocabulary=64),
    "small": Shape(8, 512, 1376, 8, 2, slots=1920, slots_per_write=60),
    "8b": Shape(32, 4096, 14336, 32, 8, slots=12800, slots_per_write=256, vocabulary=128256),
}


@dataclass(frozen=True)
class Shaped:
    """Options of a benchmark that times such a Llama."""

    shape: Literal["tiny", "small", "8b"] = "small"
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    threads: int = 2
    repeats: int = field(default=25, metadata={"help": "samples of each short measure"})

    @property
    def on(self) -> Shape:
        return replace(SHAPES[self.shape], device=self.device, dtype=getattr(torch, self.dtype))

    @property
    def few(self) -> int:
        """Samples of a long measure."""
        return min(self.repeats, max(5, self.repeats // 3))
