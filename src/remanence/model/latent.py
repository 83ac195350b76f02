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
_FRONTS = 8  # heads that are kept: users may have system messages of their own


class _Enough(Exception):
    """The layers above are not needed."""


class _TextCache(MemoryCache):
    """The head's own keys and values in front, and what is collected of the text behind it as its layers run.

    Attributes:
        slots: per layer passed so far, keys (unrotated) and values `[B, T, H, D]`.
        hidden: `[B, T, d]`, what one layer is given.

    Args:
        layer: the one whose input is kept; last: the last whose slots are needed, where the pass stops.
    """

    def __init__(self, backbone: Backbone, layers: list[DynamicLayer], layer: int, last: int) -> None:
        super().__init__(layers=list[CacheLayerMixin](layers))
        self._backbone, self._layer, self._last, self.hidden = backbone, layer, last, torch.empty(0)
        self.slots: list[tuple[Tensor, Tensor]] = []

    def before_layer(self, layer: int, hidden: Tensor) -> Tensor:
        if layer == self._layer:
            self.hidden = hidden
        return hidden

    def mean(self, row: int, count: int) -> Tensor:  # [d]
        """Of a text's hidden states."""
        return self.hidden[row, :count].float().mean(0).cpu()

    def before_attention(self, layer: int, normed: Tensor) -> None:
        self.slots.append(self._backbone.project_normed(layer, normed))
        if layer == self._last < len(self.layers) - 1:
            raise _Enough


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
        self._fronts: dict[Any, _Front] = {}

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
        cache = self._passed(texts, head, len(self._model.backbone.layers) - 1)
        lengths = map(len, texts)
        return [Encoded(cache.mean(row, n), self._slots(cache, row, n)) for row, n in enumerate(lengths)]

    def means(self, texts: Sequence[Tensor], head: Head) -> list[Tensor]:  # [n] each -> [d] each
        """Their means alone, which need no layer above."""
        cache = self._passed(texts, head, self._model.latent_layer)
        return [cache.mean(row, count) for row, count in enumerate(map(len, texts))]

    def lower_slots(self, texts: Sequence[Tensor], head: Head, last: int) -> list[Tensor]:
        """`[2, last + 1, n, H, D]` each: their slots up to a layer, which need none above."""
        cache = self._passed(texts, head, last)
        return [self._slots(cache, row, count) for row, count in enumerate(map(len, texts))]

    def _passed(self, texts: Sequence[Tensor], head: Head, last: int) -> _TextCache:
        """One pass over texts, up to a layer, and what was collected of it."""
        model = self._model
        rows = [ids.to(model.device).long() for ids in texts]
        # Padded behind, where a causal decoder does not look.
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=model.pad)
        held = [DynamicLayer() for _ in model.backbone.layers]
        for layer, (keys, values) in zip(held, self._front(head).turned if head else (), strict=False):
            layer.update(*(part.expand(len(rows), -1, -1, -1) for part in (keys, values)))
        cache = _TextCache(model.backbone, held, model.latent_layer, last)
        with model.role("write"), suppress(_Enough):
            model.backbone.decoder(input_ids=ids, past_key_values=cache, use_cache=True)
        return cache

    def _slots(self, cache: _TextCache, row: int, count: int) -> Tensor:  # [2, L, count, H, D]
        pairs = [(keys[row, :count], values[row, :count]) for keys, values in cache.slots]
        return torch.stack([torch.stack(part) for part in zip(*pairs, strict=True)]).to(self._model.backbone.dtype)

    def head_slots(self, head: Head) -> Tensor:  # [2, L, h, H, D]
        """The slots of a head that is not empty."""
        return self._front(head).slots

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
        return [mean for batch in batches for mean in self.means(batch, head)]

    def _front(self, head: Head) -> "_Front":
        key = self._model.last_stamp, head
        if key not in self._fronts:
            cache = self._passed([torch.tensor(head)], (), len(self._model.backbone.layers) - 1)
            turned = [(layer.keys, layer.values) for layer in cache.layers]
            same = [(k, v) for k, v in self._fronts.items() if k[0] == key[0]][1 - _FRONTS :]
            self._fronts = {**dict(same), key: _Front(turned, self._slots(cache, 0, len(head)))}
        return self._fronts[key]


class _Front(NamedTuple):
    """What a head is in each layer: turned keys and values `[1, H, h, D]`; and its slots `[2, L, h, H, D]`."""

    turned: list[tuple[Tensor, Tensor]]
    slots: Tensor


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
