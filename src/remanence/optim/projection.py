"""What is selected of one weight, and where its gradient is accumulated (Grass, section 4).

A projected weight takes no gradient. In its place stands a parameter of the size of the selected rows, the *proxy*, and
autograd accumulates their gradient in `proxy.grad`: gradient accumulation, hooks, clipping, `GradScaler`,
`DistributedDataParallel` (whose buckets then hold these rows only), activation checkpointing and `torch.compile` all
do their work on it as on any other. The proxy's values do not take part in the forward pass; the optimizer keeps its
first moment there, so that they cost nothing.
"""

from typing import Any

import torch
from torch import Tensor, nn

from remanence.kernels.onednn import product_back, transposed_product


class Sketch:
    """A linear sketch of a whole gradient, from which the norms of its rows, or its directions, are estimated.

    It adds up over micro-batches for as long as the proxy's gradient does, and starts anew where that does: a batch
    that was dropped by `zero_grad`, or whose step a `GradScaler` skipped, leaves nothing here.

    Attributes:
        leaf: `[m, s]`, zeros; autograd computes the sketch as its gradient.
        noise: `[n, s]`, what the gradient `[m, n]` is multiplied with; standard normal where norms are estimated.
    """

    def __init__(self, proxy: nn.Parameter, rows: int, noise: Tensor) -> None:
        self.noise = noise
        self.leaf = torch.zeros(rows, noise.shape[1], device=noise.device, requires_grad=True)
        self._earlier: Tensor | None = None
        self._latest: Tensor | None = None
        # Of the two that one backward pass accumulates, in whichever order, the one still to come.
        self._awaited: str | None = None
        self._handles = (
            proxy.register_hook(lambda _gradient: self._with_proxy(proxy)),
            self.leaf.register_post_accumulate_grad_hook(self._add),
        )

    def _with_proxy(self, proxy: nn.Parameter) -> None:
        """Just before a backward pass adds to the proxy's gradient."""
        first = self._awaited != "proxy"
        self._awaited = "sketch" if first else None
        if proxy.grad is None or not bool(proxy.grad.any()):
            self._earlier = None
            self._latest = None if first else self._latest

    def _add(self, leaf: Tensor) -> None:
        self._earlier, self._latest, leaf.grad = self.value(), leaf.grad, None
        self._awaited = None if self._awaited == "sketch" else "proxy"

    def value(self) -> Tensor | None:
        """`[m, s]`, or None where no backward pass came by."""
        if self._earlier is None or self._latest is None:
            return self._latest if self._earlier is None else self._earlier
        return self._earlier + self._latest

    def forget(self) -> None:
        self._earlier = self._latest = self._awaited = None

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()


class Projection:
    """What is selected of one weight: `[out, in]`, or `[experts, out, in]`, whose rows are selected over all experts.

    Attributes:
        name: of the first layer that the weight is of.
        by_row: r of the m rows are selected, and the proxy is `[r, n]`; else r of the n columns: `[m, r]`.
            The smaller side is selected from, as published; of experts the rows.
        candidates: how many there are to select from; contracted: the length of the other side.
        rows: `[r]`, int64, which; rho: `[r]`, float32, their weights, or None where all are 1.
        basis: `[r, candidates]`, float32, orthonormal directions in the place of rows; None: rows are selected.
        sketch: while norms or directions are estimated.
    """

    def __init__(self, weight: Tensor, rank: int, name: str, *, square_by_row: bool = True) -> None:
        """`square_by_row`: of a square weight, rows are selected; else columns."""
        self.weight, self.name = weight, name
        experts = weight.shape[0] if weight.ndim == 3 else 1
        self.rank = rank * experts
        m, n = weight.shape[:-1].numel(), weight.shape[-1]
        self.by_row = experts > 1 or m < n or (m == n and square_by_row)
        self.candidates, self.contracted = (m, n) if self.by_row else (n, m)
        shape = (self.rank, n) if self.by_row else (m, self.rank)
        self.proxy = nn.Parameter(torch.zeros(shape, dtype=torch.float32, device=weight.device))
        self.rows = torch.arange(self.rank, device=weight.device)
        self.basis: Tensor | None = None
        self.rho: Tensor | None = None
        self.sketch: Sketch | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Of a copy of the model, of which no optimizer knows, no norms are estimated."""
        return {**self.__dict__, "sketch": None}

    @property
    def selected(self) -> Tensor:
        return self.rows if self.basis is None else self.basis

    def select(self, rows: Tensor, rho: Tensor | None) -> None:
        self.rows, self.basis = rows.to(self.weight.device), None
        self.rho = None if rho is None else rho.to(self.weight.device)

    def follow(self, basis: Tensor) -> None:  # [r, candidates]
        self.basis, self.rho = basis.to(self.weight.device), None

    def spread(self, delta: Tensor, first: int, last: int) -> Tensor:  # as the proxy -> [last - first, in]
        """What a change of the proxy's shape, along directions, changes in a weight's rows from `first` to `last`."""
        assert self.basis is not None
        if self.by_row:
            return transposed_product(self.basis[:, first:last].contiguous(), delta)
        return product_back(delta[first:last].contiguous(), self.basis)

    def along(self, values: Tensor) -> Tensor:  # [r] -> as wide as the proxy, to be multiplied with it
        return values[:, None] if self.by_row else values[None]

    def start_sketch(self, noise: Tensor) -> None:  # [contracted, s]
        """Let backward passes accumulate a sketch, `[candidates, s]`, of the full gradient, which is never formed."""
        self.end_sketch()
        self.sketch = Sketch(self.proxy, self.candidates, noise.to(self.weight.device))

    def end_sketch(self) -> None:
        if self.sketch is not None:
            self.sketch.close()
        self.sketch = None

    def move(self, device: torch.device) -> None:
        """Follow a model that was moved to another device. A sketch starts anew there."""
        self.rows = self.rows.to(device)
        self.basis = None if self.basis is None else self.basis.to(device)
        self.rho = None if self.rho is None else self.rho.to(device)
        if self.sketch is not None and self.sketch.leaf.device != device:
            noise = self.sketch.noise.to(device)
            self.sketch.close()
            self.sketch = Sketch(self.proxy, self.candidates, noise)
