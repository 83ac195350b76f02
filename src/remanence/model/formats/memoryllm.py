"""The published MemoryLLM and M+ checkpoints (github.com/wangyu-ustc/MemoryLLM), onto a stock Llama."""

import json
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from remanence.config import LongTermConfig, MemoryConfig
from remanence.errors import CheckpointError
from remanence.memory.longterm import LongTerm, LongTermLayer
from remanence.memory.published import RecallFrequency
from remanence.memory.state import Frequencies
from remanence.memory.storage import Layout
from remanence.memory.undo import Undo
from remanence.model.decoder import MemoryDecoder
from remanence.model.formats.parts import Checkpoint
from remanence.model.lora import add_twin_lora
from remanence.model.retriever import Retriever

ARCHITECTURES = ("MemoryLLM", "MPlus")
OURS = {
    "architectures",
    "model_type",
    "auto_map",
    "add_bos_embedding",
    "add_decoder_lora",
    "add_encoder_retriever",
    "add_selector",
    "decay_frequency",
    "detach_hidden_state",
    "drop_memory_per_layer",
    "initial_rf_when_moving_stm_to_ltm",
    "lora_config",
    "ltm_initial_size",
    "map_from_hidden_states",
    "num_blocks",
    "num_ltm_blocks",
    "num_memory_tokens",
    "num_selector_layers",
    "num_tokens",
    "selector_hidden_dim",
    "update_ltm_frequency",
    "update_ltm_mode",
    "torch_dtype",
    "dtype",
    "transformers_version",
}

PROJECTOR = re.compile(r"model\.layers\.\d+\.self_attn\.(encoder_)?(query|key)_proj(\.\d+)?\.weight")


def load(
    path: Path,
    tokenizer: Any = None,
    keep_hidden: bool = False,
    *,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
) -> Checkpoint:
    """Read a directory with `architectures: ["MemoryLLM"]`, or "MPlus", in its config.json.

    Weights are read from `*.safetensors`, sharded or not, else from `*.bin` (without unpickling code).

    Raises:
        CheckpointError: a file or tensor is missing, damaged or of the wrong shape.
    """
    config = json.loads((path / "config.json").read_text())
    plus = config["architectures"] == ["MPlus"]
    try:
        k = config["num_tokens"]
        blocks = config["num_blocks"] - (config["num_ltm_blocks"] if plus else 0)
        longterm = None
        if plus and config["num_ltm_blocks"]:
            depth, size = int(config.get("num_selector_layers", 2)), int(config["selector_hidden_dim"])
            longterm = LongTermConfig(retrieved=config["num_ltm_blocks"] * k, key_size=size, key_layers=depth)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path / 'config.json'} lacks {error}") from error
    weights = read_weights(path)
    settings = config.get("lora_config")
    lora = {name: weights.pop(name) for name in list(weights) if ".lora_" in name}
    weights = {name.replace(".base_layer.", "."): tensor for name, tensor in weights.items()}
    ours = {name: weights.pop(name, None) for name in ("memory", "bos_embedding", "new_memory_positional_emb")}
    initialized = weights.pop("initialized", None)
    projectors = {name: weights.pop(name) for name in list(weights) if PROJECTOR.fullmatch(name)}
    shipped = {name: weights.pop(name) for name in list(weights) if name.startswith("ltm")}
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
    tensors = {name: tensor for name, tensor in ours.items() if tensor is not None}
    if "memory" not in tensors:
        raise CheckpointError(f"{path} lacks the tensor memory, the pool of a MemoryLLM checkpoint")
    pool = tensors.pop("memory")
    if initialized is None or int(initialized) != 0:
        tensors["shipped_pool"] = pool
    retriever = None if longterm is None else retriever_of(longterm, projectors, hf)
    return Checkpoint(
        hf=hf,
        tokenizer=tokenizer,
        config=MemoryConfig(
            writer="learned",
            slots=blocks * k,
            slots_per_write=k,
            bos=bool(config.get("add_bos_embedding", False)),
            eviction="per_layer" if plus or config.get("drop_memory_per_layer") else "shared",
            keep_hidden=keep_hidden,
            longterm=longterm,
        ),
        tensors=tensors,
        adapters=adapters,
        retriever=retriever,
        shipped=None if retriever is None else shipped_longterm(config, shipped, hf, retriever),
    )


def shipped_longterm(
    config: dict[str, Any], tensors: dict[str, Tensor], hf: LlamaForCausalLM, retriever: Retriever
) -> "ShippedLongTerm":
    """The long-term memory of a checkpoint, under the policy of the published code."""
    frequencies = Frequencies(
        merge_after=config["update_ltm_frequency"] * config["num_tokens"],
        initial=float(config["initial_rf_when_moving_stm_to_ltm"]),
        decay=float(config["decay_frequency"]),
    )
    layers = range(hf.config.num_hidden_layers)
    return ShippedLongTerm([shipped_slots(tensors, layer, hf, retriever) for layer in layers], frequencies)


def retriever_of(rules: LongTermConfig, projectors: dict[str, Tensor], hf: LlamaForCausalLM) -> Retriever:
    """The projectors of all layers. Those of the encoder's side (`encoder_query_proj`) play no part in reading.

    Raises:
        CheckpointError: one is missing or has another shape.
    """
    retriever = Retriever(hf.config.num_hidden_layers, hf.config.hidden_size, rules.key_size or 0, rules.key_layers)
    for name, parameter in retriever.named_parameters():
        side, layer, *rest = name.split(".")
        published = ".".join([f"model.layers.{layer}.self_attn.{side}_proj", *rest])
        if published not in projectors:
            raise CheckpointError(f"the checkpoint lacks {published}")
        if projectors[published].shape != parameter.shape:
            given, expected = list(projectors[published].shape), list(parameter.shape)
            raise CheckpointError(f"{published} has shape {given}, expected {expected}")
        parameter.data = projectors[published].to(hf.dtype)
    return retriever


def shipped_slots(tensors: dict[str, Tensor], layer: int, hf: LlamaForCausalLM, retriever: Retriever) -> "ShippedSlots":
    """Long-term slots of one layer.

    Raises:
        CheckpointError: a tensor is missing or has another shape.
    """
    names = [f"{part}.{layer}" for part in ("ltm", "ltm_keys", "ltm_ages", "ltm_recall_frequencies")]
    if missing := [name for name in names if name not in tensors]:
        raise CheckpointError(f"the checkpoint lacks {missing[0]}")
    hidden, keys, ages, frequency = (tensors[name] for name in names)
    shapes = (len(hidden), hf.config.hidden_size), (len(hidden), retriever.size), (len(hidden),)
    for name, tensor, shape in zip(names, (hidden, keys, ages, frequency), (*shapes, shapes[2]), strict=True):
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"{name} has shape {list(tensor.shape)}, expected {list(shape)}")
    return ShippedSlots(hidden, keys, ages.long(), frequency.float())


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


@dataclass(frozen=True)
class ShippedSlots:
    """Long-term slots of one layer as they lie in a checkpoint.

    Attributes:
        hidden: `[S, d]`; keys: `[S, P]`, to be taken as they are: they need not be what the retriever would make.
        ages: `[S]`, int64; frequency: `[S]`, recall frequencies.
    """

    hidden: Tensor
    keys: Tensor
    ages: Tensor
    frequency: Tensor


class ShippedLongTerm:
    """Makes the long-term memory that each new memory starts with; projected once, then shared.

    Its slots go by the policy of the published code.
    """

    def __init__(self, layers: list[ShippedSlots], frequencies: Frequencies) -> None:
        self.layers, self.frequencies = layers, frequencies
        self._made: tuple[object, LongTerm] | None = None

    def longterm(self, model: MemoryDecoder, rules: LongTermConfig, layout: Layout) -> LongTerm:
        made_for = (model.stamp(), layout, rules)
        if self._made is None or self._made[0] != made_for:
            self._made = (made_for, self._make(model, rules, layout))
        return self._made[1].fork()

    @torch.no_grad()
    def _make(self, model: MemoryDecoder, rules: LongTermConfig, layout: Layout) -> LongTerm:
        made = []
        for index, shipped in enumerate(self.layers):
            layer = LongTermLayer(layout)
            hidden = shipped.hidden.to(model.device, layout.dtype)
            with model.role("read"):
                keys, values = model.backbone.project(index, hidden)
            none = torch.full_like(shipped.ages, -1)
            layer.append(torch.stack([keys, values], dim=1), shipped.keys.to(layout.dtype), -shipped.ages, none, Undo())
            made.append(layer)
        policy = RecallFrequency(self.frequencies, [shipped.frequency.clone() for shipped in self.layers])
        return LongTerm(rules, made, policy=policy)
