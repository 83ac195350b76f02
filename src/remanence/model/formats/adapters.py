"""Checkpoints that hold what was trained, and name the base that it was trained on.

    remanence.json          settings, and the base: its name and a digest of its weights
    reader.safetensors      the adapter for reading
    retriever.safetensors   what finds chunks beside their words

The base itself is found by its name (`remanence setup`), or given as a folder.
"""

import os
import warnings
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from remanence.config import MemoryConfig, RetrievalConfig
from remanence.errors import CheckpointError, InvalidInputError
from remanence.model.lora import without_twins
from remanence.model.validation import Fingerprint

PARTS = ("reader", "retriever")
_DTYPE = torch.float16  # of parts on disk: an adapter's numbers are small, so its mantissa says more than bfloat16's


def file_of(part: str) -> str:
    return f"{part}.safetensors"


def base_settings(name: str, hf: nn.Module) -> dict[str, str]:
    """What `remanence.json` says of the base."""
    return {"name": name, "weights": digest(hf)}


def digest(hf: nn.Module) -> str:
    """Of a base's weights, whatever dtype they are loaded in; adapters of ours left out."""
    return Fingerprint().of(hf, "base", _rounded)


def _rounded(hf: nn.Module) -> Iterator[tuple[str, Any]]:
    for name, parameter in without_twins(hf):
        packed = hasattr(parameter, "__tensor_flatten__") or not parameter.is_floating_point()
        yield name, parameter if packed else parameter.detach().bfloat16()


def folder_of(base: Mapping[str, Any], given: str | os.PathLike[str] | None, path: Path) -> Path:
    """Where the base lies.

    Raises:
        FileNotFoundError: it is not there; says how to get it.
        CheckpointError: the settings do not name it.
    """
    if given is not None:
        if not (folder := Path(given)).is_dir():
            raise FileNotFoundError(f"there is no folder {folder} with the base of {path}")
        return folder
    name = base.get("name")
    if not isinstance(name, str):
        raise CheckpointError(f"{path} does not name its base")
    from remanence.bases import find_base

    return find_base(name)


def wanted(parts: Collection[str] | None, path: Path) -> list[str]:
    """The parts to load: those asked for, or all that there are.

    Raises:
        InvalidInputError: no such part.
        FileNotFoundError: it is not in the checkpoint.
    """
    there = [part for part in PARTS if (path / file_of(part)).is_file()]
    if parts is None:
        return there
    if unknown := sorted(set(parts) - set(PARTS)):
        raise InvalidInputError(f"there is no part {unknown[0]!r}; a checkpoint has {', '.join(PARTS)}")
    if missing := sorted(set(parts) - set(there)):
        raise FileNotFoundError(f"{path} has no {missing[0]}; it has {', '.join(there) or 'no part'}")
    return [part for part in there if part in parts]


def load_reader(path: Path, parts: Collection[str]) -> dict[str, Tensor]:
    """The reader's tensors by name, if it is one of the parts."""
    return load_file(path / file_of("reader")) if "reader" in parts else {}


def without(config: MemoryConfig, parts: Collection[str]) -> MemoryConfig:
    """The settings of a model that these parts were taken from."""
    if "reader" in parts:
        config = config.replace(lora=None, retrieval=config.retrieval.replace(refusal=None))
    if "retriever" in parts and config.retrieval.min_score is not None:  # thresholds were measured on its scores
        stock = RetrievalConfig()
        measured = {"min_score": stock.min_score, "text_min_score": None, "near_best": stock.near_best, "rerank": None}
        config = config.replace(retrieval=config.retrieval.replace(**measured))
    return config


def save_reader(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write the reader's tensors, if there are any."""
    held = {name: tensor.detach().cpu().to(_DTYPE).contiguous() for name, tensor in tensors.items()}
    if held:
        save_file(held, path / file_of("reader"))


def warn_of_other_weights(base: Mapping[str, Any], hf: nn.Module, folder: Path) -> None:
    """Warn where a base of the same shapes has other weights than the one that the parts were trained on."""
    if base.get("weights") not in (None, digest(hf)):
        warnings.warn(
            f"the weights in {folder} are not those that the adapters were trained on (another version, or not "
            "quantised); answers may be worse",
            stacklevel=4,
        )
