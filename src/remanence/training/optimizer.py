"""Muon for matrices, AdamW for the rest, behind one optimizer; and a choice of others."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from remanence.errors import InvalidInputError
from remanence.optim import GrassAdamW, grass_param_groups


class MuonAdamW(Optimizer):
    """torch's Muon and AdamW, driven as one, so that a Trainer can schedule, save and resume them.

    Args:
        matrices: parameters for Muon, 2-D.
        others: parameters for AdamW (embeddings, norms, vectors); may be none.
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        others: Iterable[nn.Parameter],
        *,
        muon_lr: float,
        adamw_lr: float = 0.0,
        weight_decay: float = 0.01,
        betas: tuple[float, float] = (0.9, 0.98),
    ) -> None:
        vectors = list(others)
        self._parts: list[Optimizer] = [Muon(list(matrices), lr=muon_lr, weight_decay=weight_decay)]
        if vectors:
            self._parts.append(AdamW(vectors, lr=adamw_lr, betas=betas, weight_decay=0.0))
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        """Let the parts step with the groups that a scheduler changes, and keep all state in one place."""
        for part, group in zip(self._parts, self.param_groups, strict=True):
            part.param_groups = [group]
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None if closure is None else closure()
        for part in self._parts:
            part.step()
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._share()


def split_parameters(model: nn.Module, part: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The trained matrices inside one part of a model, and every other trained parameter."""
    inside = {id(p) for p in part.parameters() if p.dim() == 2}
    trained = [p for p in model.parameters() if p.requires_grad]
    return [p for p in trained if id(p) in inside], [p for p in trained if id(p) not in inside]


def make_optimizer(
    name: str,
    model: nn.Module,
    *,
    lr: float,
    rank: int,
    default: Callable[[], Optimizer] | None = None,
    betas: tuple[float, float] = (0.9, 0.98),
    own_rate: tuple[Sequence[nn.Parameter], float] = ((), 0.0),
    max_grad_norm: float | None = None,
) -> Optimizer:
    """The optimizer that `remanence train --optimizer` names.

    Args:
        name: "default": the recipe's own; "adamw": AdamW; "grass": Grass on the linear layers of decoder layers, and
            AdamW on the rest, all at one learning rate.
        rank: for Grass, the directions of each weight that are trained at a time.
        own_rate: parameters with a learning rate of their own.
        max_grad_norm: what Grass clips to by itself; None: the Trainer clips.

    Raises:
        InvalidInputError: another name.
    """
    if name == "default" and default is not None:
        return default()
    apart = {id(parameter) for parameter in own_rate[0]}
    if name == "adamw":
        groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if p.requires_grad]}]
    elif name == "grass":
        groups = grass_param_groups(model, rank, scale=1.0, target_modules=["layers."])
    else:
        known = ["default"] * (default is not None) + ["adamw", "grass"]
        raise InvalidInputError(f"there is no optimizer {name!r} here; take {', '.join(known)}")
    groups[-1]["params"] = [parameter for parameter in groups[-1]["params"] if id(parameter) not in apart]
    if apart:
        groups.append({"params": list(own_rate[0]), "lr": own_rate[1]})
    if name == "adamw":
        return AdamW(groups, lr=lr, betas=betas, weight_decay=0.0)
    return GrassAdamW(groups, lr=lr, betas=betas, weight_decay=0.0, max_grad_norm=max_grad_norm)
