"""A reader is trained: an adapter that answers from text slots. A batch are groups of questions.

Those that read the same slots stand behind them in one row, so that the slots stand there once:

prefix    head and chunks, keys and values of the stock model       seen by all questions of the row
text      question and answer, question and answer, ...             each sees the prefix and itself
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from remanence.errors import InvalidInputError
from remanence.kernels.grouped import GROUPED
from remanence.model.hooks import expecting
from remanence.model.lora import adapter_parameters
from remanence.model.model import MemoryModel
from remanence.model.text import TextPrefixCache, text_prefix
from remanence.training.tasks.task import Batch, Output, Task


@dataclass(frozen=True)
class Row:
    """A question as it is asked, and what is to be answered: token ids."""

    prompt: Sequence[int]
    answer: Sequence[int]


@dataclass(frozen=True)
class Group:
    """Questions that read the same chunks.

    Attributes:
        slots: of the head, then of each chunk, `[2, L, n, H, D]`, keys unrotated.
        rows: the questions.
    """

    slots: Sequence[Tensor]
    rows: Sequence[Row]


class PackedCache(TextPrefixCache):
    """A prefix behind which several texts stand side by side."""

    def set_prompt(self, mask: Tensor) -> None:
        """`mask` `[B, T]`: the number of each token's text, from 1 on; 0 where there is none."""
        self._text_of = torch.cat([mask.new_zeros(len(mask), self.prefix), mask], dim=1)
        lengths = self._lengths.to(mask.device)
        front = torch.arange(self.prefix, device=mask.device) - (self.prefix - lengths)
        count = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
        starts = torch.full_like(mask, -1)
        starts[:, 0] = 0
        starts[:, 1:] = torch.where(mask[:, 1:] != mask[:, :-1], count[:, 1:], -1)
        places = count - starts.cummax(1).values
        self._keep(torch.cat([front.clamp(min=-1), (places + lengths).masked_fill(mask == 0, -1)], dim=1), mask > 0)

    @property
    def starts(self) -> list[int]:
        return [self.prefix - length for length in self._lengths[:, 0].tolist()]

    def _acting(self, rows: int, start: int, end: int) -> Tensor:
        return torch.ones(rows, end - start, dtype=torch.bool)

    def _asking(self, keys: Tensor, past: int, rows: int) -> tuple[Tensor, None]:
        return keys[:, past:], None

    def _seen(self, keys: Tensor, queries: Tensor, own: Tensor, window: int | None) -> Tensor:
        seen, text = super()._seen(keys, queries, own, window), self._text_of
        entries, asking = text[:, None, None, :], text[:, None, self.prefix :, None]
        return seen & ((entries == 0) | (entries == asking))


class _Picked:
    """Leaves of a decoder's output the tokens at some places, `[1, A, d]`."""

    def __init__(self, places: Tensor) -> None:
        self._places = places

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state.flatten(0, 1)[self._places][None]
        return output


def answer_logits(model: MemoryModel, groups: Sequence[Group]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits `[A, V]` of all answers' tokens, these tokens `[A]`, and which answer `[A]` each belongs to, counted
    through the groups. The reading adapter acts, and gradients reach it."""
    device, tokens = model.device, max(sum(len(r.prompt) + len(r.answer) for r in group.rows) for group in groups)
    ids = torch.full((len(groups), tokens), model.pad)
    texts = torch.zeros(len(groups), tokens, dtype=torch.long)
    places: list[int] = []
    targets: list[int] = []
    owners: list[int] = []
    answers = 0
    for line, group in enumerate(groups):
        at = 0
        for number, row in enumerate(group.rows):
            whole = [*row.prompt, *row.answer]
            ids[line, at : at + len(whole)] = torch.tensor(whole)
            texts[line, at : at + len(whole)] = number + 1
            first = line * tokens + at + len(row.prompt) - 1  # what stands before a token foretells it
            places += range(first, first + len(row.answer))
            targets += row.answer
            owners += [answers] * len(row.answer)
            at, answers = at + len(whole), answers + 1
    slots = [list(group.slots) for group in groups]
    with torch.no_grad():
        cache = text_prefix(model.backbone, slots, [0] * len(groups), texts.to(device), kind=PackedCache)
    # Families scale or cap their logits in different ways, so their own forward makes them, of picked tokens only.
    picked = model.backbone.decoder.register_forward_hook(_Picked(torch.tensor(places, device=device)))
    try:
        with model.role("read"), expecting(cache):
            logits = model.hf(input_ids=ids.to(device), past_key_values=cache, use_cache=True).logits[0]
    finally:
        picked.remove()
    return logits.float(), torch.tensor(targets, device=device), torch.tensor(owners, device=device)


def answer_loss(model: MemoryModel, groups: Sequence[Group]) -> Tensor:
    """Cross-entropy of the answers' tokens; an answer of n tokens counts as √n, so that long ones do not drown short
    ones."""
    logits, targets, owners = answer_logits(model, groups)
    counts = owners.bincount()[owners].to(logits.dtype)
    losses = nn.functional.cross_entropy(logits, targets, reduction="none")
    return (losses / counts.sqrt()).sum() / (1 / counts.sqrt()).sum()


class ReaderTask(Task):
    """Batches are lists of `Group`."""

    def __init__(self, model: MemoryModel, groups: Callable[[int], list[Group]], base: str) -> None:
        """
        Args:
            groups: of a step, by its number.
            base: the name of the decoder, which checkpoints leave out.
        """
        require_reader(model)
        super().__init__(model)
        self.groups, self.base = groups, base

    @property
    def model(self) -> MemoryModel:
        model: Any = self.trained
        return model

    def batch(self, number: int) -> Batch:
        return {"batch": self.groups(number), "task": "reader"}

    def forward(self, batch: Any, name: str, seed: int) -> tuple[Tensor, Output]:
        return answer_loss(self.model, batch), Output()

    def save(self, folder: Path, weights: dict[str, Tensor] | None) -> None:
        self.model.save_pretrained(folder, state_dict=weights, base=self.base)


def adapter(model: MemoryModel) -> dict[str, nn.Parameter]:
    """The parameters of the reading adapter, by name."""
    return dict(adapter_parameters(model))


def require_reader(model: MemoryModel) -> None:
    """Raise where a model has no reader to train, or its memory is a learned one."""
    if model.config.writer != "text" or model.adapters is None:
        raise InvalidInputError("a reader is an adapter of text slots: attach the model with lora=LoraSettings(...)")


def prepare(model: MemoryModel) -> None:
    """Train the reader alone, in float32, by attention whose backward pass is fast on a CPU."""
    require_reader(model)
    model.requires_grad_(False)
    for parameter in adapter(model).values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    if model.device.type == "cpu":
        model.hf.set_attn_implementation(GROUPED)
    model.train()
