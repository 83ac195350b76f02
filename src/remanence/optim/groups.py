"""Parameter groups: which layers are projected, and what is trained in full."""

import logging
from collections.abc import Sequence
from typing import Any, Literal

from torch import nn

from remanence.optim.projection import Projection, is_projected, project
from remanence.optim.selection import Rule, Selection

OnRefresh = Literal["reset", "keep"]
_log = logging.getLogger(__name__)


def grass_param_groups(
    model: nn.Module,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: float = 0.25,
    selection: Selection = "top",
    *,
    replacement: bool = False,
    on_refresh: OnRefresh = "reset",
    rewarm_steps: int = 0,
    target_modules: str | Sequence[str] = "all-linear",
    sketch_size: int = 64,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Two parameter groups for `GrassAdamW`: projected linear layers, and all other parameters that take gradients.

    The targeted layers are changed: from here on their backward pass computes the gradient of `rank` rows (columns,
    where the weight has fewer of these) and never more, and `weight.grad` stays None. `release` undoes it.

    Args:
        rank: r, rows of each weight that are trained at a time.
        update_proj_gap: optimizer steps between two selections.
        scale: factor on the updates of projected weights.
        selection, replacement: see `Rule`.
        on_refresh: "reset": all moments start anew with a selection, as published; "keep": those of rows that were
            selected before and still are go on.
        rewarm_steps: after a selection, raise the learning rate of projected weights linearly over so many steps.
        target_modules: "all-linear": every `nn.Linear` but the output head; else words, of which a layer's name must
            contain one, such as `["attn", "mlp"]`.
        sketch_size: s, columns of the sketch from which gradient norms are estimated at a refresh.
        seed: of all draws; the same in every process.

    Returns:
        Groups; `names` lists the projected layers of the first.

    Raises:
        ValueError: nothing matched; a rank above a weight's smaller side; a gap below one.
        TypeError: a word names modules, but none that is a linear layer.
    """
    if update_proj_gap < 1:
        raise ValueError(f"update_proj_gap counts optimizer steps, so {update_proj_gap} makes no sense; take 200")
    if rank < 1 or sketch_size < 1 or rewarm_steps < 0:
        raise ValueError("rank and sketch_size are at least 1, rewarm_steps at least 0")
    Rule(selection, replacement)
    if on_refresh not in ("reset", "keep"):
        raise ValueError(f"on_refresh is 'reset' or 'keep', not {on_refresh!r}")
    if on_refresh == "keep" and replacement:
        raise ValueError("rows may be drawn twice with replacement, so that their moments cannot be kept; take 'reset'")
    layers = _targets(model, target_modules)
    projections: dict[int, Projection] = {}
    for name, module in layers.items():
        if rank > min(module.weight.shape):
            raise ValueError(
                f"rank {rank} is above the smaller side of {name}, {list(module.weight.shape)}; "
                f"take at most {min(module.weight.shape)}, or leave it out by target_modules"
            )
    _require_linear_use(model, layers)
    for module in layers.values():
        projection = projections.setdefault(id(module.weight), Projection(module.weight, rank))
        project(module, projection)
    _log.info("Grass projects %d linear layers: %s", len(layers), ", ".join(layers))
    proxies = {id(p.proxy) for p in projections.values()}
    return [
        {
            "params": [p.proxy for p in projections.values()],
            "projections": list(projections.values()),
            "names": list(layers),
            "rank": rank,
            "update_proj_gap": update_proj_gap,
            "scale": scale,
            "selection": selection,
            "replacement": replacement,
            "on_refresh": on_refresh,
            "rewarm_steps": rewarm_steps,
            "sketch_size": sketch_size,
            "seed": seed,
        },
        {"params": [p for p in model.parameters() if p.requires_grad and id(p) not in proxies]},
    ]


def _targets(model: nn.Module, wanted: str | Sequence[str]) -> dict[str, nn.Linear]:
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    if done := [name for name, module in linear.items() if is_projected(module)]:
        raise ValueError(f"{done[0]} is projected already; call release(model) first")
    if wanted == "all-linear":
        head = getattr(model, "get_output_embeddings", lambda: None)()
        found = {name: module for name, module in linear.items() if module is not head}
    else:
        words = [wanted] if isinstance(wanted, str) else list(wanted)
        for word in words:
            named = [name for name, _ in model.named_modules() if word in name]
            if named and not any(word in name for name in linear):
                raise TypeError(
                    f"{word!r} names modules, such as {named[0]}, but no linear layer; Grass projects these"
                )
        found = {name: module for name, module in linear.items() if any(word in name for word in words)}
    found = {name: module for name, module in found.items() if module.weight.requires_grad}
    if not found:
        raise ValueError(
            f"no trainable linear layer matches {wanted!r}; linear layers here: {', '.join(list(linear)[:8]) or 'none'}"
        )
    return found


def _require_linear_use(model: nn.Module, layers: dict[str, nn.Linear]) -> None:
    """A weight that something else uses too would lose the gradient that comes from there."""
    weights = {id(module.weight): name for name, module in layers.items()}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if id(parameter) in weights and name not in layers:
                raise ValueError(
                    f"{weights[id(parameter)]} shares its weight with {name}, which is not projected; "
                    "leave it out by target_modules"
                )
