"""From token lists to the tensors of a training step."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from remanence.model.inputs import left_padded


@dataclass(frozen=True)
class Prompts:
    """What R rows read, and what they must answer.

    Attributes:
        ids: `[R, T]`; labels: `[R, T]`, the next token where it counts, else -100.
        mask: `[R, T, T]` bool, which text a position sees (questions of one row do not see each other).
        positions: `[R, T]`, counted from 0 behind the memory.
        context: text in front of the examples; examples: how many of equal length stand behind it, side by side.
        text: labels are those of plain text, whose loss has a weight of its own.
    """

    ids: Tensor
    labels: Tensor
    mask: Tensor
    positions: Tensor
    context: int = 0
    examples: int = 1
    text: bool = False


@dataclass(frozen=True)
class Example:
    """Something to continue: `cue` is given, `answer` is predicted token by token."""

    cue: list[int]
    answer: list[int]


def left_pad(rows: Sequence[Sequence[int]], pad: int, minimum: int = 0) -> tuple[Tensor, list[int]]:  # [M, n]
    ids, _ = left_padded([torch.tensor(row) for row in rows], pad, minimum)
    return ids, [len(row) for row in rows]


def pack(rows: Sequence[Sequence[Example]], pad: int, contexts: Sequence[Sequence[int]] | None = None) -> Prompts:
    """Several examples per row, side by side: each sees the row's memory and context, and none sees another.

    All rows have the same number G of examples. `contexts` stand in front as plain text, with labels of their own: to
    predict what a text repeats, such as a name, is the densest lesson in looking things up.
    """
    width = max(len(e.cue) + len(e.answer) - 1 for row in rows for e in row)
    count = len(rows[0])
    ids = torch.full((len(rows), count, width), pad)
    labels = torch.full((len(rows), count, width), -100)
    for r, row in enumerate(rows):
        for g, example in enumerate(row):
            text = example.cue + example.answer[:-1]
            ids[r, g, : len(text)] = torch.tensor(text)
            labels[r, g, len(example.cue) - 1 : len(text)] = torch.tensor(example.answer)
    own = torch.block_diag(*[torch.ones(width, width).tril()] * count).bool().expand(len(rows), -1, -1)
    positions = torch.arange(width).repeat(len(rows), count)
    ids, labels = ids.flatten(1), labels.flatten(1)
    if contexts is None:
        return Prompts(ids, labels, own, positions, examples=count)
    front, lengths = left_pad(contexts, pad)
    length = torch.tensor(lengths)[:, None]
    place = torch.arange(front.shape[1]) - (front.shape[1] - length)  # [R, Tc], negative where padded
    real = place >= 0
    following = torch.cat([front[:, 1:], torch.full_like(front[:, :1], -100)], dim=1)
    causal = torch.ones(front.shape[1], front.shape[1], dtype=torch.bool).tril()
    # A padded position sees itself, so that no row of attention is empty.
    above = torch.cat(
        [
            (causal & real[:, None]) | torch.eye(front.shape[1], dtype=torch.bool),
            torch.zeros(len(rows), front.shape[1], ids.shape[1], dtype=torch.bool),
        ],
        dim=2,
    )
    below = torch.cat([real[:, None].expand(-1, ids.shape[1], -1), own], dim=2)
    return Prompts(
        torch.cat([front, ids], dim=1),
        torch.cat([following.masked_fill(~real, -100), labels], dim=1),
        torch.cat([above, below], dim=1),
        torch.cat([place.clamp(min=0), positions + length], dim=1),
        context=front.shape[1],
        examples=count,
    )


def continued(texts: Sequence[Sequence[int]], pad: int) -> Prompts:
    """Plain language modelling: each text is a row, and all of it behind its first token is predicted."""
    return replace(pack([[Example(list(text[:1]), list(text[1:]))] for text in texts], pad), text=True)
