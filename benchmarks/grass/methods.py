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
    """The same for all methods that project: a rank, and optimizer steps between two refreshes; a seed of draws."""

    rank: int
    gap: int
    seed: int = 0


Maker = Callable[[nn.Module, Projecting, float], Optimizer]


def adamw(model: nn.Module, by: Projecting, lr: float) -> Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=lr, weight_decay=0.0, fused=trained[0].is_cuda)


def adamw_onednn(model: nn.Module, by: Projecting, lr: float) -> Optimizer:
    """AdamW with the products that Grass has: what is left between the two is Grass alone."""
    use_onednn(model)
    return adamw(model, by, lr)


def adamw_scaled(model: nn.Module, by: Projecting, lr: float, scale: float) -> Optimizer:
    """The layers that others project learn at a part of the rate, as their scale has it there.

    Without it a comparison shows what embeddings gain from a rate of their own, and not what projecting costs.
    """
    rest, linear = two_groups(model, {"lr": scale * lr})
    return torch.optim.AdamW([rest, linear], lr=lr, weight_decay=0.0, fused=linear["params"][0].is_cuda)


def grass(model: nn.Module, by: Projecting, lr: float, times: int = 1, **settings: Any) -> Optimizer:
    shared = {"rank": times * by.rank, "update_proj_gap": by.gap, "seed": by.seed, "target_modules": TARGETS}
    return GrassAdamW(grass_param_groups(model, **{**shared, "scale": 0.25, **settings}), lr=lr)


def galore(model: nn.Module, by: Projecting, lr: float, scale: float = 0.25) -> Optimizer:
    from galore_torch import GaLoreAdamW

    settings = {"rank": by.rank, "update_proj_gap": by.gap, "scale": scale, "proj_type": "std"}
    made: Optimizer = GaLoreAdamW(two_groups(model, settings), lr=lr, no_deprecation_warning=True)
    return made


def apollo(model: nn.Module, by: Projecting, lr: float) -> Optimizer:
    from apollo_torch import APOLLOAdamW

    settings = {"rank": by.rank, "update_proj_gap": by.gap, "scale": 1, "proj_type": "std"}
    made: Optimizer = APOLLOAdamW(two_groups(model, {**settings, "proj": "random", "scale_type": "channel"}), lr=lr)
    return made


def two_groups(model: nn.Module, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The parameter groups of GaLore's README: what is trained in full, and what is projected."""
    projected = [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(word in name for word in TARGETS)
    ]
    known = {id(weight) for weight in projected}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    return [{"params": rest}, {"params": projected, **settings}]


def lora(model: nn.Module, by: Projecting, lr: float) -> Optimizer:
    """Adapters beside frozen random weights. What other methods train in full, it trains in full too."""
    from peft import LoraConfig, inject_adapter_in_model

    config = LoraConfig(r=by.rank, lora_alpha=by.rank, target_modules=rf".*({'|'.join(TARGETS)})\.\w+_proj")
    inject_adapter_in_model(config, model)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("base_layer" not in name)
    return adamw(model, by, lr)


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
    "grass-multinomial_norm-keep": partial(grass, selection="multinomial_norm", on_refresh="keep"),
    "grass-uniform-reset": partial(grass, selection="uniform"),
    "grass-uniform-keep": partial(grass, selection="uniform", on_refresh="keep"),
    "grass-multinomial_norm-keep-twice": partial(grass, selection="multinomial_norm", on_refresh="keep", times=2),
    "grass-multinomial_norm-keep-twice-scale0.0625": partial(
        grass, selection="multinomial_norm", on_refresh="keep", times=2, scale=0.0625
    ),
    "grass-multinomial_norm-keep-scale0.0625": partial(
        grass, selection="multinomial_norm", on_refresh="keep", scale=0.0625
    ),
    "grass-multinomial_norm-keep-scale0.03125": partial(
        grass, selection="multinomial_norm", on_refresh="keep", scale=0.03125
    ),
    "grass-multinomial_norm-keep-scale1": partial(grass, selection="multinomial_norm", on_refresh="keep", scale=1.0),
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
