"""Scores of long-term slots against a prompt (M+, section 3.2), and the prior that layers hand on."""

from math import log

import torch
from torch import Tensor, nn

from remanence.config import sigmoid
from remanence.errors import CorruptMemoryError

_AT_ONCE = 2**18  # scores of single tokens: they stay in a processor's cache until they are averaged
_ALIKE = 2**-22  # further apart than rounding puts scores of at most 1
_FLOOR = 1e-4  # a write that one layer gives no share can still be found by the others

# Logistic regression of right chunks against the best wrong one, in memories of 1 to 200 chunks (docs/research.md).
_LEXICAL, _LATENT, _BIAS = 10.0, 6.0, -3.9
_LATENT_ALONE, _BIAS_ALONE = 8.7, -3.1


def mean_sigmoid(queries: Tensor, keys: Tensor) -> Tensor:  # [T, P], [M, P] -> [M]
    """The mean over a prompt's tokens of sigmoid(q·k).

    Exact, a block of keys at a time. Averages are float32: in bfloat16, whole runs of slots would score alike.

    Raises:
        CorruptMemoryError: a score is not a number.
    """
    if not len(keys):
        return queries.new_empty(0, dtype=torch.float32)
    size = max(1, _AT_ONCE // max(1, len(queries))) if keys.device.type == "cpu" else len(keys)
    turned = queries.t()
    scores = torch.cat([(block @ turned).sigmoid_().mean(dim=1, dtype=torch.float32) for block in keys.split(size)])
    if bool(scores.isnan().any()):
        raise CorruptMemoryError(
            "scores of long-term slots are not numbers: the retriever or its keys hold NaN or infinity. "
            "Go back to a saved memory, or check the model in float32"
        )
    return scores


def best(scores: Tensor, wanted: int) -> Tensor:  # [M] -> [wanted], ascending indices
    """Top-k with ties broken by lowest index, such as those of one token in layer 0.

    `topk` alone takes any of equal scores, and a product rounds equal keys differently by how many stand beside them.
    """
    if not wanted:
        return torch.empty(0, dtype=torch.long)
    last = scores.topk(wanted).values[-1]
    above = (scores > last + _ALIKE).nonzero()[:, 0]
    alike = ((scores >= last - _ALIKE) & (scores <= last + _ALIKE)).nonzero()[: wanted - len(above), 0]
    return torch.cat([above, alike]).cpu().sort().values


class CrossLayerPrior:
    """How likely each write is, by the layers passed so far. Not in M+, where each layer retrieves for itself.

    What one write made stands in every layer, so what a layer found is evidence for those above it. A layer's softmax
    over its scores, summed for each write, is that layer's share; the product of the shares is the prior of the next
    layer. Serves one prompt, or several (`...`) that see the same writes.

    Args:
        temperature: T of softmax(score / T): that at which the retriever was trained to tell slots apart.
        slots_per_write: K; slots are numbered as they are made, K to a write.
    """

    def __init__(self, temperature: float, slots_per_write: int) -> None:
        self._temperature, self._k = temperature, slots_per_write
        self._first = 0
        self._prior: Tensor | None = None  # [..., W], of writes first, first + 1, ...: sum of log(share / floor)

    def apply(self, scores: Tensor, serial: Tensor) -> Tensor:  # [..., M], [M] -> [..., M]
        """The scores plus the current log-prior; then updates the prior with the unweighted scores.

        A score of -1 is that of a dropped slot. Gradients flow to the scores only.
        """
        writes = serial // self._k
        first, last = (int(edge) for edge in writes.aminmax())
        likely = (scores.detach() / self._temperature).softmax(-1)
        shares = likely.new_zeros(*likely.shape[:-1], last - first + 1).index_add_(-1, writes - first, likely)
        evidence = shares.clamp(min=_FLOOR).log() - log(_FLOOR)
        if self._prior is None:
            self._first, self._prior = first, torch.zeros_like(evidence)
        self._cover(first, last)
        own = slice(first - self._first, last + 1 - self._first)
        weighted = scores + self._temperature * self._prior[..., own].index_select(-1, writes - first)
        self._prior[..., own] += evidence
        return weighted.masked_fill(scores < 0, -torch.inf)

    def _cover(self, first: int, last: int) -> None:
        """Make room for writes of which no layer had a slot."""
        assert self._prior is not None
        before = max(0, self._first - first)
        behind = max(0, last + 1 - self._first - self._prior.shape[-1])
        self._first -= before
        self._prior = nn.functional.pad(self._prior, (before, behind))


def fused(lexical: float | None, latent: float) -> float:
    """One score in [0, 1] of a chunk's lexical score and its cosine; the second alone where no words are kept."""
    if lexical is None:
        return sigmoid(_LATENT_ALONE * latent + _BIAS_ALONE)
    return sigmoid(_LEXICAL * lexical + _LATENT * latent + _BIAS)
