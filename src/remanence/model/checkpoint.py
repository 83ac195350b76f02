"""Directories that hold a model with memory: our own format, and the door to the published one."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from remanence.errors import CheckpointError
from remanence.memory import LongTermRules
from remanence.model import official
from remanence.model.adapters import LoraSettings, new_twin_lora
from remanence.model.retriever import new_retriever

if TYPE_CHECKING:
    from remanence.model.memory_model import MemoryModel

SETTINGS = "remanence.json"
PARAMETERS = "remanence.safetensors"
FORMAT = "remanence-model-1"
LORA = ".lora_"
DECODER = "hf."  # what the names of its parameters begin with


def load(path_or_hub_id: str | os.PathLike[str], **options: Any) -> "MemoryModel":
    """Load our own directory or a published checkpoint, whichever it is.

    Raises:
        FileNotFoundError: no such directory, and no such repository on the hub.
        CheckpointError: the directory holds neither, or something in it is missing or damaged.
    """
    path = Path(path_or_hub_id)
    if not path.is_dir():
        path = _download(str(path_or_hub_id))
    if (path / SETTINGS).is_file():
        return _load_own(path, **options)
    config_file = path / "config.json"
    if not config_file.is_file():
        raise CheckpointError(f"{path} holds neither {SETTINGS} nor config.json, so it is no checkpoint")
    architectures = _json(config_file).get("architectures") or []
    if len(architectures) == 1 and architectures[0] in official.ARCHITECTURES:
        return official.load(path, tokenizer=load_tokenizer(path), **options)
    raise CheckpointError(
        f"{path} is a {', '.join(architectures) or 'model'} without a memory; load it with transformers and give it "
        "one: MemoryModel.attach(AutoModelForCausalLM.from_pretrained(path), tokenizer, slots=..., slots_per_write=...)"
    )


def save(model: "MemoryModel", path: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Write decoder, tokenizer, settings, and what memory adds: its parameters, the retriever, adapters.

    `state`: what to write as the model's state, where its own is not whole.

    Raises:
        CheckpointError: the model has parts that only the published format holds.
    """
    if model.shipped_longterm is not None or (model.adapters is not None and model.adapters.settings is None):
        raise CheckpointError("a published model with adapters or long-term memory cannot be saved in this format")
    path.mkdir(parents=True, exist_ok=True)
    state = model.state_dict() if state is None else state
    decoder = {
        name.removeprefix(DECODER).replace(".base_layer.", "."): tensor
        for name, tensor in state.items()
        if name.startswith(DECODER) and LORA not in name
    }
    model.hf.save_pretrained(path, state_dict=decoder)
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(path)
    added = {name: t for name, t in state.items() if not name.startswith(DECODER)}
    tensors = added | {name.removeprefix(DECODER): t for name, t in state.items() if LORA in name}
    settings: dict[str, Any] = {
        "format": FORMAT,
        "slots": model.slots,
        "slots_per_write": model.slots_per_write,
        "eviction": model.eviction,
    }
    if model.retriever is not None and model.longterm is not None:
        settings["longterm"] = asdict(model.longterm)
        settings["retriever"] = {"size": model.retriever.size, "depth": model.retriever.depth}
    if model.adapters is not None and model.adapters.settings is not None:
        settings["lora"] = asdict(model.adapters.settings)
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(held, path / PARAMETERS)
    (path / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def _load_own(
    path: Path, *, keep_hidden: bool, dtype: torch.dtype | None, attn_implementation: str | None
) -> "MemoryModel":
    from remanence.model.memory_model import MemoryModel

    settings = _json(path / SETTINGS)
    if settings.get("format") != FORMAT:
        raise CheckpointError(f"{path / SETTINGS} has format {settings.get('format')!r}; this version reads {FORMAT!r}")
    if missing := {"slots", "slots_per_write", "eviction"} - settings.keys():
        raise CheckpointError(f"{path / SETTINGS} lacks {', '.join(sorted(missing))}")
    try:
        tensors = load_file(path / PARAMETERS)
        hf = AutoModelForCausalLM.from_pretrained(
            path,
            config=AutoConfig.from_pretrained(path, local_files_only=True),
            dtype=dtype or "auto",
            attn_implementation=attn_implementation,
            local_files_only=True,
        )
        lora = None if "lora" not in settings else LoraSettings(**settings["lora"])
        longterm = None if "longterm" not in settings else LongTermRules(**settings["longterm"])
        model = MemoryModel(
            hf,
            load_tokenizer(path),
            slots=settings["slots"],
            slots_per_write=settings["slots_per_write"],
            bos="bos_embedding" in tensors,
            eviction=settings["eviction"],
            keep_hidden=keep_hidden,
            adapters=None if lora is None else new_twin_lora(hf, lora),
            longterm=longterm,
            retriever=None if longterm is None else new_retriever(hf, **settings["retriever"]),
        )
    except (OSError, ValueError, SafetensorError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path} is not a complete checkpoint: {error}") from error
    adopt(model, tensors)
    return model


def adopt(model: "MemoryModel", tensors: dict[str, Tensor]) -> None:
    """Put a checkpoint's memory parameters into a model.

    Raises:
        CheckpointError: one is missing or has another shape.
    """
    layers, size = len(model.backbone.layers), model.hf.config.hidden_size
    shapes: dict[str, tuple[int, ...]] = {"new_memory_positional_emb": (1, 1, size)}
    if model.bos_embedding is not None:
        shapes["bos_embedding"] = (layers, 1, size)
    if tensors.get("shipped_pool") is not None:
        shapes["shipped_pool"] = (layers, model.slots, size)
    if model.adapters is not None and model.adapters.settings is not None:
        shapes |= {name: tuple(p.shape) for name, p in model.hf.named_parameters() if LORA in name}
    if model.shipped_longterm is None and model.retriever is not None:
        shapes |= {f"retriever.{name}": tuple(p.shape) for name, p in model.retriever.named_parameters()}
    parameters = dict(model.named_parameters()) | dict(model.hf.named_parameters())
    for name, shape in shapes.items():
        if name not in tensors:
            raise CheckpointError(f"the checkpoint lacks {name}")
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(f"{name} has shape {list(tensors[name].shape)}, expected {list(shape)}")
        tensor = tensors[name].to(model.new_memory_positional_emb)
        if name == "shipped_pool":
            model.shipped_pool = tensor
        else:
            with torch.no_grad():  # not through .data, which would hide the change from the model's fingerprint
                parameters[name].copy_(tensor)


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is not a JSON object")
    return content


def round_rotary(hf: nn.Module) -> None:
    """Rotary frequencies as they are after a cast of the whole model to bfloat16."""
    for module in hf.modules():
        if isinstance(getattr(module, "inv_freq", None), Tensor):
            module.inv_freq = module.inv_freq.bfloat16().float()


def load_tokenizer(path: Path) -> Any:
    if not any((path / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")):
        return None
    return AutoTokenizer.from_pretrained(path, local_files_only=True)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise FileNotFoundError(f"{name} is no directory here, and could not be had from the hub: {error}") from error
