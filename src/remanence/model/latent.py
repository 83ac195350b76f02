"""The latent score: cosine of mean hidden states, measured from what all texts of a model have in common.

Means of hidden states lie close together, and questions lie elsewhere than statements. So a bundled set of sentences is
encoded once for a model's weights and a head: the mean of its statements is taken off chunks, that of its questions off
questions, and both are divided by the sentences' standard deviation, dimension by dimension.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from remanence.environment import cache_folder
from remanence.memory.finite import all_finite
from remanence.model.backbone import Backbone
from remanence.model.chat import TODAY
from remanence.model.decoder import LATENT, MemoryDecoder
from remanence.model.hooks import MemoryCache

Head = tuple[int, ...]

_AT_ONCE = 16


class _TextCache(MemoryCache):
    """The head's own keys and values in front, and what is collected of the text behind it as its layers run.

    Attributes:
        slots: per layer passed so far, keys (unrotated) and values `[B, T, H, D]`.
        hidden: `[B, T, d]`, what one layer is given.
    """

    def __init__(self, backbone: Backbone, layers: list[DynamicLayer], layer: int) -> None:
        super().__init__(layers=list[CacheLayerMixin](layers))
        self._backbone, self._layer, self.hidden = backbone, layer, torch.empty(0)
        self.slots: list[tuple[Tensor, Tensor]] = []

    def before_layer(self, layer: int, hidden: Tensor) -> Tensor:
        if layer == self._layer:
            self.hidden = hidden
        return hidden

    def before_attention(self, layer: int, normed: Tensor) -> None:
        self.slots.append(self._backbone.project_normed(layer, normed))


class Encoded(NamedTuple):
    """A text behind a head.

    Attributes:
        mean: `[d]`, float32, over its positions, of what one layer is given.
        slots: `[2, L, n, H, D]`, its keys (unrotated) and values.
    """

    mean: Tensor
    slots: Tensor


class Latents:
    """Latent vectors of chunks and questions behind a head, `[d]`, of unit length."""

    def __init__(self, model: MemoryDecoder) -> None:
        self._model = model
        self._common: dict[Any, dict[str, Tensor]] = {}
        self._heads: dict[Any, list[tuple[Tensor, Tensor]]] = {}

    def of_chunk(self, mean: Tensor, head: Head) -> Tensor:  # [d] -> [d]
        """Of a chunk's mean hidden state, encoded behind the head."""
        common = self._of_model(head)
        return normalize((mean - common["statements"]) / common["std"], dim=0)

    def of_question(self, mean: Tensor, head: Head) -> Tensor:  # [d] -> [d]
        """Of a question's mean hidden state, encoded behind the head."""
        common = self._of_model(head)
        return normalize((mean - common["questions"]) / common["std"], dim=0)

    def encode(self, texts: Sequence[Tensor], head: Head) -> list[Encoded]:  # [n] each
        """Encode texts in one stock pass behind a head, whose own keys and values are kept."""
        model = self._model
        front, rows = self._front(head), [ids.to(model.device).long() for ids in texts]
        # Padded behind, where a causal decoder does not look.
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=model.pad)
        layers = [DynamicLayer() for _ in model.backbone.layers]
        for layer, (keys, values) in zip(layers, front, strict=False):
            layer.update(*(part.expand(len(rows), -1, -1, -1) for part in (keys, values)))
        cache = _TextCache(model.backbone, layers, model.latent_layer)
        with model.role("write"):
            model.backbone.decoder(input_ids=ids, past_key_values=cache, use_cache=True)
        made = []
        for row, count in enumerate(map(len, rows)):
            pairs = [(keys[row, :count], values[row, :count]) for keys, values in cache.slots]
            slots = torch.stack([torch.stack(part) for part in zip(*pairs, strict=True)])
            made.append(Encoded(cache.hidden[row, :count].float().mean(0).cpu(), slots.to(model.backbone.dtype)))
        return made

    def _of_model(self, head: Head) -> dict[str, Tensor]:
        """What texts have in common: made once for weights and head, and kept on disk, since it takes some seconds."""
        model, key = self._model, (self._model.last_stamp, head)
        if key not in self._common:
            kept = None if model.tokenizer is None else _cache_file(model.fingerprint(), head)
            common = None if kept is None else _kept(kept, int(model.hf.config.hidden_size))
            if common is None:
                common = self._made(head)
                if kept is not None:
                    _keep(kept, common)
            self._common = {**{k: v for k, v in self._common.items() if k[0] == key[0]}, key: common}
        return self._common[key]

    def _made(self, head: Head) -> dict[str, Tensor]:
        groups = {group: torch.stack(self._means(self._sentences(group), head)) for group in sentences()}
        spread = torch.cat([means - means.mean(0) for means in groups.values()]).square().mean(0).sqrt()
        return {**{group: means.mean(0) for group, means in groups.items()}, "std": spread.clamp(min=1e-6)}

    def _sentences(self, group: str) -> list[Tensor]:
        model, texts = self._model, sorted(sentences()[group], key=len)
        if model.tokenizer is not None:
            return [model.texts.ids(text, torch.device("cpu"), date=TODAY) for text in texts]
        generator = torch.Generator().manual_seed(len(group))  # ids that say nothing stand for sentences
        return [torch.randint(model.vocabulary, (12,), generator=generator) for _ in texts]

    def _means(self, texts: Sequence[Tensor], head: Head) -> list[Tensor]:  # [n] each -> [d] each, float32
        batches = [texts[start : start + _AT_ONCE] for start in range(0, len(texts), _AT_ONCE)]
        return [encoded.mean for batch in batches for encoded in self.encode(batch, head)]

    def _front(self, head: Head) -> list[tuple[Tensor, Tensor]]:  # [1, H, h, D] each, for each layer
        key = self._model.last_stamp, head
        if head and key not in self._heads:
            layers = [DynamicLayer() for _ in self._model.backbone.layers]
            with self._model.role("write"):
                ids = torch.tensor([head], device=self._model.device)
                cache = MemoryCache(layers=list[CacheLayerMixin](layers))
                self._model.backbone.decoder(input_ids=ids, past_key_values=cache, use_cache=True)
            self._heads = {key: [(layer.keys, layer.values) for layer in layers]}
        return self._heads[key] if head else []


@cache
def sentences() -> dict[str, Sequence[str]]:
    """The bundled sentences: "statements" and "questions"."""
    content = resources.files("remanence.data").joinpath("sentences.json").read_text(encoding="utf-8")
    made: dict[str, Sequence[str]] = json.loads(content)
    return made


def _cache_file(fingerprint: str, head: Head) -> Path:
    made_of = hashlib.blake2b(f"{LATENT} {fingerprint} {head} {sentences()}".encode(), digest_size=12).hexdigest()
    return cache_folder() / f"latent-{made_of}.safetensors"


def _kept(file: Path, size: int) -> dict[str, Tensor] | None:
    """What was kept, if it is whole."""
    try:
        held = load_file(file)
    except (OSError, SafetensorError):
        return None
    right = held.keys() == {"statements", "questions", "std"} and all(part.shape == (size,) for part in held.values())
    return held if right and all_finite(*held.values()) else None


def _keep(file: Path, common: dict[str, Tensor]) -> None:
    with suppress(OSError, SafetensorError):  # a home that cannot be written: it is made again
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        save_file(common, partial)
        os.replace(partial, file)
