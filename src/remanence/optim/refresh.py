"""What is trained of a weight is chosen anew: rows by the norms of their gradient, or directions by subspace iteration.

All of it hangs on the seed, the layer, the step and the state, so that a resumed run and every process choose the same.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, distributed
from torch.nn.functional import one_hot

from remanence.optim import moments
from remanence.optim.projection import Projection
from remanence.optim.selection import Rule
from remanence.optim.subspace import directions, probes

Group = dict[str, Any]
State = dict[str, Any]


SPREAD = 10  # steps over which the layers' refreshes are spread, so that few sketches are there at once


def phase_of(number: int, group: Group) -> int:
    """Steps after the start of a period at which a layer's turn comes. Rows are selected all at once, as published."""
    return number % min(SPREAD, group["update_proj_gap"]) if group["selection"] == "subspace" else 0


def due(number: int, group: Group) -> bool:
    """Whether something is selected for a layer at the end of this step."""
    return bool(group["step"] % group["update_proj_gap"] == phase_of(number, group))


def begin(projection: Projection, number: int, group: Group) -> None:
    """Before the first step: rows that are drawn evenly, whatever is selected later; directions are those of them."""
    _select(projection, Rule("uniform", group["replacement"]), torch.ones(projection.candidates), number, group)
    if by_directions(projection, group):
        projection.follow(one_hot(projection.rows, projection.candidates).float())


def prepare(projection: Projection, state: State | None, number: int, group: Group) -> None:
    """Before a step at whose end something is selected, let the backward pass sketch the gradient."""
    if group["selection"] == "uniform" or not due(number, group):
        return
    generator = torch.Generator().manual_seed(seed_of(group["seed"], number, group["step"], 1))
    if not by_directions(projection, group):
        projection.start_sketch(torch.randn(projection.contracted, group["sketch_size"], generator=generator))
        return
    moment = None if not state else moments.first(state)
    if moment is not None and projection.by_row:
        moment = moment.t()
    projection.start_sketch(probes(moment, projection.contracted, projection.rank, generator))


def renew(
    projection: Projection, state_of: Callable[[Tensor], State], number: int, group: Group, process_group: Any = None
) -> None:
    """After a step: select by its sketch, if its gradient was there to go by.

    Args:
        state_of: gives the state of a proxy, which it makes if there is none yet.
        process_group: over which sketches are added up.
    """
    sketch = _reduced(projection, process_group)
    projection.end_sketch()
    if group["selection"] != "uniform" and sketch is None:
        return
    before, held = projection.selected, state_of(projection.proxy)
    if by_directions(projection, group):
        assert sketch is not None
        projection.follow(_of_all(directions(sketch, projection.rank), process_group))
    else:
        norms = torch.ones(projection.candidates) if sketch is None else sketch.norm(dim=1)
        _select(projection, Rule(group["selection"], group["replacement"]), norms, number, group)
    if group["on_refresh"] == "reset":
        moments.reset(held)
    elif projection.basis is None:
        _carry(held, projection, before)
    else:
        moments.turn(held, projection.basis @ before.t(), 0 if projection.by_row else 1)
    note(held, projection)


def by_directions(projection: Projection, group: Mapping[str, Any]) -> bool:
    """Of experts, which would need directions each, the rows with the largest norms are taken instead."""
    return group["selection"] == "subspace" and projection.weight.ndim == 2


def note(state: State, projection: Projection) -> None:
    """Put what is selected into a state, to be saved with it."""
    if projection.basis is not None:
        state["basis"] = projection.basis
        return
    state["rows"] = projection.rows
    if projection.rho is not None:
        state["rho"] = projection.rho


def adopt(projection: Projection, state: State) -> None:
    """Go on with what a state says is selected."""
    if "basis" in state:
        projection.follow(state["basis"])
    else:
        projection.select(state["rows"], state.get("rho"))


def seed_of(seed: int, number: int, step: int, use: int) -> int:
    """One for each layer, step and use, so that no random state has to be saved."""
    mixed = seed
    for part in (number, step, use):
        mixed = (mixed * 6_364_136_223_846_793_005 + part + 1_442_695_040_888_963_407) % 2**63
    return mixed


def _reduced(projection: Projection, process_group: Any) -> Tensor | None:  # [candidates, s]
    """The sketch of all processes; None where there is none, or no gradient in it."""
    if projection.sketch is None:
        return None
    made = projection.sketch.value()
    sketch = torch.zeros_like(projection.sketch.leaf) if made is None else made
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(sketch, group=process_group)
    return sketch if bool(sketch.isfinite().all() & sketch.any()) else None


def _of_all(basis: Tensor, process_group: Any) -> Tensor:
    """Those of the first process: others may find the same directions with other signs."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.broadcast(basis, group=process_group, group_src=0)
    return basis


def _select(projection: Projection, rule: Rule, norms: Tensor, number: int, group: Group) -> None:
    seed = seed_of(group["seed"], number, group["step"], 0)
    projection.select(*rule.choose(norms, projection.rank, torch.Generator().manual_seed(seed)))


def _carry(state: State, projection: Projection, before: Tensor) -> None:
    """Moments of rows that stay selected go on; all others are zero."""
    place = torch.full((projection.candidates,), -1, device=before.device)
    place[before] = torch.arange(len(before), device=before.device)
    source = place[projection.rows]
    moments.carry(state, source.clamp(min=0), source >= 0, 0 if projection.by_row else 1)
