"""What one training step will take of memory, told before any of it is allocated.

A step runs on fake tensors, which have shapes and no data, while every storage that comes and goes is counted: so
activations and what passes through are those of the model at hand, not of a formula. State and gradients follow from
the method.
"""

from collections.abc import Callable, Container
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import linear
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    PretrainedConfig,
)
from transformers.pytorch_utils import Conv1D

from remanence.optim.counting import LiveBytes
from remanence.optim.groups import grass_param_groups, layers_of
from remanence.optim.layers import PROXY
from remanence.optim.projection import Projection
from remanence.optim.refresh import SPREAD
from remanence.optim.subspace import EXTRA

Method = Literal["adamw", "galore", "lora", "grass"]
METHODS: tuple[Method, ...] = get_args(Method)


def _llama(size: int, intermediate: int, layers: int, heads: int, **more: Any) -> LlamaConfig:
    sizes = {"hidden_size": size, "intermediate_size": intermediate, "num_hidden_layers": layers}
    return LlamaConfig(**sizes, num_attention_heads=heads, **{"vocab_size": 32000, **more})


MODELS: dict[str, Callable[[], PretrainedConfig]] = {
    "llama-60m": lambda: _llama(512, 1376, 8, 8),
    "llama-350m": lambda: _llama(1024, 2736, 24, 16),
    "llama-1b": lambda: _llama(2048, 5461, 24, 32),
    "llama-7b": lambda: _llama(4096, 11008, 32, 32),
    "llama-13b": lambda: _llama(5120, 13824, 40, 40),
    "llama-3.1-8b": lambda: _llama(4096, 14336, 32, 32, num_key_value_heads=8, vocab_size=128256),
}


@dataclass(frozen=True)
class Plan:
    """Bytes at the moment of a step when most are in use.

    Attributes:
        weights: of the model. gradients: when all are there. state: of the optimizer, and what else stays from
            step to step.
        activations: kept for the backward pass when the forward pass ends.
        transient: what the peak is above all of these. It may lie in a pass, when gradients are not all there yet, or
            in the optimizer, when activations are gone, so that it can be less than nothing.
        refresh: what a step on which rows or subspaces are chosen anew takes more.
    """

    weights: int
    gradients: int
    state: int
    activations: int
    transient: int
    refresh: int

    @property
    def total(self) -> int:
        """The peak of a usual step."""
        return self.weights + self.gradients + self.state + self.activations + self.transient


def configuration(name: str) -> PretrainedConfig:
    """A named size of Llama, or what a directory or a repository on the hub says in its config.json.

    Raises:
        ValueError: neither; or of a model that is no decoder.
    """
    if name in MODELS:
        return MODELS[name]()
    try:
        config = AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{name} is no model known by name ({', '.join(MODELS)}), and no directory or repository with a config.json"
        ) from error
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{name} is of type {config.model_type}, which is no decoder (a causal language model)")
    return config


def plan(
    config: PretrainedConfig,
    method: Method,
    *,
    rank: int = 128,
    tokens: int = 256,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    checkpointing: bool = False,
) -> Plan:
    """Memory of one step of training a model of this configuration on text.

    Args:
        rank: of the projection, or of LoRA on all linear layers.
        tokens: in each sequence; batch: sequences per micro-batch.
        dtype: of weights and activations. Moments: of this dtype too (AdamW, GaLore), float32 (Grass; LoRA's adapters).
        checkpointing: keep only the inputs of layers for the backward pass.

    Raises:
        ValueError: an unknown method, numbers below one, or a rank above the sides of all layers.
    """
    if min(rank, tokens, batch) < 1:
        raise ValueError("rank, tokens and batch are at least 1")
    with FakeTensorMode():
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
        add_adapters(model, method, rank)
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.train()
        ids = torch.zeros(batch, tokens, dtype=torch.long)
        return plan_step(model, method, rank, lambda: model(input_ids=ids, labels=ids, use_cache=False).loss)


def add_adapters(model: Any, method: Method, rank: int, twins: int = 1, but: Container[str] = ()) -> "Adapters | None":
    """LoRA's adapters, on fake tensors, where the method has some: `twins` at each linear layer but those of a name."""
    if method not in METHODS:
        raise ValueError(f"method is one of {', '.join(METHODS)}, not {method!r}")
    return Adapters(model, rank, twins, but) if method == "lora" else None


def plan_step(
    model: Any, method: Method, rank: int, loss_of: Callable[[], Tensor], decoder: Any = None, kept: int = 0
) -> Plan:
    """Memory of a step of a model that has its adapters, on fake tensors.

    Args:
        loss_of: the forward pass.
        decoder: the part that low-rank methods work on; None: the whole model, but its output layer.
        kept: bytes of what else stays between steps.
    """
    decoder = model if decoder is None else decoder
    shapes = _matrices(decoder)
    projections: list[Projection] = []
    if method == "grass":
        projections = grass_param_groups(decoder, rank=rank)[0]["projections"]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = sum(p.nbytes for name, p in model.named_parameters() if PROXY not in name)  # proxies are first moments
    with LiveBytes(model) as live:
        loss = loss_of()
        activations = live.now - live.before
        loss.backward()
    gradients = sum(p.grad.nbytes for p in trained if p.grad is not None)
    state = kept + _state(method, trained, shapes, rank) + sum(_basis(one) for one in projections)
    scratch = max(p.numel() for p in trained) * 4 * (2 if method == "grass" else 1)
    passes = live.peak + state - (live.before - weights)
    peak = max(passes, weights + gradients + state + scratch)
    refresh = _refresh(method, shapes, projections)
    return Plan(weights, gradients, state, activations, peak - weights - gradients - state - activations, refresh)


def _state(method: Method, trained: list[nn.Parameter], shapes: list[torch.Size], rank: int) -> int:
    if method == "grass":
        return sum(8 * p.numel() for p in trained)
    if method == "galore":
        projected = sum(shape.numel() for shape in shapes)
        full = sum(p.numel() for p in trained) - projected
        size = trained[0].itemsize
        return size * (2 * full + sum(min(rank, *shape) * (2 * max(shape) + min(shape)) for shape in shapes))
    return sum(2 * p.nbytes for p in trained)


def _basis(projection: Projection) -> int:
    """Bytes of directions; of experts there are none."""
    return 4 * projection.rank * projection.candidates if projection.weight.ndim == 2 else 0


def _matrices(model: Any) -> list[torch.Size]:
    """Shapes of what low-rank methods work on: linear layers but the head, each expert by itself."""
    found = []
    for _, module, name in layers_of(model):
        weight = module.get_parameter(name)
        if module is not model.get_output_embeddings():
            found += [weight.shape[-2:]] * (len(weight) if weight.ndim == 3 else 1)
    return found


def _refresh(method: Method, shapes: list[torch.Size], projections: list[Projection]) -> int:
    if method == "grass":  # probes, the sketch, and its gradient, of the layers whose turn it is
        each = [4 * (one.rank + EXTRA) * (one.contracted + 2 * one.candidates) for one in projections]
        return max(sum(each[phase::SPREAD]) for phase in range(SPREAD))
    if method == "galore":  # one layer's gradient in float32, and its singular vectors
        return max(8 * (shape.numel() + min(shape) ** 2) for shape in shapes)
    return 0


class Adapters:
    """LoRA in float32 beside all linear layers but the head, as peft keeps it; all else is frozen.

    Attributes:
        acting: which of the twins acts.
    """

    def __init__(self, model: Any, rank: int, twins: int, but: Container[str]) -> None:
        self.acting = 0
        model.requires_grad_(False)
        for name, module in list(model.named_modules()):
            if module is model.get_output_embeddings() or name.rpartition(".")[2] in but:
                continue
            if isinstance(module, (nn.Linear, Conv1D)):
                out, into = module.weight.shape if isinstance(module, nn.Linear) else module.weight.shape[::-1]
                for twin in range(twins):
                    module.register_parameter(f"lora_a{twin}", nn.Parameter(torch.zeros(rank, into)))
                    module.register_parameter(f"lora_b{twin}", nn.Parameter(torch.zeros(out, rank)))
                module.register_forward_hook(self._adapted)
            elif isinstance(module, nn.Embedding):  # checkpointing needs an input with a gradient
                module.register_forward_hook(lambda _module, _args, out: out.requires_grad_())

    def _adapted(self, module: nn.Module, args: tuple[Tensor], out: Tensor) -> Tensor:
        down, up = (module.get_parameter(f"lora_{side}{self.acting}") for side in "ab")
        return out + linear(linear(args[0].float(), down), up).to(out.dtype)
