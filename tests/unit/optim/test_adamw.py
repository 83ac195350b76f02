"""Steps follow the plain algorithm, rows change when they should, and a resumed run is bit for bit the same."""

import io
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from remanence.optim import GrassAdamW, grass_param_groups
from remanence.optim.reference import PlainGrass
from remanence.optim.rounding import round_stochastically

GAP = 3


def model_of(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 6), nn.Tanh(), nn.Linear(6, 10, bias=False), nn.LayerNorm(10)).to(dtype)


def batch(step: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    return torch.randn(8, 10, generator=random), torch.randn(8, 10, generator=random)


def backward(model: nn.Module, step: int) -> Tensor:
    x, y = batch(step)
    dtype = next(model.parameters()).dtype
    loss = (model(x.to(dtype)) - y.to(dtype)).square().mean()
    loss.backward()
    return loss.detach()


def run(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> list[float]:
    losses = []
    for step in steps:
        losses.append(float(backward(model, step)))
        optimizer.step()
        optimizer.zero_grad()
    return losses


def groups_of(model: nn.Module, **settings: Any) -> list[dict[str, Any]]:
    return grass_param_groups(model, **{"rank": 2, "update_proj_gap": GAP, **settings})


@pytest.mark.parametrize(
    ("selection", "replacement"),
    [("top", False), *product(("multinomial_norm", "multinomial_norm2", "uniform"), (False, True))],
)
def test_steps_are_those_of_the_plain_algorithm_over_several_selections(selection: Any, replacement: bool) -> None:
    model = model_of()
    groups = groups_of(model, selection=selection, replacement=replacement, scale=0.5)
    projections = groups[0]["projections"]
    optimizer = GrassAdamW(groups, lr=0.05)
    plain = [PlainGrass(0.05, 0.5, p.rows, p.rho) for p in projections]
    expected = [oriented(p.weight, p).clone() for p in projections]
    chosen = set()
    for step in range(3 * GAP):
        full = full_gradients(model, step)
        for index, (one, projection) in enumerate(zip(plain, projections, strict=True)):
            expected[index] = one.step(expected[index], oriented(full[index], projection))
        backward(model, step)
        optimizer.step()
        optimizer.zero_grad()
        for one, projection, weight in zip(plain, projections, expected, strict=True):
            torch.testing.assert_close(oriented(projection.weight, projection), weight, atol=1e-5, rtol=1e-5)
            if step % GAP == 0:
                one.select(projection.rows, projection.rho)
            assert torch.equal(one.rows, projection.rows), "rows change at the end of a period only"
        chosen.add(tuple(projections[0].rows.tolist()))
    assert len(chosen) > 1


def oriented(weight: Tensor, projection: Any) -> Tensor:  # with the side that is selected from first
    return weight.detach() if projection.by_row else weight.detach().t()


def full_gradients(model: nn.Module, step: int) -> list[Tensor]:
    stock = model_of()
    stock.load_state_dict(model.state_dict())
    backward(stock, step)
    return [stock[0].weight.grad, stock[2].weight.grad]


def test_top_rows_are_those_of_the_largest_gradient() -> None:
    model = model_of()
    optimizer = GrassAdamW(groups := groups_of(model, selection="top", sketch_size=4096))
    full = full_gradients(model, 0)
    run(model, optimizer, range(1))
    for projection, gradient in zip(groups[0]["projections"], full, strict=True):
        norms = oriented(gradient, projection).norm(dim=1)
        assert projection.rows.tolist() == norms.topk(2).indices.sort().values.tolist()


def test_other_parameters_follow_torchs_adamw() -> None:
    settings: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.1}
    models = [model_of(), model_of()]
    theirs = torch.optim.AdamW(models[0].parameters(), **settings)
    ours = GrassAdamW(models[1].parameters(), **settings)
    for model, optimizer in zip(models, (theirs, ours), strict=True):
        run(model, optimizer, range(5))
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-5)


def test_whole_weights_decay_and_nothing_else_of_them_moves() -> None:
    model = model_of()
    groups = groups_of(model)
    optimizer = GrassAdamW(groups, lr=0.01, weight_decay=0.5)
    before, rows = model[0].weight.clone(), groups[0]["projections"][0].rows.clone()
    run(model, optimizer, range(1))
    others = torch.tensor([row for row in range(6) if row not in rows])
    torch.testing.assert_close(model[0].weight[others], before[others] * (1 - 0.01 * 0.5))
    assert not torch.allclose(model[0].weight[rows], before[rows] * (1 - 0.01 * 0.5))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"on_refresh": "reset"},
        {"selection": "top", "on_refresh": "keep"},
        {"selection": "multinomial_norm", "rewarm_steps": 2},
    ],
)
@pytest.mark.parametrize("stop", [1, GAP, GAP + 1, 2 * GAP - 1])
def test_a_resumed_run_is_bit_for_bit_the_same(settings: dict[str, Any], stop: int) -> None:
    def fresh() -> tuple[nn.Module, GrassAdamW]:
        model = model_of(torch.bfloat16)
        return model, GrassAdamW(groups_of(model, **settings), lr=0.01)

    model, whole = fresh()
    run(model, whole, range(stop))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": whole.state_dict()}, file)
    rest = run(model, whole, range(stop, 3 * GAP))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, optimizer = fresh()
    resumed.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    assert run(resumed, optimizer, range(stop, 3 * GAP)) == rest
    for name, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_state_is_the_size_of_the_selected_rows() -> None:
    model = model_of()
    groups = groups_of(model, selection="top")
    optimizer = GrassAdamW(groups)
    run(model, optimizer, range(2))
    for projection in groups[0]["projections"]:
        held = {t.untyped_storage().data_ptr(): t.numel() for t in optimizer.state[projection.proxy].values()}
        held[projection.proxy.untyped_storage().data_ptr()] = projection.proxy.numel()
        assert sum(held.values()) == 2 * projection.proxy.numel() + 2 * projection.rank


def test_kept_moments_are_those_of_rows_that_stay() -> None:
    model = model_of()
    groups = groups_of(model, rank=4, selection="top", on_refresh="keep")
    optimizer = GrassAdamW(groups, lr=0.01)
    run(model, optimizer, range(GAP))
    projection = groups[0]["projections"][0]
    before = {row: projection.proxy.data[i].clone() for i, row in enumerate(projection.rows.tolist())}
    backward(model, GAP)
    optimizer.step()
    after = projection.rows.tolist()
    steps = optimizer.state[projection.proxy]["steps"]
    stays = [row for row in after if row in before]
    assert stays
    assert len(stays) < len(after)
    for index, row in enumerate(after):
        assert bool(steps[index]) == (row in before)
        assert bool(projection.proxy.data[index].any()) == (row in before)


def test_a_step_with_a_gradient_that_is_no_number_is_skipped_and_counted() -> None:
    model = model_of()
    optimizer = GrassAdamW(groups_of(model), lr=0.01)
    run(model, optimizer, range(2))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    backward(model, 2)
    optimizer.param_groups[0]["params"][0].grad[0, 0] = torch.nan
    optimizer.step()
    assert optimizer.skipped_steps == 1
    assert optimizer.param_groups[0]["step"] == 2
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("stop", [0, 1, GAP])
def test_a_batch_without_a_finite_gradient_leaves_no_trace_not_even_where_rows_are_selected(stop: int) -> None:
    models = [model_of(), model_of()]
    optimizers = [GrassAdamW(groups_of(model), lr=0.01) for model in models]
    for model, optimizer in zip(models, optimizers, strict=True):
        run(model, optimizer, range(stop))
    models[1](torch.full((8, 10), torch.nan)).sum().backward()
    optimizers[1].step()
    optimizers[1].zero_grad()
    assert [optimizer.skipped_steps for optimizer in optimizers] == [0, 1]
    rest = [run(model, one, range(stop, 3 * GAP)) for model, one in zip(models, optimizers, strict=True)]
    assert rest[0] == rest[1]


def test_layer_by_layer_a_gradient_that_is_not_finite_changes_no_parameter_and_is_counted() -> None:
    model = model_of()
    optimizer = GrassAdamW(groups_of(model), lr=0.01, layerwise=True)
    run(model, optimizer, range(1))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model(torch.full((8, 10), torch.nan)).sum().backward()
    optimizer.step()
    assert optimizer.skipped_steps == 4  # all but the last bias, whose gradient is 1
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["3.bias"]


def test_clipping_inside_is_clipping_outside() -> None:
    models = [model_of(), model_of()]
    inside = GrassAdamW(groups_of(models[0]), lr=0.01, max_grad_norm=0.1)
    outside = GrassAdamW(groups_of(models[1]), lr=0.01)
    for step in range(3):
        for model in models:
            backward(model, step)
        norm = nn.utils.clip_grad_norm_(models[1].parameters(), 0.1)
        for optimizer in (inside, outside):
            optimizer.step()
            optimizer.zero_grad()
        assert inside.grad_norm == pytest.approx(float(norm), rel=1e-5)
        assert float(norm) > 0.1
    for one, other in zip(*(model.state_dict().values() for model in models), strict=True):
        torch.testing.assert_close(one, other)


def test_a_learning_rate_is_raised_slowly_after_a_selection() -> None:
    def moved(rewarm: int) -> list[float]:
        model = model_of()
        optimizer = GrassAdamW(groups_of(model, rewarm_steps=rewarm, update_proj_gap=4), lr=0.01)
        run(model, optimizer, range(1))
        found = []
        for step in (1, 2, 3):
            before = model[0].weight.clone()
            run(model, optimizer, range(step, step + 1))
            found.append(float((model[0].weight - before).norm()))
        return found

    at_once, slowly = moved(0), moved(2)
    assert slowly[0] == pytest.approx(at_once[0] / 2, rel=1e-4)
    assert slowly[1] == pytest.approx(at_once[1], rel=0.2)


def test_a_closure_is_run_with_gradients() -> None:
    model = model_of()
    optimizer = GrassAdamW(groups_of(model))
    loss = optimizer.step(lambda: backward(model, 0))
    assert loss is not None
    assert optimizer.grad_norm > 0


@pytest.mark.parametrize(("rounding", "share"), [("stochastic", 1.0), ("nearest", 0.0)])
def test_small_updates_of_bfloat16_weights_count_on_average_over_a_thousand_steps(rounding: Any, share: float) -> None:
    layer = nn.Linear(64, 32, bias=False, dtype=torch.bfloat16)
    nn.init.ones_(layer.weight)
    optimizer = GrassAdamW(grass_param_groups(layer, rank=32, update_proj_gap=10_000, scale=1.0), lr=1e-5)
    optimizer.rounding = rounding
    for _ in range(1000):
        optimizer.param_groups[0]["params"][0].grad = torch.ones(32, 64)
        optimizer.step()
    assert float((1 - layer.weight.float()).mean()) == pytest.approx(share * 1e-2, abs=5e-4)


def test_rounding_by_chance_is_exact_on_average_and_keeps_what_needs_no_rounding() -> None:
    values = torch.tensor([1 + 2**-10, -3.0, torch.inf, -torch.inf, 0.0])
    drawn = torch.stack([round_stochastically(values, torch.Generator().manual_seed(i)) for i in range(4000)])
    assert float(drawn[:, 0].float().mean()) == pytest.approx(1 + 2**-10, abs=2e-4)
    assert torch.equal(drawn[:, 1:].float(), values[1:].expand(4000, -1))
    assert bool(round_stochastically(torch.tensor([torch.nan]), torch.Generator()).isnan())


def test_a_state_of_another_model_is_refused() -> None:
    optimizer = GrassAdamW(groups_of(model_of()))
    other = GrassAdamW(groups_of(nn.Sequential(nn.Identity(), nn.Linear(10, 6), nn.Linear(6, 10))))
    with pytest.raises(ValueError, match="another model"):
        optimizer.load_state_dict(other.state_dict())
    with pytest.raises(ValueError, match=r"rank is 3 there and\s+2 here"):
        optimizer.load_state_dict(GrassAdamW(groups_of(model_of(), rank=3)).state_dict())


def test_a_state_of_a_wider_model_is_refused_before_anything_is_changed() -> None:
    wider = nn.Sequential(nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 10, bias=False), nn.LayerNorm(10))
    other = GrassAdamW(groups_of(wider))
    wider(torch.randn(8, 12)).square().sum().backward()
    other.step()
    model = model_of()
    optimizer = GrassAdamW(groups_of(model))
    run(model, optimizer, range(2))
    before = {name: value.clone() for name, value in optimizer.state[optimizer.param_groups[0]["params"][0]].items()}
    with pytest.raises(ValueError, match=r"the shape of a moment is \[2, 12\] there and \[2, 10\] here"):
        optimizer.load_state_dict(other.state_dict())
    after = optimizer.state[optimizer.param_groups[0]["params"][0]]
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert optimizer.param_groups[0]["step"] == 2


def test_a_parameter_in_two_groups_is_refused() -> None:
    model = model_of()
    groups = groups_of(model)
    with pytest.raises(ValueError, match="more than one parameter group"):
        GrassAdamW([*groups, {"params": [groups[0]["params"][0]]}])


@pytest.mark.parametrize(
    "settings", [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"rounding": "up"}, {"max_grad_norm": 0.0}, {"eps": -1.0}]
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"lr|rounding|max_grad_norm"):
        GrassAdamW(groups_of(model_of()), **settings)


def test_one_scheduler_drives_both_groups() -> None:
    model = model_of()
    optimizer = GrassAdamW(groups_of(model), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    run(model, optimizer, range(1))
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.05]


def test_layer_by_layer_is_the_same_step_and_leaves_no_gradient() -> None:
    models = [model_of(), model_of()]
    usual = GrassAdamW(groups_of(models[0]), lr=0.01)
    layerwise = GrassAdamW(groups_of(models[1]), lr=0.01, layerwise=True)
    for step in range(2 * GAP):
        for model, optimizer in zip(models, (usual, layerwise), strict=True):
            backward(model, step)
            if optimizer is layerwise:
                assert all(parameter.grad is None for parameter in model.parameters())
            optimizer.step()
            optimizer.zero_grad()
        assert layerwise.grad_norm == pytest.approx(usual.grad_norm, rel=1e-5)
    for name, value in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[name], value)


def test_a_layerwise_run_resumes_to_the_same_bits() -> None:
    def fresh() -> tuple[nn.Module, GrassAdamW]:
        model = model_of()
        return model, GrassAdamW(groups_of(model), lr=0.01, layerwise=True)

    model, whole = fresh()
    run(model, whole, range(GAP))
    resumed, optimizer = fresh()
    resumed.load_state_dict(model.state_dict())
    optimizer.load_state_dict(whole.state_dict())
    assert run(resumed, optimizer, range(GAP, 3 * GAP)) == run(model, whole, range(GAP, 3 * GAP))


def test_layer_by_layer_refuses_to_accumulate_and_to_clip() -> None:
    model = model_of()
    GrassAdamW(groups_of(model), layerwise=True)
    backward(model, 0)
    with pytest.raises(RuntimeError, match="two backward passes since the last"):
        backward(model, 1)
    with pytest.raises(ValueError, match="clipping needs all gradients at once"):
        GrassAdamW(groups_of(model_of()), layerwise=True, max_grad_norm=1.0)


def test_a_state_of_another_optimizer_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(16, 32))
    optimizer = GrassAdamW(groups_of(model))
    other = optimizer.state_dict()
    other["state"] = {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(2, 16), "exp_avg_sq": torch.zeros(2, 16)}}
    with pytest.raises(ValueError, match="this state has no 'steps': it is of another optimizer, or of a version"):
        optimizer.load_state_dict(other)


def test_a_state_of_before_a_setting_was_there_keeps_the_setting_at_hand() -> None:
    model = nn.Sequential(nn.Linear(16, 32))
    optimizer = GrassAdamW(groups_of(model, rewarm_steps=3))
    old = optimizer.state_dict()
    for group in old["param_groups"]:
        group.pop("rewarm_steps", None)
    optimizer.load_state_dict(old)
    assert optimizer.param_groups[0]["rewarm_steps"] == 3
