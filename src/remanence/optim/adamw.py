"""AdamW that keeps moments for, and updates, the selected rows only (Grass, algorithm 1)."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, distributed
from torch.optim import Optimizer

from remanence.optim.projection import Projection
from remanence.optim.rounding import round_stochastically
from remanence.optim.selection import Rule
from remanence.optim.sharding import first_row, is_sharded, local, mean_over, norm_of

Rounding = Literal["stochastic", "nearest"]


class GrassAdamW(Optimizer):
    """A drop-in `torch.optim.Optimizer` for the groups that `grass_param_groups` makes.

    When rows are selected: after step 0, and from then on after every `update_proj_gap` steps, at the end of `step`, by
    a sketch of the gradient of that very step, over all its micro-batches and processes. Step 0 itself trains rows that
    are drawn evenly. The gradient of a whole weight is never formed.

    Weight decay is decoupled and shrinks whole weights, not only the selected rows. A step whose gradients are not all
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
        process_group: over which sketches are added up, where gradients are reduced over several processes.

    Attributes:
        grad_norm: of the last step, before clipping.
        skipped_steps: how many steps were skipped.

    Raises:
        ValueError: an argument is out of range or does not go with another, or a parameter is in two groups.
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
        self.max_grad_norm, self.rounding, self.process_group = max_grad_norm, rounding, process_group
        self.grad_norm, self.skipped_steps, self.layerwise = 0.0, 0, layerwise
        self._projections: dict[int, Projection] = {}
        self._done: dict[int, float] = {}  # parameters updated since the last step, and their squared gradient norms
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "step": 0})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        group = dict(param_group)
        projections = group.pop("projections", [])
        super().add_param_group(group)
        for number, (proxy, projection) in enumerate(zip(group["params"], projections, strict=False)):
            self._projections[id(proxy)] = projection
            self._select(projection, number, group, torch.ones(projection.candidates))
            self._prepare(projection, number, group)
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
        for group in self.param_groups:
            for number, parameter in enumerate(group["params"]):
                if not self.layerwise and parameter.grad is not None:
                    gradient = parameter.grad if shrink == 1 else parameter.grad * shrink
                    self._apply(parameter, gradient, number, group)
                if (projection := self._projections.get(id(parameter))) is not None:
                    self._refresh(projection, number, group)
            group["step"] += 1
            for number, parameter in enumerate(group["params"]):
                if (projection := self._projections.get(id(parameter))) is not None:
                    self._prepare(projection, number, group)
        return loss

    def _reduce(self) -> None:
        """Gradients of the rows of sharded weights, which nobody else reduces."""
        for group in self.param_groups:
            for proxy in group["params"]:
                projection = self._projections.get(id(proxy))
                if projection is not None and proxy.grad is not None and is_sharded(projection.weight):
                    mean_over(projection.weight, proxy.grad)

    def _clip(self) -> float | None:
        """What to multiply gradients by; None where they are not finite."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
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
            self._update_rows(projection, gradient, number, group)

    def _update(self, parameter: Tensor, gradient: Tensor, number: int, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            zeros = torch.zeros_like(parameter, dtype=torch.float32, memory_format=torch.contiguous_format)
            state.update(steps=torch.zeros(()), exp_avg=zeros, exp_avg_sq=zeros.clone())
        delta = _adam(state, gradient, group, state["steps"])
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
        if parameter.dtype == torch.float32:
            parameter.sub_(delta.mul_(group["lr"]))
        else:
            moved = local(parameter).float().sub_(local(delta).mul_(group["lr"]))
            local(parameter).copy_(self._rounded(moved, parameter.dtype, number, group))

    def _update_rows(self, projection: Projection, gradient: Tensor, number: int, group: dict[str, Any]) -> None:
        state = self._state(projection)
        delta = _adam(state, gradient, group, projection.along(state["steps"]))
        rows, dim = projection.rows, 0 if projection.by_row else 1
        delta.mul_(group["lr"] * group["scale"] * _rewarmed(group))
        if projection.rho is not None:
            delta.mul_(projection.along(projection.rho))
        if group["replacement"]:
            rows, place = rows.unique(return_inverse=True)
            shape = list(delta.shape)
            shape[dim] = len(rows)
            delta = delta.new_zeros(shape).index_add_(dim, place, delta)
        weight, first = local(projection.weight), first_row(projection.weight)
        last = first + len(weight)
        if not projection.by_row:
            delta = delta[first:last]
        elif len(weight) < projection.candidates:
            here = (rows >= first) & (rows < last)
            rows, delta = rows[here] - first, delta[here]
        if group["weight_decay"]:
            weight.mul_(1 - group["lr"] * group["weight_decay"])
        moved = weight.index_select(dim, rows).float().sub_(delta)
        weight.index_copy_(dim, rows, self._rounded(moved, weight.dtype, number, group))

    def _rounded(self, values: Tensor, dtype: torch.dtype, number: int, group: dict[str, Any]) -> Tensor:
        if dtype != torch.bfloat16 or self.rounding == "nearest":
            return values.to(dtype)
        seed = _seed(group.get("seed", 0), number, group["step"], 2)
        return round_stochastically(values, torch.Generator(values.device).manual_seed(seed))

    def _state(self, projection: Projection) -> dict[str, Any]:
        """The moments of selected rows; the first stands where the proxy's values are, which nothing else needs."""
        state: dict[str, Any] = self.state[projection.proxy]
        if "steps" not in state:
            proxy = projection.proxy
            state.update(steps=proxy.new_zeros(projection.rank), exp_avg=proxy.data.zero_())
            state.update(exp_avg_sq=torch.zeros_like(proxy.data))
            _note_selection(state, projection)
        return state

    def _refresh(self, projection: Projection, number: int, group: dict[str, Any]) -> None:
        """Select anew, if this step's gradient was there to go by."""
        if group["step"] % group["update_proj_gap"]:
            return
        norms = self._norms(projection)
        projection.end_sketch()
        if norms is None:
            return
        before = projection.rows
        self._select(projection, number, group, norms)
        state = self._state(projection)
        _carry(state, projection, before, keep=group["on_refresh"] == "keep")
        _note_selection(state, projection)

    def _norms(self, projection: Projection) -> Tensor | None:  # [m]; None where there was no gradient
        if projection.sketch is None:
            return torch.ones(projection.candidates)
        gradient = projection.sketch.grad
        sketch = torch.zeros_like(projection.sketch) if gradient is None else gradient
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(sketch, group=self.process_group)
        norms = sketch.norm(dim=1)
        return norms if bool(norms.isfinite().all() & (norms > 0).any()) else None

    def _select(self, projection: Projection, number: int, group: dict[str, Any], norms: Tensor) -> None:
        first = projection.proxy not in self.state
        rule = Rule("uniform", group["replacement"]) if first else Rule(group["selection"], group["replacement"])
        seed = _seed(group["seed"], number, group["step"], 0)
        projection.select(*rule.choose(norms, projection.rank, torch.Generator().manual_seed(seed)))

    def _prepare(self, projection: Projection, number: int, group: dict[str, Any]) -> None:
        """Before a step at whose end rows are selected, let the backward pass sketch the gradient."""
        if group["selection"] == "uniform" or group["step"] % group["update_proj_gap"]:
            return
        seed = _seed(group["seed"], number, group["step"], 1)
        projection.start_sketch(group["sketch_size"], torch.Generator().manual_seed(seed))

    def _forget_sketches(self) -> None:
        for projection in self._projections.values():
            if projection.sketch is not None:
                projection.sketch.grad = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Moments, rows, and the place in the period; the next step is what it would have been.

        Raises:
            ValueError: of another model, or of other groups.
        """
        for mine, saved in zip(self.param_groups, state_dict["param_groups"], strict=False):
            for key in ("names", "rank"):
                if mine.get(key) != saved.get(key):
                    raise ValueError(
                        f"this state is of another model or of other groups: {key} is {saved.get(key)} there and "
                        f"{mine.get(key)} here; make the groups as they were made then"
                    )
        super().load_state_dict(state_dict)
        numbers = [number for group in state_dict["param_groups"] for number in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for number, parameter in zip(numbers, parameters, strict=True):
            if saved := state_dict["state"].get(number):
                # torch casts a state to its parameter's dtype; ours is float32, and rows are integers.
                self.state[parameter] = {name: value.to(parameter.device, copy=True) for name, value in saved.items()}
        for group in self.param_groups:
            for number, parameter in enumerate(group["params"]):
                if (projection := self._projections.get(id(parameter))) is not None:
                    self._adopt(projection)
                    self._prepare(projection, number, group)

    def _adopt(self, projection: Projection) -> None:
        """Go on with the rows and moments of a state that was loaded."""
        state, proxy = self.state.get(projection.proxy), projection.proxy
        projection.end_sketch()
        if state:
            projection.select(state["rows"], state.get("rho"))
            proxy.data.copy_(state["exp_avg"])
            state["exp_avg"] = proxy.data


def _adam(state: dict[str, Any], gradient: Tensor, group: dict[str, Any], steps: Tensor) -> Tensor:
    """The direction of a step, after taking its gradient in; `steps`: a view of the state's that fits the gradient."""
    first, second = group["betas"]
    state["steps"] += 1
    state["exp_avg"].lerp_(gradient, 1 - first)
    state["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
    steps = steps.to(gradient.device)
    spread = (state["exp_avg_sq"] / (1 - second**steps)).sqrt_().add_(group["eps"])
    return (state["exp_avg"] / (1 - first**steps)).div_(spread)


def _note_selection(state: dict[str, Any], projection: Projection) -> None:
    state["rows"] = projection.rows
    if projection.rho is not None:
        state["rho"] = projection.rho


def _carry(state: dict[str, Any], projection: Projection, before: Tensor, *, keep: bool) -> None:
    """Moments after a selection: of rows that stay, if they are kept, and else zero."""
    if not keep:
        for name in ("steps", "exp_avg", "exp_avg_sq"):
            state[name].zero_()
        return
    place = torch.full((projection.candidates,), -1, device=before.device)
    place[before] = torch.arange(len(before), device=before.device)
    source = place[projection.rows]
    stays, dim = source >= 0, 0 if projection.by_row else 1
    state["steps"].copy_(state["steps"][source.clamp(min=0)] * stays)
    for name in ("exp_avg", "exp_avg_sq"):
        kept = state[name].index_select(dim, source.clamp(min=0))
        state[name].copy_(kept.mul_(projection.along(stays)))


def _rewarmed(group: dict[str, Any]) -> float:
    """Factor on the learning rate in the first steps after a selection."""
    since = (group["step"] - 1) % group["update_proj_gap"]
    return min(1.0, (since + 1) / group["rewarm_steps"]) if group["rewarm_steps"] else 1.0


def _seed(seed: int, number: int, step: int, use: int) -> int:
    """One for each layer, step and use, so that no random state has to be saved."""
    mixed = seed
    for part in (number, step, use):
        mixed = (mixed * 6_364_136_223_846_793_005 + part + 1_442_695_040_888_963_407) % 2**63
    return mixed
