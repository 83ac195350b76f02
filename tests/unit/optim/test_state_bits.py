"""Moments in 8 bits: a quarter of the room, nearly the same steps, and a resumed run is bit for bit the same."""

import io
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from remanence.optim import GrassAdamW, grass_param_groups

RANK, GAP = 64, 3


def model_of() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(96, 128), nn.Tanh(), nn.Linear(128, 64, bias=False), nn.Linear(64, 64, bias=False))


def fresh(state_bits: Any = 8, **settings: Any) -> tuple[nn.Module, GrassAdamW]:
    if state_bits == 8:
        pytest.importorskip("torchao")
    model = model_of()
    settings = {"selection": "top", **settings}
    groups = grass_param_groups(model, RANK, GAP, 1.0, target_modules=["0", "2"], **settings)
    return model, GrassAdamW(groups, lr=1e-3, state_bits=state_bits)


def run(model: nn.Module, optimizer: GrassAdamW, steps: range) -> list[float]:
    losses = []
    for step in steps:
        x = torch.randn(16, 96, generator=torch.Generator().manual_seed(step))
        loss = (model(x) - x[:, :64]).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def storages(optimizer: GrassAdamW) -> int:
    """Bytes of a state and of the proxies, what they share counted once."""
    held: list[Tensor] = []
    for parameter, state in optimizer.state.items():
        for value in state.values():
            held += [value.codes, value.scale, value.qmap] if hasattr(value, "codes") else [value]
        held += [parameter] if parameter.shape != (64, 64) else []
    return sum({one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in held}.values())


def test_the_state_takes_a_byte_per_moment_and_the_proxies_share_their_room() -> None:
    model, optimizer = fresh()
    run(model, optimizer, range(2))
    projections = optimizer.param_groups[0]["params"]
    sizes = [proxy.numel() for proxy in projections]
    assert sizes == [128 * 64, 64 * 128]
    moments = [*sizes, model[3].weight.numel()]
    tables, scales, steps, rows = 2 * len(moments) * 256 * 4, 2 * sum(moments) // 256 * 4, 2 * RANK * 4, 2 * RANK * 8
    scalars = 4 * (1 + 1)  # steps of the bias and of the weight that is trained in full
    bias = 2 * 128 * 4
    proxies = max(sizes) * 4 + 128 * 4
    assert storages(optimizer) == 2 * sum(moments) + tables + scales + steps + rows + scalars + bias + proxies


SETTINGS = [{"on_refresh": "reset"}, {"on_refresh": "keep"}, {"selection": "subspace"}]


@pytest.mark.parametrize("settings", SETTINGS)
def test_steps_are_nearly_those_with_moments_in_float32(settings: dict[str, Any]) -> None:
    models, losses = [], []
    for bits in (32, 8):
        model, optimizer = fresh(bits, **settings)
        losses.append(run(model, optimizer, range(4 * GAP)))
        models.append(torch.cat([value.flatten() for value in model.state_dict().values()]))
    start = torch.cat([value.flatten() for value in model_of().state_dict().values()])
    moved = [model - start for model in models]
    # Directions that hardly differ in size are exchanged by the smallest error.
    near = 0.4 if "selection" in settings else 0.1
    assert float((moved[1] - moved[0]).norm() / moved[0].norm()) < near
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


@pytest.mark.parametrize("on_refresh", ["reset", "keep"])
def test_a_selection_leaves_the_moments_that_it_leaves_in_float32(on_refresh: Any) -> None:
    optimizers = []
    for bits in (32, 8):
        model, optimizer = fresh(bits, on_refresh=on_refresh)
        run(model, optimizer, range(GAP + 1))
        optimizers.append(optimizer)
    one, other = (optimizer.state[optimizer.param_groups[0]["params"][0]] for optimizer in optimizers)
    assert torch.equal(one["rows"], other["rows"])
    assert bool(one["exp_avg"].any()) == (on_refresh == "keep")
    for name in ("exp_avg", "exp_avg_sq"):
        assert float((other[name].dequantize() - one[name]).norm()) <= 0.05 * float(one[name].norm())


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("stop", [1, GAP + 2])
def test_a_resumed_run_is_bit_for_bit_the_same(settings: dict[str, Any], stop: int) -> None:
    model, whole = fresh(**settings)
    run(model, whole, range(stop))
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": whole.state_dict()}, file)
    rest = run(model, whole, range(stop, 3 * GAP))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed, optimizer = fresh(**settings)
    resumed.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    assert run(resumed, optimizer, range(stop, 3 * GAP)) == rest
    for name, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


@pytest.mark.parametrize(("saved", "now"), [(32, 8), (8, 32)])
def test_a_state_is_converted_and_shares_nothing_with_what_it_was_loaded_from(saved: Any, now: Any) -> None:
    model, optimizer = fresh(saved)
    run(model, optimizer, range(2))
    resumed, other = fresh(now)
    resumed.load_state_dict(model.state_dict())
    other.load_state_dict(optimizer.state_dict())
    state = other.state[other.param_groups[0]["params"][0]]
    assert hasattr(state["exp_avg"], "codes") == (now == 8)
    assert run(resumed, other, range(2, 4)) == pytest.approx(run(model, optimizer, range(2, 4)), rel=0.02)


def test_compiled_layers_with_shared_proxies_have_the_same_gradients() -> None:
    model, optimizer = fresh()
    run(model, optimizer, range(2))
    x = torch.randn(16, 96)
    gradients = []
    for called in (model, torch.compile(model, fullgraph=True, backend="aot_eager")):
        called(x).square().mean().backward()
        gradients.append([proxy.grad.clone() for proxy in optimizer.param_groups[0]["params"]])
        optimizer.zero_grad()
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_without_torchao_an_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.optim.subclass_8bit", None)
    with pytest.raises(ImportError, match="pip install torchao"):
        GrassAdamW(grass_param_groups(model_of(), RANK), state_bits=8)


def test_other_numbers_of_bits_are_refused() -> None:
    with pytest.raises(ValueError, match="8 or 32, not 4"):
        GrassAdamW(grass_param_groups(model_of(), RANK), state_bits=4)  # type: ignore[arg-type]
