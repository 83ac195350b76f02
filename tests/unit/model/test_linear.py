"""The oneDNN linear layer is the stock one by other means, and steps aside where it cannot stand in for it."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from remanence import MemoryModel, products
from remanence.errors import InvalidInputError
from remanence.model.linear import OneDnnLinear, pack, use_onednn
from tests.support import tiny

needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")


def layers(bias: bool = True) -> tuple[nn.Linear, nn.Linear]:
    """A stock layer and its like."""
    torch.manual_seed(0)
    stock = nn.Linear(48, 80, bias=bias)
    swapped = copy.deepcopy(stock)
    use_onednn(swapped)
    return stock, swapped


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(48,), (1, 48), (33, 48), (2, 5, 48), (0, 48), (2, 0, 48)], ids=str)
def test_product_is_that_of_the_stock_layer(shape: tuple[int, ...], bias: bool) -> None:
    stock, swapped = layers(bias)
    assert isinstance(swapped, OneDnnLinear)
    given = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(swapped(given), stock(given), atol=1e-6, rtol=1e-6)


@needs_onednn
def test_rows_need_not_lie_together() -> None:
    stock, swapped = layers()
    given = torch.randn(48, 6).t()
    with torch.no_grad():
        torch.testing.assert_close(swapped(given), stock(given), atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(swapped(given[::2]), stock(given[::2]), atol=1e-6, rtol=1e-6)


@pytest.fixture
def no_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    def product(*_: object) -> Tensor:
        raise AssertionError("oneDNN was called")

    monkeypatch.setattr("remanence.products._onednn", product)


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(48,), (1, 48), (33, 48), (2, 5, 48)], ids=str)
def test_gradients_are_those_of_the_stock_layer(shape: tuple[int, ...], bias: bool) -> None:
    stock, swapped = layers(bias)
    given = torch.randn(shape)
    wanted = torch.randn(*shape[:-1], 80)
    gradients = []
    for layer in (stock, swapped):
        leaf = given.clone().requires_grad_()
        layer(leaf).mul(wanted).sum().backward()
        assert leaf.grad is not None
        gradients.append([leaf.grad, *(parameter.grad for parameter in layer.parameters())])
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-5, rtol=1e-5)


@needs_onednn
def test_a_frozen_weight_passes_gradients_on_and_takes_none() -> None:
    stock, swapped = layers()
    swapped.requires_grad_(False)
    leaf = torch.randn(5, 48, requires_grad=True)
    swapped(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, stock.weight.sum(0).expand(5, 48))
    assert swapped.weight.grad is None


@needs_onednn
def test_gradients_of_gradients_are_refused() -> None:
    _, swapped = layers()
    leaf = torch.randn(5, 48, requires_grad=True)
    (first,) = torch.autograd.grad(swapped(leaf).square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()


@pytest.mark.usefixtures("no_onednn")
def test_a_weight_with_gaps_takes_the_stock_product() -> None:
    stock, swapped = layers()
    for layer in (stock, swapped):
        layer.weight.data = torch.randn(48, 80, generator=torch.Generator().manual_seed(0)).t()
    given = torch.randn(5, 48)
    with torch.no_grad():
        torch.testing.assert_close(swapped(given), stock(given))


@pytest.mark.usefixtures("no_onednn")
def test_autocast_and_other_dtypes_take_the_stock_product() -> None:
    _, swapped = layers()
    with torch.no_grad():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert swapped(torch.randn(5, 48)).dtype == torch.bfloat16
        assert swapped.double()(torch.randn(5, 48).double()).dtype == torch.float64


@needs_onednn
def test_a_change_of_weights_shows_at_once() -> None:
    stock, swapped = layers()
    given = torch.randn(5, 48)
    with torch.no_grad():
        swapped(given)
        for layer in (stock, swapped):
            layer.weight.mul_(-2)
        torch.testing.assert_close(swapped(given), stock(given), atol=1e-6, rtol=1e-6)


def test_a_changed_layer_can_be_copied_and_pickled() -> None:
    _, swapped = layers()
    for copied in (copy.deepcopy(swapped), pickle.loads(pickle.dumps(swapped))):
        assert type(copied) is type(swapped)
        assert torch.equal(copied.weight, swapped.weight)


@pytest.fixture
def weights_used(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The weights that oneDNN multiplied."""
    used: list[Tensor] = []
    multiply = products._onednn

    def product(given: Tensor, weight: Tensor, *rest: object) -> Tensor:
        used.append(weight)
        made: Tensor = multiply(given, weight, *rest)
        return made

    monkeypatch.setattr("remanence.products._onednn", product)
    return used


@needs_onednn
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(48,), (1, 48), (33, 48), (700, 48), (2, 5, 48), (0, 48)], ids=str)
def test_a_packed_weight_gives_the_product_of_the_stock_layer(shape: tuple[int, ...], bias: bool) -> None:
    stock, swapped = layers(bias)
    assert pack(swapped) == 1
    given = torch.randn(shape)
    with torch.no_grad():
        torch.testing.assert_close(swapped(given), stock(given), atol=1e-6, rtol=1e-6)


@needs_onednn
@pytest.mark.parametrize("by_mkl", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_one_row_goes_to_mkl_where_that_is_faster(
    weights_used: list[Tensor], monkeypatch: pytest.MonkeyPatch, by_mkl: bool, packed: bool
) -> None:
    monkeypatch.setattr(products, "_one_row_by_mkl", lambda: by_mkl)
    stock, swapped = layers()
    if packed:
        pack(swapped)
    for shape, used in (((1, 1, 48), not by_mkl), ((2, 48), True)):
        weights_used.clear()
        given = torch.randn(shape)
        with torch.no_grad():
            torch.testing.assert_close(swapped(given), stock(given), atol=1e-6, rtol=1e-6)
        assert bool(weights_used) is used


def _scale(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight.mul_(-2)


def _load(layer: nn.Linear) -> None:
    layer.load_state_dict({name: value + 1 for name, value in layer.state_dict().items()})


def _replace(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(layer.weight.detach() + 1)


def _round(layer: nn.Linear) -> None:
    layer.bfloat16().float()


def _train(layer: nn.Linear) -> None:
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.5)
    layer(torch.ones(2, 48)).square().sum().backward()
    optimizer.step()


@needs_onednn
@pytest.mark.parametrize("change", [_scale, _load, _replace, _round, _train], ids=lambda change: change.__name__)
def test_a_packed_weight_is_let_go_when_the_weight_changes(
    change: Callable[[nn.Linear], None], weights_used: list[Tensor]
) -> None:
    stock, swapped = layers()
    pack(swapped)
    given = torch.randn(5, 48)
    with torch.no_grad():
        swapped(given)
    assert weights_used[-1] is not swapped.weight
    change(stock)
    change(swapped)
    with torch.no_grad():
        torch.testing.assert_close(swapped(given), stock(given), atol=1e-5, rtol=1e-5)
        assert weights_used[-1] is swapped.weight
        assert pack(swapped) == 1
        torch.testing.assert_close(swapped(given), stock(given), atol=1e-5, rtol=1e-5)
    assert weights_used[-1] is not swapped.weight


@needs_onednn
def test_gradients_are_taken_of_the_weight_though_it_is_packed(weights_used: list[Tensor]) -> None:
    stock, swapped = layers()
    pack(swapped)
    for layer in (stock, swapped):
        layer(torch.ones(5, 48)).square().sum().backward()
    assert weights_used[0] is swapped.weight
    torch.testing.assert_close(swapped.weight.grad, stock.weight.grad, atol=1e-5, rtol=1e-5)


@needs_onednn
def test_a_copy_of_a_packed_layer_starts_unpacked() -> None:
    _, swapped = layers()
    pack(swapped)
    for copied in (copy.deepcopy(swapped), pickle.loads(pickle.dumps(swapped))):
        assert copied.packed is None
        assert torch.equal(copied.weight, swapped.weight)


@needs_onednn
def test_a_packed_model_reads_and_writes_as_before() -> None:
    model = tiny.with_memory(tiny.decoder())
    ids = tiny.ids(5)
    seen = []
    for _ in range(2):
        memory = model.new_memory()
        model.write(memory, tiny.ids(40))
        seen.append(model.read(memory, ids).logits)
        assert model.pack() is model
    torch.testing.assert_close(seen[1], seen[0], atol=1e-5, rtol=1e-5)


def test_packing_a_model_that_oneDNN_does_not_multiply_is_refused() -> None:
    model = tiny.with_memory(tiny.decoder())
    model.hf.bfloat16()
    with pytest.raises(InvalidInputError, match=r"nothing to pack.*bfloat16 on cpu"):
        model.pack()


@needs_onednn
def test_layers_of_a_class_of_their_own_are_left_alone() -> None:
    class Own(nn.Linear):
        pass

    both = nn.Sequential(Own(3, 3), nn.Linear(3, 3))
    use_onednn(both)
    assert [type(layer) for layer in both] == [Own, OneDnnLinear]


@needs_onednn
def test_a_decoder_with_memory_computes_its_linear_layers_so(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []

    def product(given: Tensor, weight: Tensor, bias: Tensor | None, *_: object) -> Tensor:
        shapes.append(tuple(weight.shape))
        return linear(given, weight, bias)

    hf = tiny.decoder()
    linears = sum(isinstance(module, nn.Linear) for module in hf.modules())
    model: MemoryModel = tiny.with_memory(hf)
    model.bos_slots()  # made once, by layers that every read runs through as well
    monkeypatch.setattr("remanence.products._onednn", product)
    model.read(model.new_memory(), tiny.ids(5))
    assert len(shapes) == linears
