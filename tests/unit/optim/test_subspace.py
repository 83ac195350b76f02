"""Directions are those in which the gradient is largest, and a step along them is that of the plain algorithm."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from remanence.optim import GrassAdamW, grass_param_groups
from remanence.optim.reference import PlainSubspace
from remanence.optim.subspace import directions, probes

GAP = 3


def model_of(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(20, 12), nn.Tanh(), nn.Linear(12, 20, bias=False), nn.Linear(20, 20)).to(dtype)


def loss(model: nn.Module, seed: int) -> Tensor:
    dtype = next(model.parameters()).dtype
    x = torch.randn(9, 20, generator=torch.Generator().manual_seed(seed)).to(dtype)
    out: Tensor = (model(x) - x).square().mean()
    return out


def test_directions_of_a_low_rank_gradient_are_found_from_random_probes() -> None:
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(40, 3, generator=generator) @ torch.randn(3, 60, generator=generator)
    found = directions(gradient @ probes(None, 60, 3, generator), 3)
    torch.testing.assert_close(found @ found.t(), torch.eye(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.t() @ (found @ gradient), gradient, atol=1e-3, rtol=1e-4)


def test_directions_follow_the_largest_singular_vectors_over_refreshes() -> None:
    generator = torch.Generator().manual_seed(1)
    left, right = (torch.linalg.qr(torch.randn(size, size, generator=generator))[0] for size in (30, 50))
    gradient = left @ torch.diag(0.7 ** torch.arange(30)) @ right[:, :30].t()
    found = directions(gradient @ probes(None, 50, 4, generator), 4)
    for _ in range(20):
        found = directions(gradient @ probes((found @ gradient).t(), 50, 4, generator), 4)
    assert float((found @ left[:, :4]).square().sum()) == pytest.approx(4, abs=1e-2)


def test_a_side_hardly_longer_than_the_rank_has_all_its_directions() -> None:
    gradient = torch.randn(6, 30, generator=torch.Generator().manual_seed(0))
    found = directions(gradient @ probes(None, 30, 6, torch.Generator().manual_seed(1)), 6)
    torch.testing.assert_close(found @ found.t(), torch.eye(6), atol=1e-5, rtol=0)


def test_steps_are_those_of_the_plain_algorithm_over_several_refreshes() -> None:
    model = model_of()
    groups = grass_param_groups(model, rank=3, update_proj_gap=GAP, scale=0.5)
    optimizer = GrassAdamW(groups, lr=0.05)
    layers = {"0": model[0], "2": model[2], "3": model[3]}
    sides = {
        "0": True,
        "2": False,
        "3": False,
    }  # whether outputs are projected: the smaller side, of a square the input
    assert {p.name: p.by_row for p in groups[0]["projections"]} == sides
    plain = {p.name: PlainSubspace(0.05, 0.5, torch.eye(p.candidates)[p.rows]) for p in groups[0]["projections"]}
    expected = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    for step in range(3 * GAP):
        twin = model_of()
        twin.load_state_dict(model.state_dict())
        loss(twin, step).backward()
        loss(model, step).backward()
        noise = {p.name: None if p.sketch is None else p.sketch.noise for p in groups[0]["projections"]}
        optimizer.step()
        optimizer.zero_grad()
        for projection in groups[0]["projections"]:
            name, turned = projection.name, (lambda t: t) if projection.by_row else Tensor.t
            gradient = twin.get_submodule(name).weight.grad
            assert isinstance(gradient, Tensor)
            one = plain[name]
            expected[name] = turned(one.step(turned(expected[name]), turned(gradient)))
            torch.testing.assert_close(layers[name].weight, expected[name], atol=2e-5, rtol=1e-4)
            if (held := noise[name]) is not None:
                anew = directions(turned(gradient) @ held, 3)
                assert float((anew @ projection.basis.t()).square().sum()) == pytest.approx(3, abs=1e-3), (
                    "the same span"
                )
                one.turn(projection.basis)
    assert optimizer.state[groups[0]["params"][0]]["basis"].shape == (3, 12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_weight_of_any_type_moves_along_its_directions(dtype: torch.dtype) -> None:
    model = model_of(dtype)
    before = copy.deepcopy(model.state_dict())
    groups = grass_param_groups(model, rank=4, update_proj_gap=2)
    optimizer = GrassAdamW(groups, lr=1e-2, rounding="nearest")
    start = float(loss(model, 0))
    for step in range(20):
        loss(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert float(loss(model, 0)) < start
    assert all(not torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_state_along_rows_is_refused_by_name() -> None:
    states: list[Any] = []
    for selection in ("top", "subspace"):
        model = model_of()
        optimizer = GrassAdamW(grass_param_groups(model, rank=3, update_proj_gap=GAP, selection=selection), lr=0.01)
        for step in range(GAP + 1):
            loss(model, step).backward()
            optimizer.step()
            optimizer.zero_grad()
        states.append((model, optimizer))
    (_, rows), (model, optimizer) = states
    projection = optimizer.param_groups[0]["params"][0]
    assert "basis" in optimizer.state[projection]
    with pytest.raises(ValueError, match="selection is 'top' there and 'subspace' here"):
        optimizer.load_state_dict(rows.state_dict())
    assert "basis" in optimizer.state[projection]
