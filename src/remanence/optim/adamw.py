"""AdamW that keeps moments for, and updates, the selected rows or directions only (Grass, algorithm 1)."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, distributed
from torch.optim import Optimizer

from remanence.optim import moments, refresh
from remanence.optim.loading import require_own
from remanence.optim.projection import Projection
from remanence.optim.rounding import round_stochastically
from remanence.optim.sharding import first_row, is_sharded, local, mean_over, norm_of

Rounding = Literal["stochastic", "nearest"]


class GrassAdamW(Optimizer):
    """A drop-in `torch.optim.Optimizer` for the groups that `grass_param_groups` makes.

    When rows or directions are selected: after step 0, and from then on after every `update_proj_gap` steps, at the end
    of `step`, by a sketch of the gradient of that very step, over all its micro-batches and processes; directions up to
    9 steps later, layer by layer. Until then, rows that are drawn evenly are trained. The gradient of a whole weight is
    never formed.

    Weight decay is decoupled and shrinks whole weights, not only what is selected. A step whose gradients are not all
    finite changes nothing and is counted in `skipped_steps`.

    Args:
        params: groups, or parameters to be trained in full.
        max_grad_norm: clip the norm of all gradients, projected ones as they are; None: leave it to others.
            `clip_grad_norm_` sees projected gradients too; their norm is below that of full ones.
        rounding: of weights in bfloat16: "stochastic", or "nearest", which loses most updates at small learning rates.
            Weights in float32 are not rounded.
        layerwise: update each parameter within the backward pass, as soon as its gradient is there, and let go of it.
            Gradients then take the room of one layer; what has to see all of them is refused: clipping, accumulation
            over micro-batches, several processes. Where a gradient is not finite, that parameter alone is skipped.
        state_bits: 32, or 8: moments in 8 bits through torchao, a quarter of the room. Float32 stay those of parameters
            that are sharded or have fewer than 4,096 values. A state that was saved with the other is converted.
        process_group: over which sketches are added up, where gradients are reduced over several processes.

    Attributes:
        grad_norm: of the last step, before clipping.
        skipped_steps: how many steps were skipped.

    Raises:
        ValueError: an argument is out of range or does not go with another, or a parameter is in two groups.
        ImportError: state_bits=8 without torchao.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        *,
        max_grad_norm: float | None = None,
        rounding: Rounding = "stochastic",
        layerwise: bool = False,
        state_bits: Literal[8, 32] = 32,
        process_group: Any = None,
    ) -> None:
        if lr < 0 or eps < 0 or weight_decay < 0 or not all(0 <= beta < 1 for beta in betas):
            raise ValueError("lr, eps and weight_decay are not negative, and betas lie in [0, 1)")
        if rounding not in ("stochastic", "nearest"):
            raise ValueError(f"rounding is 'stochastic' or 'nearest', not {rounding!r}")
        if max_grad_norm is not None and max_grad_norm <= 0:
            raise ValueError(f"max_grad_norm is above 0, or None, not {max_grad_norm}")
        if layerwise and max_grad_norm is not None:
            raise ValueError("clipping needs all gradients at once; leave out max_grad_norm, or layerwise")
        if state_bits not in (8, 32):
            raise ValueError(f"state_bits is 8 or 32, not {state_bits}")
        if state_bits == 8:
            moments.require_torchao()
        self.max_grad_norm, self.rounding, self.process_group = max_grad_norm, rounding, process_group
        self.grad_norm, self.skipped_steps, self.layerwise = 0.0, 0, layerwise
        self.state_bits = state_bits
        self._projections: dict[int, Projection] = {}
        self._blanks: dict[torch.device, Tensor] = {}
        self._idle: set[str] = set()
        self._done: dict[int, float] = {}  # parameters updated since the last step, and their squared gradient norms
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "step": 0})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        group = dict(param_group)
        projections = group.pop("projections", [])
        asked = [key for key in ("rank", "update_proj_gap", "scale", "proj_type") if key in group]
        if asked and not projections:
            raise ValueError(
                f"these parameters would be trained in full, though {asked[0]!r} asks for a projection; "
                "make the groups by grass_param_groups(model), which changes the layers too"
            )
        super().add_param_group(group)
        for number, (proxy, projection) in enumerate(zip(group["params"], projections, strict=False)):
            self._projections[id(proxy)] = projection
            refresh.begin(projection, number, group)
            refresh.prepare(projection, None, number, group)
        if self.layerwise:
            for number, parameter in enumerate(group["params"]):
                parameter.register_post_accumulate_grad_hook(partial(self._in_backward, number, self.param_groups[-1]))

    @torch.no_grad()
    def _in_backward(self, number: int, group: dict[str, Any], parameter: Tensor) -> None:
        if id(parameter) in self._done:
            raise RuntimeError(
                "layerwise=True updates a parameter once per step, but there were two backward passes since the last; "
                "call step() after each, or leave layerwise out to accumulate gradients"
            )
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            raise RuntimeError(
                "layerwise=True updates before gradients are reduced; leave it out with several processes"
            )
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        norm = float(gradient.float().norm())
        self._done[id(parameter)] = norm * norm
        if math.isfinite(norm):
            self._apply(parameter, gradient, number, group)
        else:
            self.skipped_steps += 1

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss, shrink = None, 1.0
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._reduce()
        if self.layerwise:
            self.grad_norm = math.sqrt(sum(self._done.values()))
            self._done.clear()
        elif (clipped := self._clip()) is None:
            self.skipped_steps += 1
            self._forget_sketches()
            return loss
        else:
            shrink = clipped
        if self._is_rehearsal():
            return loss
        for parameter, number, group, projection in self._each():
            if parameter.grad is not None:
                gradient = parameter.grad if shrink == 1 else parameter.grad * shrink
                self._apply(parameter, gradient, number, group)
            if projection is not None and refresh.due(number, group):
                self._tell_idle(projection, group)
                refresh.renew(projection, self._state, number, group, self.process_group)
        for group in self.param_groups:
            group["step"] += 1
        for _, number, group, projection in self._each():
            if projection is not None:
                refresh.prepare(projection, self.state.get(projection.proxy), number, group)
        return loss

    def _each(self) -> Iterator[tuple[Tensor, int, dict[str, Any], Projection | None]]:
        """All parameters, with their places in their groups, and what is projected of those that are proxies."""
        for group in self.param_groups:
            for number, parameter in enumerate(group["params"]):
                yield parameter, number, group, self._projections.get(id(parameter))

    def _is_rehearsal(self) -> bool:
        """A first step with nothing but zeros, by which `torch.distributed.checkpoint` learns what a state consists of:
        it makes the state, and counts for nothing."""
        if self.grad_norm or self.state or any(group["step"] for group in self.param_groups):
            return False
        for parameter, *_ in self._each():
            if parameter.grad is not None:
                self._state(parameter)
        return True

    def _reduce(self) -> None:
        """Gradients of the rows of sharded weights, which nobody else reduces."""
        for proxy, _, _, projection in self._each():
            if projection is not None and proxy.grad is not None and is_sharded(projection.weight):
                mean_over(projection.weight, proxy.grad)

    def _clip(self) -> float | None:
        """What to multiply gradients by; None where they are not finite."""
        gradients = [parameter.grad for parameter, *_ in self._each() if parameter.grad is not None]
        if not gradients:
            self.grad_norm = 0.0
            return 1.0
        self.grad_norm = float(norm_of(gradients))
        if not math.isfinite(self.grad_norm):
            return None
        if self.max_grad_norm is None:
            return 1.0
        return min(1.0, self.max_grad_norm / (self.grad_norm + 1e-6))

    def _apply(self, parameter: Tensor, gradient: Tensor, number: int, group: dict[str, Any]) -> None:
        projection = self._projections.get(id(parameter))
        if projection is None:
            self._update(parameter, gradient.float(), number, group)
        else:
            self._update_part(projection, gradient, number, group)

    def _update(self, parameter: Tensor, gradient: Tensor, number: int, group: dict[str, Any]) -> None:
        state = self._state(parameter)
        delta = moments.adam(state, gradient, group, state["steps"])
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        if parameter.dtype == torch.float32:
            parameter.sub_(delta.mul_(group["lr"]))
        else:
            moved = local(parameter).float().sub_(local(delta).mul_(group["lr"]))
            local(parameter).copy_(self._rounded(moved, parameter.dtype, number, group))

    def _update_part(self, projection: Projection, gradient: Tensor, number: int, group: dict[str, Any]) -> None:
        state = self._state(projection.proxy)
        delta = moments.adam(state, gradient, group, projection.along(state["steps"]))
        delta.mul_(group["lr"] * group["scale"] * _rewarmed(number, group))
        weight, first = local(projection.weight), first_row(projection.weight)
        weight = weight.view(-1, weight.shape[-1])
        if group["weight_decay"]:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
        if projection.basis is None:
            self._update_rows(projection, weight, first, delta, number, group)
            return
        delta = projection.spread(delta, first, first + len(weight))
        if weight.dtype == torch.float32:
            weight.sub_(delta)
        else:
            weight.copy_(self._rounded(weight.float().sub_(delta), weight.dtype, number, group))

    def _update_rows(
        self, projection: Projection, weight: Tensor, first: int, delta: Tensor, number: int, group: dict[str, Any]
    ) -> None:
        """`weight`: the rows that lie here, from `first` on."""
        rows, dim = projection.rows, 0 if projection.by_row else 1
        if projection.rho is not None:
            delta.mul_(projection.along(projection.rho))
        if group["replacement"]:
            rows, place = rows.unique(return_inverse=True)
            shape = list(delta.shape)
            shape[dim] = len(rows)
            delta = delta.new_zeros(shape).index_add_(dim, place, delta)
        last = first + len(weight)
        if not projection.by_row:
            delta = delta[first:last]
        elif len(weight) < projection.candidates:
            here = (rows >= first) & (rows < last)
            rows, delta = rows[here] - first, delta[here]
        moved = weight.index_select(dim, rows).float().sub_(delta)
        weight.index_copy_(dim, rows, self._rounded(moved, weight.dtype, number, group))

    def _rounded(self, values: Tensor, dtype: torch.dtype, number: int, group: dict[str, Any]) -> Tensor:
        if dtype != torch.bfloat16 or self.rounding == "nearest":
            return values.to(dtype)
        seed = refresh.seed_of(group.get("seed", 0), number, group["step"], 2)
        return round_stochastically(values, torch.Generator(values.device).manual_seed(seed))

    def _state(self, parameter: Tensor) -> dict[str, Any]:
        state: dict[str, Any] = self.state[parameter]
        if not state:
            projection = self._projections.get(id(parameter))
            state["steps"] = torch.zeros(()) if projection is None else parameter.new_zeros(projection.rank)
            state.update((name, moments.zeros(parameter, name, self.state_bits)) for name in moments.MOMENTS)
            if projection is not None:
                refresh.note(state, projection)
                self._settle(parameter, state)
        return state

    def _settle(self, proxy: Tensor, state: dict[str, Any]) -> None:
        """Nothing reads a proxy's values: a first moment in float32 stands there, or else all proxies share zeros."""
        if not moments.in_eight_bits(state["exp_avg"]):
            proxy.data = state["exp_avg"]
            return
        if proxy.device not in self._blanks:
            most = max(projection.proxy.numel() for projection in self._projections.values())
            self._blanks[proxy.device] = proxy.data.new_zeros(most)
        proxy.data = self._blanks[proxy.device][: proxy.numel()].view(proxy.shape)

    def _tell_idle(self, projection: Projection, group: dict[str, Any]) -> None:
        """Once, of a layer that got no gradient in a whole period: its weight may be used by other ways than Grass
        knows, such as a reference to it that was kept elsewhere."""
        state = self.state.get(projection.proxy)
        if (
            group["step"] >= group["update_proj_gap"]
            and projection.name not in self._idle
            and (not state or not bool(state["steps"].any()))
        ):
            self._idle.add(projection.name)
            warnings.warn(
                f"{projection.name} got no gradient in the last {group['update_proj_gap']} steps; if it should be "
                "trained, leave it out by exclude=",
                stacklevel=3,
            )

    def _forget_sketches(self) -> None:
        for projection in self._projections.values():
            if projection.sketch is not None:
                projection.sketch.forget()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Moments, rows, and the place in the period; the next step is what it would have been.

        Raises:
            ValueError: of another model, or of other groups.
        """
        require_own(self.param_groups, state_dict)
        mine = [dict(group) for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, before in zip(self.param_groups, mine, strict=True):
            group.update({key: value for key, value in before.items() if key not in group})
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        for saved, (parameter, number, group, projection) in zip(numbers, self._each(), strict=True):
            if held := state_dict["state"].get(saved):
                self.state[parameter] = self._copied(held, parameter)
            if projection is not None:
                self._adopt(projection)
                refresh.prepare(projection, self.state.get(projection.proxy), number, group)

    def _copied(self, saved: dict[str, Tensor], parameter: Tensor) -> dict[str, Tensor]:
        """torch casts a state to its parameter's dtype; ours is float32 or in 8 bits, and rows are integers."""
        copied = {}
        for name, value in saved.items():
            if name in moments.MOMENTS:
                copied[name] = moments.zeros(parameter, name, self.state_bits).copy_(value)
            else:
                copied[name] = value.to(parameter.device, copy=True)
        return copied

    def _adopt(self, projection: Projection) -> None:
        """Go on with the rows and moments of a state that was loaded."""
        state = self.state.get(projection.proxy)
        projection.end_sketch()
        if state:
            refresh.adopt(projection, state)
            self._settle(projection.proxy, state)


def _rewarmed(number: int, group: dict[str, Any]) -> float:
    """Factor on the learning rate in the first steps after a selection."""
    since = (group["step"] - 1 - refresh.phase_of(number, group)) % group["update_proj_gap"]
    return min(1.0, (since + 1) / group["rewarm_steps"]) if group["rewarm_steps"] else 1.0
