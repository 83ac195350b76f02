"""Directions in place of rows (ours): the r in which a weight's gradient is largest, followed from refresh to refresh.

GaLore (arXiv 2403.03507) takes them from the singular vectors of the whole gradient. Here the whole gradient G `[m, n]`
is never formed: the backward pass accumulates its product with r + s probes, as it does for the norms of rows. Most of
the probes are the first moments, whose product with G is one step of subspace iteration from where the directions were
(as in PowerSGD, arXiv 1905.13727); a few are random, so that what is new can enter. Moments are turned along with the
directions, as LDAdam (arXiv 2410.16103) does; a second moment as if the gradients of two directions were uncorrelated.
"""

import torch
from torch import Tensor

EXTRA = 8  # s, random probes


def probes(moment: Tensor | None, length: int, rank: int, generator: torch.Generator) -> Tensor:  # [length, r + s]
    """What a gradient is multiplied with, so that its largest directions show.

    Args:
        moment: `[length, r]`, first moments; None, before there are any: all probes are random.
    """
    count = EXTRA if moment is not None else rank + EXTRA
    random = torch.randn(length, count, generator=generator)
    if moment is None:
        return random
    drawn = random.to(moment.device)
    both = torch.cat([moment, drawn], dim=1)
    return both / both.norm(dim=0).clamp_min(torch.finfo(both.dtype).tiny)


def directions(sketch: Tensor, rank: int) -> Tensor:  # [m, r + s] -> [r, m]
    """The r orthonormal directions in which a sketch is largest, the largest first."""
    basis, upper = torch.linalg.qr(sketch)
    _, turn = torch.linalg.eigh(upper @ upper.t())  # ascending
    return (basis @ turn.flip(1)[:, :rank]).t().contiguous()
