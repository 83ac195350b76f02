"""Rows are chosen by the gradient that a step is made of, whatever was computed and dropped before."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from remanence.optim import GrassAdamW, grass_param_groups
from remanence.optim.projection import Sketch


def fresh(**settings: Any) -> tuple[nn.Module, GrassAdamW, list[Any]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
    groups = grass_param_groups(model, **{"rank": 4, "update_proj_gap": 100, "selection": "top", **settings})
    return model, GrassAdamW(groups, lr=1e-3), groups[0]["projections"]


def loss(model: nn.Module, seed: int) -> Tensor:
    out: Tensor = model(torch.randn(8, 16, generator=torch.Generator().manual_seed(seed))).square().mean()
    return out


DROPS: dict[str, Callable[[nn.Module, GrassAdamW], None]] = {
    "by the optimizer": lambda _, optimizer: optimizer.zero_grad(),
    "by the model": lambda model, _: model.zero_grad(),
    "by zeros": lambda model, _: model.zero_grad(set_to_none=False),
}


@pytest.mark.parametrize("drop", DROPS.values(), ids=DROPS)
@pytest.mark.parametrize("factor", [1e6, float("nan")])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_dropped_batch_leaves_no_trace(factor: float, micro_batches: int, drop: Any) -> None:
    found = []
    for dropped in (False, True):
        model, optimizer, projections = fresh()
        drawn = [projection.rows.tolist() for projection in projections]
        if dropped:
            (loss(model, 9) * factor).backward()
            drop(model, optimizer)
        for seed in range(micro_batches):
            loss(model, seed).backward()
        optimizer.step()
        found.append([projection.rows.tolist() for projection in projections])
    assert found[0] == found[1]
    assert found[0] != drawn


def test_steps_that_a_scaler_skips_leave_no_trace() -> None:
    """Torch's own first scale overflows here nine times, the sketch's sums in float16 more often."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64))
    groups = grass_param_groups(model, rank=8, update_proj_gap=200, selection="top")
    optimizer, scaler, skipped = GrassAdamW(groups, lr=1e-3), torch.amp.GradScaler("cpu"), 0
    drawn = [projection.rows.tolist() for projection in groups[0]["projections"]]
    for _ in range(30):
        x = torch.randn(32, 64) * 4
        with torch.autocast("cpu", torch.float16):
            y = model(x)
        scaler.scale((y.float() - x).pow(2).sum()).backward()
        before = scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        skipped += scaler.get_scale() < before
    assert skipped > 3
    assert drawn != [projection.rows.tolist() for projection in groups[0]["projections"]]
    assert optimizer.param_groups[0]["step"] == 30 - skipped


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_within_an_accumulated_batch_changes_no_selection(reentrant: bool) -> None:
    found = []
    for saving in (False, True):
        model, optimizer, projections = fresh()
        for seed in range(3):
            x = torch.randn(8, 16, generator=torch.Generator().manual_seed(seed), requires_grad=True)
            made = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=reentrant) if saving else model(x)
            made.square().mean().backward()
        optimizer.step()
        found.append([projection.rows.tolist() for projection in projections])
    assert found[0] == found[1]


@pytest.mark.parametrize("sketch_first", [False, True])
def test_it_begins_anew_in_whichever_order_a_backward_pass_comes_by(sketch_first: bool) -> None:
    proxy = nn.Parameter(torch.zeros(3))
    sketch = Sketch(proxy, 2, torch.ones(5, 4))
    seen: list[str] = []
    proxy.register_hook(lambda _: seen.append("proxy"))
    sketch.leaf.register_hook(lambda _: seen.append("sketch"))

    def backward(factor: float) -> None:
        parts = [proxy, sketch.leaf] if sketch_first else [sketch.leaf, proxy]  # what was computed last comes first
        one, other = [(part * factor).sum() for part in parts]
        (one + other).backward()

    backward(5.0)
    assert seen == (["sketch", "proxy"] if sketch_first else ["proxy", "sketch"])
    proxy.grad = None
    backward(1.0)
    backward(2.0)
    value = sketch.value()
    assert value is not None
    assert value.unique().tolist() == [3.0]
    assert sketch.leaf.grad is None
