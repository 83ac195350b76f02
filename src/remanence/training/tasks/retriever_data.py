"""What a retriever is trained on: texts and questions, their features and the scores of their words.

Features and scores are made once and kept in a folder.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from remanence.errors import InvalidInputError
from remanence.memory.lexical import Postings, asked, words
from remanence.model.chat import TODAY
from remanence.model.model import MemoryModel
from remanence.model.retriever import token_features
from remanence.model.text import TextWriter
from remanence.training.tasks.retriever_heads import Scale, Segments, standardised

Told = Callable[[str, int, int], None]  # what is done, how much of it, of how much

_SHARD = 500  # texts whose features are kept in one file
_NEAR = 8  # texts that a question's words would find wrongly


class Asked(NamedTuple):
    """A question, and the texts that answer it, by their places."""

    question: str
    texts: tuple[int, ...]


@dataclass(frozen=True)
class RetrieverData:
    """What a retriever is trained on.

    Attributes:
        texts: of a chunk's length each.
        conversations: of each text, the number of the conversation that it is a turn of; -1: of none.
        questions: about them.
        held_out: numbers of texts that are not trained on: the retriever that finds these best is kept.
    """

    texts: Sequence[str]
    conversations: Sequence[int]
    questions: Sequence[Asked]
    held_out: frozenset[int] = frozenset()


def save_whole(tensors: dict[str, Tensor], file: Path) -> None:
    """Write a file of tensors, which a run that is cut leaves as it was."""
    partial = file.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(file)


class Features:
    """Features of texts, encoded once and kept in a folder, standardised."""

    def __init__(
        self, model: MemoryModel, texts: Sequence[str], folder: Path, layers: tuple[int, ...], told: Told | None
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.ids: list[list[int]] = [model.texts.ids(t, torch.device("cpu"), date=TODAY).tolist() for t in texts]
        shards = []
        for start in range(0, len(texts), _SHARD):
            file = folder / f"{start:08d}.safetensors"
            if not file.is_file():
                rows = torch.cat(list(_encoded(model, self.ids[start : start + _SHARD], layers)))
                save_whole({"rows": rows.half()}, file)
            if told is not None:
                told(folder.name, min(start + _SHARD, len(texts)), len(texts))
            shards.append(file)
        sample = [load_file(file)["rows"] for file in shards[:: max(1, len(shards) // 8)]]
        self.scale = Scale.of(torch.cat(sample))
        self.rows = torch.cat([self.scale.reduced(load_file(file)["rows"]) for file in shards])
        self._starts = torch.tensor([0, *map(len, self.ids)]).cumsum(0)

    def segments(self, numbers: Sequence[int]) -> Segments:
        lengths = torch.tensor([0, *(len(self.ids[number]) for number in numbers)])
        rows = torch.cat([self.rows[self._starts[number] : self._starts[number + 1]] for number in numbers])
        return Segments(standardised(rows), lengths.cumsum(0))


@torch.no_grad()
def _encoded(model: MemoryModel, texts: Sequence[Sequence[int]], layers: tuple[int, ...]) -> Iterator[Tensor]:
    """Of each text `[n, F]`, encoded behind the head of a new memory."""
    if not isinstance(model.writer, TextWriter):
        raise InvalidInputError("a retriever is trained for a text memory; attach the model without slots_per_write")
    head = model.texts.head(TODAY)
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    made: dict[int, Tensor] = {}
    for start in range(0, len(order), 16):
        batch = order[start : start + 16]
        for at, encoded in zip(
            batch, model.writer.encode([(head, torch.tensor(texts[at])) for at in batch]), strict=True
        ):
            made[at] = token_features(encoded.slots, layers).cpu()
    yield from (made[at] for at in range(len(texts)))


def lexical_scores(data: RetrieverData, folder: Path, told: Told | None) -> tuple[Tensor, list[list[int]]]:
    """Lexical scores `[Q, C]`, in float16, and for each question the texts that its words would find wrongly; made once
    and kept in the folder."""
    file = folder / "words.safetensors"
    if not file.is_file():
        postings = Postings()
        for number, text in enumerate(data.texts):
            postings.add(number, words(text))
        scores = torch.zeros(len(data.questions), len(data.texts), dtype=torch.float16)
        near = torch.full((len(data.questions), _NEAR + max(len(q.texts) for q in data.questions)), -1)
        for number, question in enumerate(data.questions):
            found = postings.scores(asked(question.question))
            scores[number, list(found)] = torch.tensor(list(found.values()), dtype=torch.float16)
            ranked = sorted(found, key=lambda text: (-found[text], text))[: _NEAR + len(question.texts)]
            others = (text for text in ranked if text not in question.texts and text not in data.held_out)
            wrong = [text for text in others if data.conversations[text] < 0]
            near[number, : len(wrong)] = torch.tensor(wrong)
            if told is not None and number % 1000 == 999:
                told("words", number + 1, len(data.questions))
        save_whole({"scores": scores, "near": near}, file)
    held = load_file(file)
    return held["scores"], [[text for text in row if text >= 0] for row in held["near"].tolist()]
