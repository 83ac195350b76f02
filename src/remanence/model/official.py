"""The published MemoryLLM checkpoints (github.com/wangyu-ustc/MemoryLLM), onto a stock Llama."""

import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from remanence.errors import CheckpointError
from remanence.model.adapters import add_twin_lora

if TYPE_CHECKING:
    from remanence.model.memory_model import MemoryModel

OURS = {
    "architectures",
    "model_type",
    "auto_map",
    "add_bos_embedding",
    "add_decoder_lora",
    "drop_memory_per_layer",
    "lora_config",
    "num_blocks",
    "num_memory_tokens",
    "num_tokens",
    "torch_dtype",
    "dtype",
    "transformers_version",
}


def load(
    path: Path,
    *,
    tokenizer: Any = None,
    keep_hidden: bool = False,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> "MemoryModel":
    """Build a `MemoryModel` from a directory with `architectures: ["MemoryLLM"]` in its config.json.

    Weights are read from `*.safetensors`, sharded or not, else from `*.bin` (without unpickling code).

    Raises:
        CheckpointError: a file or tensor is missing, damaged or of the wrong shape.
    """
    from remanence.model.checkpoint import adopt
    from remanence.model.memory_model import MemoryModel

    config = json.loads((path / "config.json").read_text())
    try:
        slots, k = config["num_blocks"] * config["num_tokens"], config["num_tokens"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path / 'config.json'} lacks num_blocks or num_tokens") from error
    weights = read_weights(path)
    settings = config.get("lora_config")
    lora = {name: weights.pop(name) for name in list(weights) if ".lora_" in name}
    weights = {name.replace(".base_layer.", "."): tensor for name, tensor in weights.items()}
    ours = {name: weights.pop(name, None) for name in ("memory", "bos_embedding", "new_memory_positional_emb")}
    initialized = weights.pop("initialized", None)
    dtype = dtype or _dtype(config, weights)
    hf = _llama(config, weights, dtype, attn_implementation)
    adapters = None
    if settings is not None:
        read = "decoder_adapter" if config.get("add_decoder_lora") else "default"
        adapters = add_twin_lora(hf, settings, lora, write="default", read=read)
        if dtype is not None:
            hf.to(dtype)
    elif lora:
        raise CheckpointError("the checkpoint holds LoRA weights, but config.json has no lora_config")
    model = MemoryModel(
        hf,
        tokenizer,
        slots=slots,
        slots_per_write=k,
        bos=bool(config.get("add_bos_embedding", False)),
        eviction="per_layer" if config.get("drop_memory_per_layer") else "shared",
        keep_hidden=keep_hidden,
        adapters=adapters,
    )
    tensors = {name: tensor for name, tensor in ours.items() if tensor is not None}
    if "memory" not in tensors:
        raise CheckpointError(f"{path} lacks the tensor memory, the pool of a MemoryLLM checkpoint")
    pool = tensors.pop("memory")
    if initialized is None or int(initialized) != 0:
        tensors["shipped_pool"] = pool
    adopt(model, tensors)
    return model


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a directory's weight files.

    Raises:
        CheckpointError: there are none, or one is damaged, or an index names a file that is missing.
    """
    for index in (*path.glob("*.safetensors.index.json"), *path.glob("*.bin.index.json")):
        try:
            named = set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{index} is damaged: it does not say which file holds which tensor") from error
        if missing := sorted(name for name in named if not (path / name).is_file()):
            raise CheckpointError(f"{index} names {missing[0]}, which is not there; {len(missing)} files are missing")
    files = sorted(path.glob("model*.safetensors")) or sorted(path.glob("*.safetensors"))
    pickled = not files
    files = files or sorted(path.glob("pytorch_model*.bin"))
    if not files:
        raise CheckpointError(f"{path} holds no weights: neither *.safetensors nor pytorch_model*.bin")
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= torch.load(file, map_location="cpu", weights_only=True) if pickled else load_file(file)
        except (SafetensorError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{file} is truncated or damaged: {error}") from error
    return weights


def _llama(
    config: dict[str, Any], weights: dict[str, Tensor], dtype: torch.dtype | None, attn_implementation: str | None
) -> LlamaForCausalLM:
    llama = LlamaConfig(**{name: value for name, value in config.items() if name not in OURS})
    with torch.device("meta"):
        expected = {name: tuple(p.shape) for name, p in LlamaForCausalLM(llama).state_dict().items()}
    if llama.tie_word_embeddings and "lm_head.weight" not in weights:
        expected.pop("lm_head.weight", None)
    held = {name: tuple(tensor.shape) for name, tensor in weights.items() if not name.endswith("rotary_emb.inv_freq")}
    for name in sorted(expected):
        if name not in held:
            raise CheckpointError(f"the checkpoint lacks {name}")
        if held[name] != expected[name]:
            raise CheckpointError(f"{name} has shape {list(held[name])}, config.json makes it {list(expected[name])}")
    hf = LlamaForCausalLM.from_pretrained(
        None,
        config=llama,
        state_dict={name: weights[name] for name in expected},
        dtype=dtype or torch.float32,
        attn_implementation=attn_implementation,
    )
    assert isinstance(hf, LlamaForCausalLM)
    return hf


def _dtype(config: dict[str, Any], weights: dict[str, Tensor]) -> torch.dtype | None:
    named = config.get("torch_dtype") or config.get("dtype")
    if named is not None:
        found = getattr(torch, str(named).removeprefix("torch."), None)
        return found if isinstance(found, torch.dtype) else None
    embedding = weights.get("model.embed_tokens.weight")
    return None if embedding is None else embedding.dtype
