"""Sizes to compare at, and a random model of one, laid out as the published code saves its own."""

import itertools
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM


def config_of(
    layers: int, d: int, inner: int, heads: int, shared: int, k: int, blocks: int, v: int = 32000
) -> dict[str, Any]:
    kind = {"architectures": ["MemoryLLM"], "model_type": "memoryllm", "torch_dtype": "float32"}
    shape = {"num_hidden_layers": layers, "hidden_size": d, "intermediate_size": inner, "vocab_size": v}
    shape |= {"num_attention_heads": heads, "num_key_value_heads": shared, "max_position_embeddings": 16384}
    pool = {"num_tokens": k, "num_blocks": blocks, "num_memory_tokens": k * blocks, "drop_memory_per_layer": True}
    rest = {"add_bos_embedding": True, "add_decoder_lora": False, "lora_config": None, "eos_token_id": None}
    return {**kind, **shape, **pool, **rest}


SIZES = {
    "512": config_of(8, 512, 1408, 8, 2, 64, 30),  # four heads share keys and values, as in memoryllm-8b
    "512-own": config_of(8, 512, 1408, 8, 8, 64, 30),  # each has its own, as in memoryllm-7b
    # Some layers of memoryllm-8b, with its whole pool and a fourth of its vocabulary.
    **{f"8b-{layers}": config_of(layers, 4096, 14336, 32, 8, 256, 50) for layers in (2, 4, 8, 12, 16, 24, 32)},
}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    layers, slots, d = (config[name] for name in ("num_hidden_layers", "num_memory_tokens", "hidden_size"))
    with torch.device("meta"):
        decoder = {name: tuple(p.shape) for name, p in LlamaForCausalLM(LlamaConfig(**config)).state_dict().items()}
    pool = {"memory": (layers, slots, d), "bos_embedding": (layers, 1, d), "new_memory_positional_emb": (1, 1, d)}
    return {**decoder, **pool, "initialized": ()}


def needed(config: dict[str, Any]) -> float:
    """Bytes that a side takes in float32, by arithmetic: weights and hidden pool; keys and values of all slots, in
    memory and prefix; ten rows a slot, while a layer is projected; 3 GB for code, system and a file being loaded."""
    layers, slots, d = (config[name] for name in ("num_hidden_layers", "num_memory_tokens", "hidden_size"))
    held = sum(torch.Size(shape).numel() for shape in shapes(config).values())
    projected = 2 * layers * slots * d * config["num_key_value_heads"] // config["num_attention_heads"]
    return 4.0 * (held + 2 * projected + 10 * slots * d) + 3e9


def largest(limit: float) -> str:
    """The name of the largest size that fits into so many bytes."""
    return [name for name, config in SIZES.items() if needed(config) <= limit][-1]


def make(config: dict[str, Any], folder: Path) -> None:
    """Save a random model, whose attention is not flat, so that a slot out of place shows; a file for each layer."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    generator, places = torch.Generator().manual_seed(0), dict[str, str]()
    for _, named in itertools.groupby(shapes(config).items(), key=lambda item: item[0].split(".")[2:3]):
        file = {}
        for name, shape in named:
            fan_in = shape[-1] if name.endswith(("proj.weight", "lm_head.weight")) else 1
            ones = torch.ones(shape, dtype=torch.float32 if shape else torch.uint8)  # norms, and that there is a pool
            file[name] = torch.randn(shape, generator=generator).div_(fan_in**0.5) if len(shape) > 1 else ones
        places |= dict.fromkeys(file, target := f"model-{len(places):05}.safetensors")
        save_file(file, folder / target, metadata={"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
