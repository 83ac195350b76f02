"""The latent score: cosine of mean hidden states, measured from what all texts of a model have in common.

Means of hidden states lie close together, and questions lie elsewhere than statements. So a bundled set of sentences is
encoded once for a model's weights: the mean of its statements is taken off chunks, that of its questions off questions,
and both are divided by the sentences' standard deviation, dimension by dimension.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize

from remanence.model.chat import TODAY
from remanence.model.decoder import LATENT, MemoryDecoder

Encode = Callable[..., list[Any]]  # as `TextWriter.encode`
_AT_ONCE = 16


class Latents:
    """Latent vectors of chunks and questions, `[d]`, of unit length."""

    def __init__(self, model: MemoryDecoder, encode: Encode) -> None:
        self._model, self._encode = model, encode
        self._common: tuple[int, dict[str, Tensor]] | None = None

    def of_statement(self, mean: Tensor) -> Tensor:  # [d] -> [d]
        common = self._of_model()
        return normalize((mean - common["statements"].to(mean)) / common["std"].to(mean), dim=0)

    def of_question(self, mean: Tensor) -> Tensor:  # [d] -> [d]
        common = self._of_model()
        return normalize((mean - common["questions"].to(mean)) / common["std"].to(mean), dim=0)

    def _of_model(self) -> dict[str, Tensor]:
        """What texts have in common under these weights: made once, and kept on disk, since it takes some seconds."""
        stamp = self._model.last_stamp
        if self._common is None or self._common[0] != stamp:
            kept = None if self._model.tokenizer is None else _cache_file(self._model.fingerprint())
            common = None if kept is None else _kept(kept, int(self._model.hf.config.hidden_size))
            if common is None:
                common = self._made()
                if kept is not None:
                    _keep(kept, common)
            self._common = stamp, common
        return self._common[1]

    def _made(self) -> dict[str, Tensor]:
        groups = {name: torch.stack(list(self._means(name))) for name in ("statements", "questions")}
        spread = torch.cat([means - means.mean(0) for means in groups.values()]).square().mean(0).sqrt()
        common = {name: means.mean(0).cpu() for name, means in groups.items()}
        return {**common, "std": spread.clamp(min=1e-6).cpu()}

    def _means(self, group: str) -> Iterator[Tensor]:
        model, front = self._model, self._model.texts.front
        if model.tokenizer is None:  # ids that say nothing stand for sentences
            generator = torch.Generator().manual_seed(len(group))
            rows = [torch.randint(model.vocabulary, (12,), generator=generator) for _ in range(64)]
        else:
            texts = sorted(sentences()[group], key=len)
            rows = [model.texts.ids(text, torch.device("cpu"), date=TODAY) for text in texts]
        for start in range(0, len(rows), _AT_ONCE):
            batch = [(front, row) for row in rows[start : start + _AT_ONCE]]
            yield from (encoded.mean for encoded in self._encode(batch, slots=False))


@cache
def sentences() -> dict[str, Sequence[str]]:
    """The bundled sentences: "statements" and "questions"."""
    content = resources.files("remanence.data").joinpath("sentences.json").read_text(encoding="utf-8")
    made: dict[str, Sequence[str]] = json.loads(content)
    return made


def _cache_file(fingerprint: str) -> Path:
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "remanence" / f"{LATENT.replace(' ', '-')}-{fingerprint}.safetensors"


def _kept(file: Path, size: int) -> dict[str, Tensor] | None:
    """What was kept, if it is whole."""
    try:
        held = load_file(file)
    except (OSError, SafetensorError):
        return None
    right = held.keys() == {"statements", "questions", "std"} and all(part.shape == (size,) for part in held.values())
    return held if right and all(bool(part.isfinite().all()) for part in held.values()) else None


def _keep(file: Path, common: dict[str, Tensor]) -> None:
    with suppress(OSError, SafetensorError):  # a home that cannot be written: it is made again
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_name(f"{file.name}.{os.getpid()}")
        save_file(common, partial)
        os.replace(partial, file)
