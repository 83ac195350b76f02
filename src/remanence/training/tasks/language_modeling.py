"""Running text: read alone, behind a memory of what stands in front of it, and behind a memory of other text.

What a memory is for, where nobody asks a question (MemoryLLM, section 3.2): a text is cut, its front is written, and
the rest is predicted. Behind other text the same must be as easy as alone.
"""

import random
from collections.abc import Sequence

import torch

from remanence.training.tasks.pool_task import PoolBatch
from remanence.training.tasks.prompts import Prompts, continued, left_pad

LENGTHS = (256, 384, 512)  # tokens that are read
FRONT, CHUNK = 2, 128  # chunks that are written of what stands in front of them, and tokens of each


class TextTask:
    """Builds the batches of a training step.

    Args:
        text: tokens of documents, one behind the other.
        pad: the token for padding.
        slots: N; slots_per_write: K.
        tokens: read per step; at least two rows are.
    """

    def __init__(self, text: Sequence[int], pad: int, *, slots: int, slots_per_write: int, tokens: int) -> None:
        self.text, self.pad, self.capacity, self.tokens = text, pad, slots // slots_per_write, tokens

    def alone(self, rng: random.Random) -> Prompts:
        length = rng.choice(LENGTHS)
        return continued([self._window(rng, length) for _ in range(self._rows(length))], self.pad)

    def behind_memory(self, rng: random.Random, *, related: bool) -> PoolBatch:
        """Each row reads a pool of other rows' chunks; where it is `related`, those of its own front are the newest."""
        length = rng.choice(LENGTHS)
        rows, front = self._rows(length), FRONT * CHUNK
        texts = [self._window(rng, front + length) for _ in range(rows)]
        chunks = [text[start : start + CHUNK] for text in texts for start in range(0, front, CHUNK)]
        written = min(self.capacity + self.capacity // 2, len(chunks) - FRONT)
        order = []
        for row in range(rows):
            own = range(row * FRONT, (row + 1) * FRONT)
            others = rng.sample([chunk for chunk in range(len(chunks)) if chunk not in own], written)
            order.append([*others[FRONT:], *own] if related else others)
        targets = related * torch.eye(rows).repeat_interleave(FRONT, dim=1).bool()
        ids, lengths = left_pad(chunks, self.pad)
        prompts = continued([text[front:] for text in texts], self.pad)
        return PoolBatch(ids, lengths, torch.tensor(order), targets, prompts)

    def _rows(self, length: int) -> int:
        return max(2, self.tokens // length)

    def _window(self, rng: random.Random, length: int) -> list[int]:
        start = rng.randrange(len(self.text) - length + 1)
        return list(self.text[start : start + length])
