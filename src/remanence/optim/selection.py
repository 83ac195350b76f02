"""Which rows of a gradient are kept, and how they are weighed (Grass, section 3)."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Selection = Literal["subspace", "top", "multinomial_norm", "multinomial_norm2", "uniform"]
SELECTIONS: tuple[Selection, ...] = get_args(Selection)


@dataclass(frozen=True)
class Rule:
    """How r of m rows are chosen by their gradient norms.

    Attributes:
        selection: "subspace" (ours): not rows but directions (see `subspace`); where there are none, as "top".
            "top": the r largest norms. "multinomial_norm", "multinomial_norm2": drawn with probability in
            proportion to the norm, or to its square. "uniform": drawn evenly; norms are not looked at.
        replacement: draw with replacement, and weigh row j by 1/sqrt(r·q_j), which makes the projected gradient
            unbiased; without, rows are unique and weigh 1.
    """

    selection: Selection = "top"
    replacement: bool = False

    def __post_init__(self) -> None:
        if self.selection not in SELECTIONS:
            raise ValueError(f"selection is one of {', '.join(SELECTIONS)}, not {self.selection!r}")
        if self.replacement and self.selection in ("subspace", "top"):
            raise ValueError("the top rows are not drawn, so replacement= does not apply; take a multinomial selection")

    def choose(self, norms: Tensor, rank: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """Rows to keep, ascending, and their weights, `[r]` each; None where all weigh 1.

        Args:
            norms: `[m]`, of the gradient's rows; where none is above zero all rows are alike.
            generator: on the CPU, so that all devices and processes draw the same.
        """
        if self.selection in ("subspace", "top"):
            rows = norms.float().topk(rank).indices.sort().values
            return rows, None
        weights = self._weights(norms.double().cpu())
        rows = torch.multinomial(weights, rank, self.replacement, generator=generator).sort().values
        if not self.replacement:
            return rows.to(norms.device), None
        share = weights[rows] / weights.sum()
        return rows.to(norms.device), (rank * share).rsqrt().float().to(norms.device)

    def _weights(self, norms: Tensor) -> Tensor:  # [m], all above zero
        if self.selection == "uniform" or not bool((norms > 0).any()):
            return torch.ones_like(norms)
        weights = norms.square() if self.selection == "multinomial_norm2" else norms
        # A draw without replacement must find r rows also where fewer have a gradient.
        return weights / weights.max() + 1e-12
