"""The methods that are compared, each used as its authors say, and the bytes it holds.

Each maker takes a model, changes it where its method does, and returns the optimizer. Projected are the linear layers
of attention and MLP; embeddings, norms and the output head are trained in full by all methods. No weight decay.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from remanence.kernels.onednn import use_onednn
from remanence.optim import GrassAdamW, grass_param_groups

TARGETS = ("attn", "mlp")  # what the names of projected layers contain, as in GaLore's and APOLLO's scripts

Optimizer = torch.optim.Optimizer


@dataclass(frozen=True)
class Projecting:
    """The same for all methods that project.

    Attributes:
        rank, gap, seed: a rank, and optimizer steps between two refreshes; of draws.
        rest: the learning rate of what is not projected; None: that of all.
    """

    rank: int
    gap: int
    seed: int = 0
    rest: float | None = None


Maker = Callable[[nn.Module, Projecting, float], Optimizer]


def adamw(model: nn.Module, by: Projecting, lr: float) -> Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=lr, weight_decay=0.0, fused=trained[0].is_cuda)


def adamw_onednn(model: nn.Module, by: Projecting, lr: float) -> Optimizer:
    """AdamW with the products that Grass has: what is left between the two is Grass alone."""
    use_onednn(model)
    return adamw(model, by, lr)


def adamw_scaled(model: nn.Module, by: Projecting, lr: float, scale: float = 1.0) -> Optimizer:
    """The layers that others project learn at a part of the rate, as their scale has it there.

    Without it a comparison shows what embeddings gain from a rate of their own, and not what projecting costs.
    """
    rest, linear = two_groups(model, by, {"lr": scale * lr})
    return torch.optim.AdamW([rest, linear], lr=lr, weight_decay=0.0, fused=linear["params"][0].is_cuda)


def grass(
    model: nn.Module, by: Projecting, lr: float, times: int = 1, scale: float = 0.25, **settings: Any
) -> Optimizer:
    shared = {"rank": times * by.rank, "update_proj_gap": by.gap, "seed": by.seed, "target_modules": TARGETS}
    linear, rest = grass_param_groups(model, **{**shared, "scale": scale, **settings})
    return GrassAdamW([linear, _at_own_rate(rest, by)], lr=lr)


def galore(model: nn.Module, by: Projecting, lr: float, scale: float = 0.25) -> Optimizer:
    from galore_torch import GaLoreAdamW

    groups = two_groups(model, by, projecting(by, scale))
    made: Optimizer = GaLoreAdamW(groups, lr=lr, no_deprecation_warning=True)
    return made


def apollo(model: nn.Module, by: Projecting, lr: float) -> Optimizer:
    from apollo_torch import APOLLOAdamW

    settings = {**projecting(by, 1), "proj": "random", "scale_type": "channel"}
    made: Optimizer = APOLLOAdamW(two_groups(model, by, settings), lr=lr)
    return made


def projecting(by: Projecting, scale: float) -> dict[str, Any]:
    return {"rank": by.rank, "update_proj_gap": by.gap, "scale": scale, "proj_type": "std"}


def two_groups(model: nn.Module, by: Projecting, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameter groups of GaLore's README: what is trained in full, and what is projected."""
    projected = [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(word in name for word in TARGETS)
    ]
    known = {id(weight) for weight in projected}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return [_at_own_rate({"params": rest}, by), {"params": projected, **settings}]


def _at_own_rate(rest: dict[str, Any], by: Projecting) -> dict[str, Any]:
    return rest if by.rest is None else {**rest, "lr": by.rest}


def lora(
    model: nn.Module, by: Projecting, lr: float, r: int | None = None, alpha: int | None = None, *, alone: bool = False
) -> Optimizer:
    """Adapters beside frozen weights. What other methods train in full, it trains in full too, or they learn alone."""
    from peft import LoraConfig, inject_adapter_in_model

    layers = rf".*({'|'.join(TARGETS)})\.\w+_proj"
    inject_adapter_in_model(LoraConfig(r=r or by.rank, lora_alpha=alpha or by.rank, target_modules=layers), model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name or not (alone or "base_layer" in name))
    return adamw(model, by, lr)


keeping = partial(grass, selection="multinomial_norm", on_refresh="keep")
METHODS: dict[str, Maker] = {
    "adamw": adamw,
    "adamw-scale0.25": partial(adamw_scaled, scale=0.25),
    "adamw-scale0.0625": partial(adamw_scaled, scale=0.0625),
    "adamw-scale0.03125": partial(adamw_scaled, scale=0.03125),
    "galore": galore,
    "galore-scale0.0625": partial(galore, scale=0.0625),
    "apollo": apollo,
    "lora": lora,
    "grass-subspace-scale0.0625": partial(grass, selection="subspace", update_proj_gap=None, scale=0.0625),
    "grass-top-reset": partial(grass, selection="top"),  # as published
    "grass-top-keep": partial(grass, selection="top", on_refresh="keep"),
    "grass-multinomial_norm-reset": partial(grass, selection="multinomial_norm"),
    "grass-multinomial_norm-keep": keeping,
    "grass-uniform-reset": partial(grass, selection="uniform"),
    "grass-uniform-keep": partial(grass, selection="uniform", on_refresh="keep"),
    "grass-multinomial_norm-keep-twice": partial(keeping, times=2),
    "grass-multinomial_norm-keep-twice-scale0.0625": partial(keeping, times=2, scale=0.0625),
    "grass-multinomial_norm-keep-scale0.0625": partial(keeping, scale=0.0625),
    "grass-multinomial_norm-keep-scale0.03125": partial(keeping, scale=0.03125),
    "grass-multinomial_norm-keep-scale1": partial(keeping, scale=1.0),
}


def gradient_bytes(model: nn.Module) -> int:
    return sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)


def state_bytes(optimizer: Optimizer) -> int:
    """Of all tensors in the state, and of those that a projector keeps there."""
    held = {}
    for state in optimizer.state.values():
        for value in state.values():
            for part in (value, getattr(value, "ortho_matrix", None)):
                if isinstance(part, torch.Tensor):
                    held[part.untyped_storage().data_ptr()] = part.nbytes
    return sum(held.values())
