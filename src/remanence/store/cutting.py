"""What is told becomes token ids in chunks, by a model's tokenizer and settings; the weights are not needed for it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from remanence.bases import BASES, find_base
from remanence.checkpoints import bundled, names
from remanence.config import MemoryConfig
from remanence.errors import InvalidInputError
from remanence.memory.transaction import Piece
from remanence.model.backbone import positions_of
from remanence.model.chat import TODAY, Texts
from remanence.model.formats import adapters
from remanence.model.formats.native import SETTINGS, config_in, load_tokenizer, settings_in
from remanence.model.inputs import chunked
from remanence.model.model import MemoryModel
from remanence.store.rows import Content

CPU = torch.device("cpu")


class Cutter:
    """Cuts texts as a model does.

    Attributes:
        name: of the model; writer: how it writes; vocabulary: how many token ids it knows.
    """

    def __init__(self, name: str, texts: Texts, config: MemoryConfig, positions: int | None) -> None:
        self.name, self._texts, self._config, self._positions = name, texts, config, positions
        self.writer, self.vocabulary = config.writer, texts.vocabulary

    @classmethod
    def of(cls, model: MemoryModel | str) -> "Cutter | None":
        """Of a model, or of one that is known by its name or folder; None where its weights are needed for it."""
        if isinstance(model, MemoryModel):
            return cls(model.name, model.texts, model.config, model.positions)
        folder = Path(model)
        if not folder.is_dir() and model in BASES and model not in names():
            folder, config = find_base(model), MemoryConfig()
        else:
            folder = folder if folder.is_dir() else bundled(model) if model in names() else folder
            held = config_in(folder)
            if held is None:
                return None
            config, base = held, settings_in(folder / SETTINGS).get("base")
            folder = folder if base is None else adapters.folder_of(base, None, folder)
        decoder = AutoConfig.from_pretrained(folder, local_files_only=True)
        texts = Texts(load_tokenizer(folder), getattr(decoder, "bos_token_id", None), decoder.vocab_size)
        return cls(model, texts, config, positions_of(decoder))

    def settings(self, seed: int = 0, date: str | None = None) -> dict[str, Any]:
        """What a new memory is made with, as it stands in the ledger."""
        made: dict[str, Any] = {"model": self.name, "writer": self._config.writer, "seed": seed}
        if self._config.writer == "text":
            date = date or TODAY
            made |= {"date": date, "head": list(self._texts.head(date))}
        return made

    def cut(self, told: Any, settings: Mapping[str, Any]) -> Content:
        """Text, messages or ids `[T]` in chunks.

        Raises:
            InvalidInputError: there is nothing in it, or it is none of these.
        """
        if settings["writer"] == "text":
            longest = self._longest(len(settings["head"]))
            return content_of(self._texts.chunks(told, CPU, longest, date=settings["date"]))
        ids = self._texts.ids(told, CPU, date=TODAY)
        longest = self._longest(1 + (self._config.slots_per_write or 0))
        content = content_of([(part, None) for part in chunked(ids, longest)])
        return Content(told if isinstance(told, str) else None, content.ids, content.cuts)

    def _longest(self, front: int) -> int:
        left = self._config.chunk_tokens if self._positions is None else self._positions - front
        if left < 1:
            raise InvalidInputError(f"{self.name} reads {self._positions} positions, which leave none for a chunk")
        return min(self._config.chunk_tokens, left)


def content_of(pieces: list[Piece]) -> Content:
    """Chunks as the ledger keeps them."""
    ids = torch.cat([ids for ids, _ in pieces]).to(torch.int32).numpy().astype("<i4").tobytes()
    texts = [text for _, text in pieces]
    cuts = tuple((len(own), -1 if text is None else len(text)) for own, text in pieces)
    return Content(None if any(text is None for text in texts) else "".join(map(str, texts)), ids, cuts)


def pieces_of(content: Content) -> list[Piece]:
    """The chunks again."""
    ids = torch.frombuffer(bytearray(content.ids), dtype=torch.int32).long()
    made, token, place = list[Piece](), 0, 0
    for tokens, characters in content.cuts:
        text = None if characters < 0 or content.text is None else content.text[place : place + characters]
        made.append((ids[token : token + tokens], text))
        token, place = token + tokens, place + max(0, characters)
    return made
