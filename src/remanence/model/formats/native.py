"""Our own checkpoint format, and the door to the published one. Loaders return parts, never models."""

import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from remanence.bases import BASES, find_base
from remanence.checkpoints import bundled, names
from remanence.config import LongTermConfig, LoraSettings, MemoryConfig
from remanence.errors import CheckpointError, InvalidInputError
from remanence.model.formats import adapters, memoryllm
from remanence.model.formats.parts import Checkpoint
from remanence.model.lora import new_lora
from remanence.model.retriever import TokenRetriever, load_retriever, new_retriever, save_retriever

SETTINGS = "remanence.json"
PARAMETERS = "remanence.safetensors"
FORMAT = "remanence-model-2"
_OLD_FORMAT = "remanence-model-1"
LORA = ".lora_"
DECODER = "hf."  # what the names of its parameters begin with


class Model(Protocol):
    """What is saved of a model."""

    hf: PreTrainedModel
    tokenizer: Any
    config: MemoryConfig
    token_retriever: TokenRetriever | None

    def state_dict(self) -> dict[str, Tensor]: ...


def load(
    path_or_hub_id: str | os.PathLike[str],
    keep_hidden: bool = False,
    *,
    dtype: torch.dtype | None = None,
    attn_implementation: str | None = None,
    base: str | os.PathLike[str] | None = None,
    parts: Collection[str] | None = None,
) -> Checkpoint:
    """Read our own directory, a bundled one or a base by its name, or a published checkpoint, whichever it is.

    Args:
        base: the folder of the base of a checkpoint that holds adapters only; None: where `remanence setup` put it.
        parts: of such a checkpoint, which to load; None: all.

    Raises:
        FileNotFoundError: no such directory, and no such repository on the hub.
        CheckpointError: the directory holds neither, or something in it is missing or damaged.
    """
    path = Path(path_or_hub_id)
    if not path.is_dir():
        name = str(path_or_hub_id)
        if name in BASES and name not in names():
            return _load_base(find_base(name), dtype=dtype, attn_implementation=attn_implementation)
        path = bundled(name) if name in names() else _download(name)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attn_implementation}
    if (path / SETTINGS).is_file():
        return _load_own(path, keep_hidden, base=base, parts=parts, **options)
    if base is not None or parts is not None:
        raise InvalidInputError(f"base= and parts= belong to checkpoints of adapters, which {path} is not")
    config_file = path / "config.json"
    if not config_file.is_file():
        raise CheckpointError(f"{path} holds neither {SETTINGS} nor config.json, so it is no checkpoint")
    architectures = settings_in(config_file).get("architectures") or []
    if len(architectures) == 1 and architectures[0] in memoryllm.ARCHITECTURES:
        return memoryllm.load(path, load_tokenizer(path), keep_hidden, **options)
    raise CheckpointError(
        f"{path} is a {', '.join(architectures) or 'model'} without a memory; load it with transformers and give it "
        "one: MemoryModel.attach(AutoModelForCausalLM.from_pretrained(path), tokenizer)"
    )


def _load_base(folder: Path, *, dtype: torch.dtype | None, attn_implementation: str | None) -> Checkpoint:
    """A base as `remanence setup` put it there, with text slots, which nobody has to train."""
    hf = AutoModelForCausalLM.from_pretrained(
        folder, dtype=_dtype_of(dtype), attn_implementation=attn_implementation, local_files_only=True
    )
    return Checkpoint(hf, load_tokenizer(folder), MemoryConfig(), {})


def _dtype_of(dtype: torch.dtype | None) -> torch.dtype | str:
    """Of a base's weights: float32 on a CPU, for which there are kernels on every one."""
    return dtype or ("auto" if torch.cuda.is_available() else torch.float32)


def published_only() -> CheckpointError:
    return CheckpointError(
        "this format holds adapters that lora= made, and no long-term memory that a checkpoint ships; other adapters "
        "can be merged into the weights first (merge_and_unload of peft)"
    )


def save(model: Model, path: Path, state: Mapping[str, Tensor] | None = None, base: str | None = None) -> None:
    """Write decoder, tokenizer, settings, and what memory adds: its parameters, the retriever, adapters.

    Args:
        state: what to write as the model's state, where its own is not whole.
        base: the name of the decoder, in place of the decoder itself.

    Raises:
        CheckpointError: the model has parts that only the published format holds.
    """
    state = model.state_dict() if state is None else state
    if any(LORA in name for name in state) and model.config.lora is None:
        raise published_only()
    path.mkdir(parents=True, exist_ok=True)
    if model.token_retriever is not None:
        save_retriever(model.token_retriever, path / adapters.file_of("retriever"))
    settings: dict[str, Any] = {"format": FORMAT, "memory": model.config.replace(keep_hidden=False).to_json()}
    if base is not None:
        if model.config.writer != "text":
            raise InvalidInputError("base= is for text memories; what a learned writer trains includes its decoder")
        adapters.save_reader(path, {name.removeprefix(DECODER): t for name, t in state.items() if LORA in name})
        settings["base"] = adapters.base_settings(base, model.hf)
        (path / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")
        return
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
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(held, path / PARAMETERS)
    (path / SETTINGS).write_text(json.dumps(settings, indent=2) + "\n")


def _load_own(
    path: Path,
    keep_hidden: bool,
    *,
    dtype: torch.dtype | None,
    attn_implementation: str | None,
    base: str | os.PathLike[str] | None,
    parts: Collection[str] | None,
) -> Checkpoint:
    settings = settings_in(path / SETTINGS)
    config = _config_of(settings, path / SETTINGS)
    folder, held = path, settings.get("base")
    if held is None and (base is not None or parts is not None):
        raise InvalidInputError(f"{path} holds its decoder, so base= and parts= say nothing; leave them out")
    if held is not None:
        folder = adapters.folder_of(held, base, path)
        there, parts = adapters.wanted(None, path), adapters.wanted(parts, path)
        config = adapters.without(config, set(there) - set(parts))
    try:
        tensors = load_file(path / PARAMETERS) if held is None else adapters.load_reader(path, parts or ())
        hf = AutoModelForCausalLM.from_pretrained(
            folder,
            config=AutoConfig.from_pretrained(folder, local_files_only=True),
            dtype=(dtype or "auto") if held is None else _dtype_of(dtype),
            attn_implementation=attn_implementation,
            local_files_only=True,
        )
        tokenizer = load_tokenizer(folder)
    except (OSError, ValueError, SafetensorError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path} is not a complete checkpoint: {error}") from error
    if settings["format"] == _OLD_FORMAT:
        config = config.replace(bos="bos_embedding" in tensors)
    try:
        lora = None if config.lora is None else new_lora(hf, config.lora, writes=config.writer == "learned")
    except InvalidInputError as error:
        raise CheckpointError(f"{path / SETTINGS} does not fit: {error}") from error
    if held is not None:
        adapters.warn_of_other_weights(held, hf, folder)
    longterm = config.longterm
    return Checkpoint(
        hf=hf,
        tokenizer=tokenizer,
        config=config.replace(keep_hidden=keep_hidden and config.writer == "learned"),
        tensors=tensors,
        adapters=lora,
        retriever=None if longterm is None else new_retriever(hf, longterm.key_size, longterm.key_layers),
        token_retriever=_token_retriever(path, parts),
    )


def _token_retriever(path: Path, parts: Collection[str] | None) -> TokenRetriever | None:
    file = path / adapters.file_of("retriever")
    return load_retriever(file) if file.is_file() and (parts is None or "retriever" in parts) else None


def config_in(folder: Path) -> MemoryConfig | None:
    """What the model with memory in a folder was made with; None: it holds none."""
    file = folder / SETTINGS
    return _config_of(settings_in(file), file) if file.is_file() else None


def _config_of(settings: Mapping[str, Any], path: Path) -> MemoryConfig:
    """Raises CheckpointError where the settings are of another format, or do not fit."""
    try:
        if settings.get("format") == FORMAT:
            return MemoryConfig.from_json(settings["memory"])
        if settings.get("format") == _OLD_FORMAT:
            return _old_config(settings)
    except (LookupError, TypeError, InvalidInputError) as error:
        what = f"lacks {error}" if isinstance(error, LookupError) else f"does not fit: {error}"
        raise CheckpointError(f"{path} {what}") from error
    raise CheckpointError(f"{path} has format {settings.get('format')!r}; this version reads {FORMAT!r}")


def _old_config(settings: Mapping[str, Any]) -> MemoryConfig:
    """Settings of version 0.1. Whether there is a bos slot, only the tensors say."""
    longterm = None
    if "longterm" in settings:
        rules, retriever = settings["longterm"], settings["retriever"]
        longterm = LongTermConfig(
            retrieved=rules["retrieved"],
            capacity=rules["capacity"],
            cross_layer_prior=float(rules.get("agreement", 0.0)),
            key_size=retriever["size"],
            key_layers=retriever["depth"],
        )
    return MemoryConfig(
        writer="learned",
        slots=settings["slots"],
        slots_per_write=settings["slots_per_write"],
        eviction=settings["eviction"],
        longterm=longterm,
        lora=LoraSettings.from_json(settings["lora"]) if "lora" in settings else None,
    )


def adopt(model: nn.Module, loaded: Checkpoint) -> None:
    """Put a checkpoint's tensors into a model that was made of its other parts.

    Raises:
        CheckpointError: one is missing or has another shape.
    """
    tensors = dict(loaded.tensors)
    if (pool := tensors.pop("shipped_pool", None)) is not None:
        slots, size = loaded.config.slots, loaded.hf.config.hidden_size
        expected = (loaded.hf.config.num_hidden_layers, slots, size)
        if tuple(pool.shape) != expected:
            raise CheckpointError(f"shipped_pool has shape {list(pool.shape)}, expected {list(expected)}")
        model.shipped_pool = pool.to(model.new_memory_positional_emb)  # type: ignore[arg-type]
    held = dict(model.named_parameters(remove_duplicate=False))
    wanted = {name: p for name, p in held.items() if not name.startswith(DECODER)}
    if loaded.config.lora is not None:
        wanted |= {name.removeprefix(DECODER): p for name, p in held.items() if LORA in name}
    if loaded.shipped is not None:
        wanted = {name: p for name, p in wanted.items() if not name.startswith("retriever.")}  # it came with them
    for name, parameter in wanted.items():
        if name not in tensors:
            raise CheckpointError(f"the checkpoint lacks {name}")
        if tensors[name].shape != parameter.shape:
            raise CheckpointError(f"{name} has shape {list(tensors[name].shape)}, expected {list(parameter.shape)}")
        with torch.no_grad():  # not through .data, which would hide the change from the model's fingerprint
            parameter.copy_(tensors[name])


def settings_in(path: Path) -> dict[str, Any]:
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
