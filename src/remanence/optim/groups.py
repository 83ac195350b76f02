"""Parameter groups: which weights are projected, and what is trained in full."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from remanence.optim.layers import is_projected, project
from remanence.optim.projection import Projection
from remanence.optim.selection import Rule, Selection

OnRefresh = Literal["reset", "keep"]
EXCLUDED = "it was left out"
_log = logging.getLogger(__name__)


def grass_param_groups(
    model: nn.Module,
    rank: int = 128,
    update_proj_gap: int | None = None,
    scale: float = 0.25,
    selection: Selection = "subspace",
    *,
    replacement: bool = False,
    on_refresh: OnRefresh | None = None,
    rewarm_steps: int = 0,
    target_modules: str | Sequence[str] = "all-linear",
    exclude: str | Sequence[str] = (),
    sketch_size: int = 64,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Two parameter groups for `GrassAdamW`: projected weights, and all other parameters that take gradients.

    Projected are `nn.Linear`, transformers' `Conv1D`, and experts that lie in one tensor `[experts, out, in]`. Their
    modules are changed: from here on a backward pass gives the gradient along `rank` directions of the smaller side,
    or of `rank` rows (columns, where the weight has fewer of these; of experts always `rank` rows an expert, chosen
    over all of them), and `weight.grad` stays None. `release` undoes it. A weight with a side below `rank`, such as a
    small classification head, is trained in full.

    Args:
        rank: r, directions or rows of each weight that are trained at a time.
        update_proj_gap: optimizer steps between two selections. None: 200 where rows are selected, as published; 10
            along directions, which cost little to follow, and for few layers at a time.
        scale: factor on the updates of projected weights.
        selection, replacement: see `Rule`. "subspace" is ours and the best we measured; "top" is as published.
        on_refresh: "reset": all moments start anew with a selection; "keep": those of rows that were selected before
            and still are go on, those along directions are turned with them. None: "keep" along directions, "reset"
            where rows are selected, as published.
        rewarm_steps: after a selection, raise the learning rate of projected weights linearly over so many steps.
        target_modules: "all-linear": all of the above but the output head; else words, of which a layer's name must
            contain one, such as `["attn", "mlp"]`.
        exclude: words; layers whose names contain one are trained in full.
        sketch_size: s, columns of the sketch from which gradient norms are estimated at a refresh.
        seed: of all draws; the same in every process.

    Returns:
        Groups; `names` lists the projected layers of the first. `summary` tells what became of each.

    Raises:
        ValueError: nothing matched; a gap below one; a weight that something else uses too; a sparse embedding.
        TypeError: a word names modules, but none that can be projected.
    """
    along = selection == "subspace"
    update_proj_gap = (10 if along else 200) if update_proj_gap is None else update_proj_gap
    on_refresh = ("keep" if along else "reset") if on_refresh is None else on_refresh
    if update_proj_gap < 1:
        raise ValueError(f"update_proj_gap counts optimizer steps, so {update_proj_gap} makes no sense; take 200 or 10")
    if rank < 1 or sketch_size < 1 or rewarm_steps < 0:
        raise ValueError("rank and sketch_size are at least 1, rewarm_steps at least 0")
    Rule(selection, replacement)
    if on_refresh not in ("reset", "keep"):
        raise ValueError(f"on_refresh is 'reset' or 'keep', not {on_refresh!r}")
    if on_refresh == "keep" and replacement:
        raise ValueError("rows may be drawn twice with replacement, so that their moments cannot be kept; take 'reset'")
    targets, reasons = _targets(model, rank, target_modules, [exclude] if isinstance(exclude, str) else list(exclude))
    _require_own_weights(model, targets)
    projections: dict[int, Projection] = {}
    by_module: dict[nn.Module, dict[str, Projection]] = {}
    for name, module, parameter in targets:
        weight = module._parameters[parameter]
        assert weight is not None
        projection = projections.setdefault(id(weight), Projection(weight, rank, name, square_by_row=not along))
        by_module.setdefault(module, {})[parameter] = projection
    for module, held in by_module.items():
        project(module, held)
    if told := [f"{name} ({reason})" for name, reason in reasons.items() if reason != EXCLUDED]:
        _log.warning("Grass trains in full: %s", ", ".join(told))
    proxies = {id(p.proxy) for p in projections.values()}
    return [
        {
            "params": [p.proxy for p in projections.values()],
            "projections": list(projections.values()),
            "names": [name for name, *_ in targets],
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


Target = tuple[str, nn.Module, str]  # name of a layer, its module, name of the parameter there


def layers_of(model: nn.Module) -> Iterator[Target]:
    """Everything that multiplies by a matrix and might be projected."""
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            yield name, module, "weight"
            continue
        for parameter, weight in module._parameters.items():
            if weight is not None and weight.ndim == 3 and getattr(module, "num_experts", None) == len(weight):
                yield f"{name}.{parameter}".lstrip("."), module, parameter


def _targets(
    model: nn.Module, rank: int, wanted: str | Sequence[str], excluded: Sequence[str]
) -> tuple[list[Target], dict[str, str]]:
    """What to project; and, by name, why the rest of the layers is not."""
    for name, embedding in model.named_modules():
        if isinstance(embedding, (nn.Embedding, nn.EmbeddingBag)) and embedding.sparse:
            raise ValueError(
                f"{name} gives sparse gradients, which GrassAdamW does not take; make it with sparse=False"
            )
    layers = list(layers_of(model))
    if done := [name for name, module, _ in layers if is_projected(module)]:
        raise ValueError(f"{done[0]} is projected already; call release(model) first")
    words = None if wanted == "all-linear" else [wanted] if isinstance(wanted, str) else list(wanted)
    for word in words or ():
        named = [name for name, _ in model.named_modules() if word in name]
        if named and not any(word in name for name, *_ in layers):
            raise TypeError(
                f"{word!r} names modules, such as {named[0]}, but no linear layer, Conv1D or experts; "
                "Grass projects these"
            )
    head = getattr(model, "get_output_embeddings", lambda: None)()
    found, reasons = [], {}
    for name, module, parameter in layers:
        weight = module._parameters.get(parameter)
        if (words is None and module is head) or (words is not None and not any(word in name for word in words)):
            continue
        if reason := why_not(weight, rank) or (EXCLUDED if any(word in name for word in excluded) else None):
            reasons[name] = reason
        elif weight is not None and weight.requires_grad:
            found.append((name, module, parameter))
    if not found:
        listed = ", ".join(f"{name} ({reasons.get(name, 'not asked for')})" for name, *_ in layers[:8]) or "none"
        raise ValueError(f"no trainable linear layer matches {wanted!r}; linear layers here: {listed}")
    return found, reasons


def why_not(weight: Tensor | None, rank: int) -> str | None:
    """Why a weight cannot be projected, if so."""
    if weight is None:
        return "its weight is computed from others"  # weight_norm and the like
    if rank > min(weight.shape[-2:]):
        return f"its smaller side, {min(weight.shape[-2:])}, is below the rank"
    return None


def _require_own_weights(model: nn.Module, targets: Sequence[Target]) -> None:
    """A weight that something else uses too would lose the gradient that comes from there."""
    names = {id(module._parameters[parameter]): name for name, module, parameter in targets}
    projected = {(id(module), parameter) for _, module, parameter in targets}
    for name, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if id(parameter) in names and (id(module), key) not in projected:
                raise ValueError(
                    f"{names[id(parameter)]} shares its weight with {name}, which is not projected; "
                    "leave it out by exclude="
                )
