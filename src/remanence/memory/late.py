"""Late interaction: each token of a question finds the token of a chunk that answers it best.

Keys and what a question's tokens ask are int8. Their products are whole numbers that float32 holds exactly, so the
score of a chunk depends on no other chunk, nor on how many are compared at once.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from remanence.config import sigmoid

_AT_ONCE = 2**16  # products of tokens that are made at once: with their keys they stay in a processor's cache
_UNIT = 127  # what stands for 1


@dataclass(frozen=True)
class Fusion:
    """The logistic that makes one score of several.

    Attributes:
        lexical, late, bias: of the score of words and that of tokens.
        late_alone, bias_alone: where a memory keeps no words.
    """

    lexical: float
    late: float
    bias: float
    late_alone: float
    bias_alone: float


@dataclass(frozen=True)
class LateQuery:
    """What a question's tokens ask.

    Attributes:
        vectors: `[q, S]`, int8.
        shares: `[q]`, float32, how much each token counts; they sum to 1.
        offset: added to the logistic's bias: how well a question such as this one is answered at all.
    """

    vectors: Tensor
    shares: Tensor
    offset: float
    fusion: Fusion

    def fused(self, lexical: float | None, late: float) -> float:
        """One score in [0, 1]; `lexical` None: where no words are kept."""
        held = self.fusion
        if lexical is None:
            logit = held.late_alone * late + held.bias_alone
        else:
            logit = held.lexical * lexical + held.late * late + held.bias
        return sigmoid(logit + self.offset)


def to_int8(vectors: Tensor) -> Tensor:  # [n, S] of unit length -> [n, S]
    """Vectors as keys are kept."""
    return (vectors.float() * _UNIT).round().to("cpu", torch.int8)


def late_scores(keys: Sequence[Tensor], query: LateQuery) -> list[float]:  # [n, S] each
    """How well each chunk answers: the mean, by share, over the question's tokens of the best product, in [-1, 1]."""
    found: list[float] = []
    asked = query.vectors.float()
    for block in _blocks(keys, max(1, _AT_ONCE // len(asked))):
        starts = np.cumsum([0, *(len(each) for each in block[:-1])])
        products = asked @ torch.cat(block).float().t()  # [q, tokens]
        best = torch.from_numpy(np.maximum.reduceat(products.numpy(), starts, axis=1))
        found += (best.t().contiguous() * query.shares).sum(dim=1).div(_UNIT**2).tolist()
    return found


def _blocks(keys: Sequence[Tensor], most: int) -> Iterator[list[Tensor]]:
    """Chunks in their order, of so many tokens together, one at least."""
    block: list[Tensor] = []
    tokens = 0
    for each in keys:
        if block and tokens + len(each) > most:
            yield block
            block, tokens = [], 0
        block.append(each)
        tokens += len(each)
    if block:
        yield block
