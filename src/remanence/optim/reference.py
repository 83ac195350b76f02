"""The plain path: Grass on one weight whose full gradient is at hand (Grass, algorithm 1). Written to be read.

`GrassAdamW` does the same from the gradient of the selected rows alone, and a test says that the two agree.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class PlainGrass:
    """Adam on the selected rows of a weight `[m, n]`, m <= n.

    Attributes:
        rows: `[r]`, selected; rho: `[r]`, their weights, or None where all are 1.
    """

    lr: float
    scale: float
    rows: Tensor
    rho: Tensor | None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    steps: int = 0
    first: Tensor = field(default_factory=lambda: torch.zeros(()))
    second: Tensor = field(default_factory=lambda: torch.zeros(()))

    def select(self, rows: Tensor, rho: Tensor | None) -> None:
        """Other rows, from here on; all moments start anew."""
        self.rows, self.rho = rows, rho
        self.steps, self.first, self.second = 0, torch.zeros(()), torch.zeros(())

    def step(self, weight: Tensor, gradient: Tensor) -> Tensor:  # [m, n] each -> [m, n]
        """The weight after a step."""
        m, r = len(weight), len(self.rows)
        p = torch.zeros(m, r)
        p[self.rows, torch.arange(r)] = torch.ones(r) if self.rho is None else self.rho
        projected = p.t() @ gradient  # [r, n]
        self.steps += 1
        self.first = self.betas[0] * self.first + (1 - self.betas[0]) * projected
        self.second = self.betas[1] * self.second + (1 - self.betas[1]) * projected**2
        unbiased = self.first / (1 - self.betas[0] ** self.steps)
        spread = (self.second / (1 - self.betas[1] ** self.steps)).sqrt() + self.eps
        return weight - self.lr * self.scale * (p @ (unbiased / spread))


@dataclass
class PlainSubspace:
    """Adam along directions (ours): of a weight `[m, n]`, the components of its gradient along `basis`, `[r, m]`."""

    lr: float
    scale: float
    basis: Tensor
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    steps: int = 0
    first: Tensor = field(default_factory=lambda: torch.zeros(()))
    second: Tensor = field(default_factory=lambda: torch.zeros(()))

    def turn(self, basis: Tensor) -> None:
        """Other directions, from here on; the moments go along."""
        along = basis @ self.basis.t()  # [r new, r old]
        self.basis, self.first, self.second = basis, along @ self.first, along**2 @ self.second

    def step(self, weight: Tensor, gradient: Tensor) -> Tensor:  # [m, n] each -> [m, n]
        """The weight after a step."""
        projected = self.basis @ gradient  # [r, n]
        self.steps += 1
        self.first = self.betas[0] * self.first + (1 - self.betas[0]) * projected
        self.second = self.betas[1] * self.second + (1 - self.betas[1]) * projected**2
        unbiased = self.first / (1 - self.betas[0] ** self.steps)
        spread = (self.second / (1 - self.betas[1] ** self.steps)).sqrt() + self.eps
        return weight - self.lr * self.scale * (self.basis.t() @ (unbiased / spread))
