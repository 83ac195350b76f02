"""A projected layer's gradient is the selected part of the full one, whichever way it is computed and accumulated."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from remanence.optim import GrassAdamW, grass_param_groups, release

WIDE, TALL = (6, 10), (10, 6)


class Stack(nn.Module):
    """One weight of each shape, a bias, and a layer that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(10, 6)
        self.outer = nn.Linear(6, 10, bias=False)
        self.again = nn.Linear(10, 10, bias=False)

    def forward(self, x: Tensor, saving: bool | None = None) -> Tensor:
        for _ in range(2):
            x = x + self.again(x).tanh()
        for block in (self.inner, self.outer):
            x = block(x) if saving is None else checkpoint(block, x, use_reentrant=saving)
            x = x.tanh()
        return x


def stack(**settings: Any) -> tuple[Stack, Stack, list[dict[str, Any]]]:
    """A stock model, its projected twin, and the groups of this."""
    torch.manual_seed(0)
    stock = Stack()
    twin = copy.deepcopy(stock)
    return stock, twin, grass_param_groups(twin, **{"rank": 3, "selection": "top", **settings})


def inputs(seed: int = 1, rows: int = 7) -> Tensor:
    return torch.randn(2, rows, 10, generator=torch.Generator().manual_seed(seed))


def picked(stock: Stack, groups: list[dict[str, Any]]) -> list[Tensor]:
    """The part of the stock model's gradients that the groups select."""
    found = []
    for name, projection in zip(groups[0]["names"], groups[0]["projections"], strict=True):
        gradient = stock.get_submodule(name).weight.grad
        assert isinstance(gradient, Tensor)
        found.append(gradient.index_select(0 if projection.by_row else 1, projection.rows))
    return found


def test_gradients_are_the_selected_rows_or_columns_of_the_full_one() -> None:
    stock, twin, groups = stack()
    optimizer = GrassAdamW(groups)
    optimizer.zero_grad()
    assert groups[0]["names"] == ["inner", "outer", "again"]
    assert [p.by_row for p in groups[0]["projections"]] == [True, False, True]
    for model in (stock, twin):
        model(inputs()).square().sum().backward()
    for full, proxy in zip(picked(stock, groups), groups[0]["params"], strict=True):
        torch.testing.assert_close(proxy.grad, full, atol=1e-6, rtol=1e-6)
    assert twin.inner.bias.grad is not None
    torch.testing.assert_close(twin.inner.bias.grad, stock.inner.bias.grad)
    assert all(module.weight.grad is None for module in (twin.inner, twin.outer, twin.again))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_outputs_and_gradients_of_inputs_are_unchanged(dtype: torch.dtype) -> None:
    """Float32 is multiplied by another kernel on a CPU, which rounds otherwise."""
    stock, twin, _ = (part.to(dtype) if isinstance(part, Stack) else part for part in stack())
    x, y = (inputs().to(dtype).requires_grad_() for _ in range(2))
    one, other = stock(x), twin(y)
    near: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-6} if dtype == torch.float32 else {"atol": 0, "rtol": 0}
    torch.testing.assert_close(other, one, **near)
    one.square().sum().backward()
    other.square().sum().backward()
    torch.testing.assert_close(y.grad, x.grad, atol=1e-6, rtol=1e-6)
    with torch.no_grad():
        assert torch.equal(twin(x), stock(x))


@pytest.mark.parametrize("sketched", [False, True])
def test_four_micro_batches_add_up_to_one_batch(sketched: bool) -> None:
    _, twin, groups = stack()
    if sketched:
        for projection in groups[0]["projections"]:
            projection.start_sketch(torch.randn(projection.contracted, 4, generator=torch.Generator().manual_seed(0)))
    x = inputs(rows=8)

    def gradients(parts: int) -> list[Tensor]:
        for proxy in groups[0]["params"]:
            proxy.grad = None
        for part in x.chunk(parts, dim=1):
            twin(part).square().sum().backward()
        made = [proxy.grad.clone() for proxy in groups[0]["params"]]
        return made + [p.sketch.value().clone() for p in groups[0]["projections"] if sketched]

    for whole, added in zip(gradients(1), gradients(4), strict=True):
        torch.testing.assert_close(added, whole, atol=1e-5, rtol=1e-5)


def test_a_sketch_is_the_full_gradient_times_noise() -> None:
    stock, twin, groups = stack()
    for projection in groups[0]["projections"]:
        projection.start_sketch(torch.randn(projection.contracted, 5, generator=torch.Generator().manual_seed(3)))
    for model in (stock, twin):
        model(inputs()).square().sum().backward()
    for name, projection in zip(groups[0]["names"], groups[0]["projections"], strict=True):
        full = stock.get_submodule(name).weight.grad
        assert isinstance(full, Tensor)
        full = full if projection.by_row else full.t()
        torch.testing.assert_close(projection.sketch.value(), full @ projection.sketch.noise, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(reentrant: bool) -> None:
    _, twin, groups = stack()
    twin(inputs()).square().sum().backward()
    plain = [proxy.grad.clone() for proxy in groups[0]["params"]]
    for proxy in groups[0]["params"]:
        proxy.grad = None
    twin(inputs().requires_grad_(), saving=reentrant).square().sum().backward()
    for proxy, expected in zip(groups[0]["params"], plain, strict=True):
        torch.testing.assert_close(proxy.grad, expected)


def test_autocast_computes_in_bfloat16_and_accumulates_in_float32() -> None:
    stock, twin, groups = stack()
    results = []
    for model in (stock, twin):
        with torch.autocast("cpu", torch.bfloat16):
            out = model(inputs())
        results.append(out)
        out.float().square().sum().backward()
    assert torch.equal(results[0], results[1])
    for full, proxy in zip(picked(stock, groups), groups[0]["params"], strict=True):
        assert proxy.grad.dtype == torch.float32
        torch.testing.assert_close(proxy.grad, full, atol=0.1, rtol=0.05)


def test_compiled_gradients_are_the_same_in_one_graph() -> None:
    _, twin, groups = stack()
    twin(inputs()).square().sum().backward()
    plain = [proxy.grad.clone() for proxy in groups[0]["params"]]
    for proxy in groups[0]["params"]:
        proxy.grad = None
    compiled = torch.compile(twin, fullgraph=True, backend="aot_eager")
    compiled(inputs()).square().sum().backward()
    for proxy, expected in zip(groups[0]["params"], plain, strict=True):
        torch.testing.assert_close(proxy.grad, expected)


class Shapes(TorchDispatchMode):
    """Takes note of the shape of every tensor that an operation makes, beside those that were there."""

    def __init__(self, there: nn.Module) -> None:
        super().__init__()
        self.there = {parameter.untyped_storage().data_ptr() for parameter in there.parameters()}
        self.made: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for made in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in self.there:
                self.made.add(tuple(made.shape))
        return out


@pytest.mark.parametrize("selection", ["top", "subspace"])
def test_no_full_gradient_is_ever_made_not_even_when_rows_are_selected(selection: Any) -> None:
    def seen(projected: bool) -> set[tuple[int, ...]]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(24, 16, bias=False), nn.Linear(16, 24, bias=False))
        settings = {"rank": 3, "selection": selection, "sketch_size": 2}
        groups: Any = grass_param_groups(model, **settings) if projected else model.parameters()
        optimizer = GrassAdamW(groups)
        watch = Shapes(model)
        for step in range(2):
            with watch:
                model(torch.randn(5, 24)).square().sum().backward()
                if selection == "top":  # along directions, the update of one weight at a time is whole
                    optimizer.step()
            if selection != "top":
                optimizer.step()
            optimizer.zero_grad()
            if projected:
                assert optimizer.param_groups[0]["step"] == step + 1
        return {shape for shape in watch.made if sorted(shape) == [16, 24]}

    assert seen(projected=True) == set()
    assert seen(projected=False)


def test_asking_for_the_gradient_of_a_projected_weight_raises_and_leaves_no_trace() -> None:
    _, twin, groups = stack()
    loss = twin(inputs()).square().sum()
    with pytest.raises(RuntimeError, match="appears to not have been used"):
        torch.autograd.grad(loss, twin.inner.weight, retain_graph=True)
    torch.autograd.grad(loss, twin.inner.bias)
    assert all(proxy.grad is None for proxy in groups[0]["params"])


def test_where_columns_are_selected_only_those_of_the_input_are_saved() -> None:
    saved: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    layer = nn.Sequential(nn.Linear(6, 10, bias=False))
    grass_param_groups(layer, rank=2)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        layer(torch.randn(4, 6, requires_grad=True))
    assert (4, 2) in saved
    assert (4, 6) not in saved


def test_a_saved_model_has_no_proxies_and_loads_into_a_stock_one_and_back() -> None:
    stock, twin, _ = stack()
    assert list(twin.state_dict()) == list(stock.state_dict())
    stock.load_state_dict(twin.state_dict())
    twin.load_state_dict(stock.state_dict())


def test_release_gives_the_stock_model_back() -> None:
    stock, twin, groups = stack()
    GrassAdamW(groups)
    release(twin)
    assert [type(module) for module in twin.modules()] == [type(module) for module in stock.modules()]
    assert [name for name, _ in twin.named_parameters()] == [name for name, _ in stock.named_parameters()]
    for model in (stock, twin):
        model(inputs()).square().sum().backward()
    for one, other in zip(twin.parameters(), stock.parameters(), strict=True):
        assert one.grad is not None
        torch.testing.assert_close(one.grad, other.grad)
