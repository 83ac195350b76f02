"""Whatever multiplies by a projected weight is trained, or left out by name: never frozen, never changed."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear
from transformers import (
    LlamaConfig,
    LlamaForSequenceClassification,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.integrations.bitnet import AutoBitLinear
from transformers.pytorch_utils import Conv1D

from remanence.optim import GrassAdamW, grass_param_groups, release


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight * 0.1, self.bias)


class Borrowed(nn.Module):
    """Uses a layer's weight without calling the layer, twice, once of a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.inner.weight) + linear(x, self.inner.weight[:8]).repeat(1, 2).tanh()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(x[None], x[None], x[None])[0][0]
        return out


def small(**more: Any) -> dict[str, Any]:
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    return {**sizes, "num_key_value_heads": 2, "vocab_size": 50, "pad_token_id": 0, **more}


def mixtral() -> nn.Module:
    return MixtralForCausalLM(MixtralConfig(**small(num_local_experts=4)))


def qwen() -> nn.Module:
    settings = small(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, head_dim=8)
    return Qwen3MoeForCausalLM(Qwen3MoeConfig(**settings))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Sequential(nn.Linear(16, 32), nn.Tanh(), nn.Linear(32, 16, bias=False)),
    "Conv1D": lambda: nn.Sequential(Conv1D(32, 16), nn.Tanh(), Conv1D(16, 32)),
    "a subclass with a forward of its own": lambda: nn.Sequential(Scaled(16, 32)),
    "BitNet": lambda: nn.Sequential(AutoBitLinear(16, 32, bias=False, online_quant=True)),
    "the weight alone": Borrowed,
    "attention": Attention,
    "Mixtral": mixtral,
    "Qwen3-MoE": qwen,
}


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    return KINDS[kind]()


def loss(model: nn.Module, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if hasattr(model, "config"):
        ids = torch.randint(50, (2, 9), generator=generator)
        of_decoder: Tensor = model(input_ids=ids, labels=ids).loss
        return of_decoder
    out: Tensor = model(torch.randn(6, 16, generator=generator)).square().mean()
    return out


def weight_of(model: nn.Module, name: str) -> Tensor:
    parameters = dict(model.named_parameters())
    return parameters.get(f"{name}.weight", parameters.get(name, torch.empty(0)))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_selected_part_of_the_whole_ones_and_outputs_are_unchanged(kind: str) -> None:
    stock = made(kind)
    twin = copy.deepcopy(stock)
    groups = grass_param_groups(twin, rank=4, selection="top")
    GrassAdamW(groups)
    one, other = loss(stock), loss(twin)
    torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-6)
    one.backward()
    other.backward()
    assert groups[0]["names"]
    for projection in groups[0]["projections"]:
        full = weight_of(stock, projection.name).grad
        assert full is not None
        full = full.flatten(0, -2)
        expected = full.index_select(0 if projection.by_row else 1, projection.rows)
        torch.testing.assert_close(projection.proxy.grad, expected, atol=1e-6, rtol=1e-5)
        sketched = (full if projection.by_row else full.t()) @ projection.sketch.noise
        torch.testing.assert_close(projection.sketch.value(), sketched, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("selection", ["subspace", "top"])
@pytest.mark.parametrize("kind", KINDS)
def test_all_weights_are_trained(kind: str, selection: Any) -> None:
    model = made(kind)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    groups = grass_param_groups(model, rank=4, update_proj_gap=2, selection=selection)
    optimizer = GrassAdamW(groups, lr=1e-2)
    for seed in range(4):
        loss(model, seed).backward()
        optimizer.step()
        optimizer.zero_grad()
    after = dict(model.named_parameters())
    assert [name for name, value in before.items() if torch.equal(after[name], value) and name != "inner.bias"] == []


def test_of_experts_rows_are_chosen_over_all_of_them() -> None:
    model = mixtral()
    groups = grass_param_groups(model, rank=4)
    assert [name for name in groups[0]["names"] if "experts" in name] == [
        f"model.layers.{layer}.mlp.experts.{key}" for layer in range(2) for key in ("gate_up_proj", "down_proj")
    ]
    experts = next(p for p in groups[0]["projections"] if "gate_up" in p.name)
    assert (experts.proxy.shape, experts.candidates) == ((4 * 4, 16), 4 * 48)


def test_a_computed_weight_is_trained_in_full() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(16, 32)), nn.Linear(32, 16))
    groups = grass_param_groups(model, rank=4)
    assert groups[0]["names"] == ["1"]
    assert {id(p) for p in model[0].parameters()} <= {id(p) for p in groups[1]["params"]}
    loss(model).backward()
    GrassAdamW(groups).step()


def test_a_small_head_is_trained_in_full_with_a_note(caplog: pytest.LogCaptureFixture) -> None:
    model = LlamaForSequenceClassification(LlamaConfig(**small(num_labels=2)))
    groups = grass_param_groups(model, rank=4)
    assert model.score.weight in set(groups[1]["params"])
    assert "Grass trains in full: score (its smaller side, 2, is below the rank)" in caplog.text


def test_what_is_excluded_is_trained_in_full() -> None:
    model = KINDS["linear"]()
    groups = grass_param_groups(model, rank=4, exclude="2")
    assert groups[0]["names"] == ["0"]
    assert model[2].weight in set(groups[1]["params"])


def test_a_sparse_embedding_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Embedding(20, 16, sparse=True), nn.Linear(16, 32))
    with pytest.raises(ValueError, match=r"^0 gives sparse gradients.*sparse=False"):
        grass_param_groups(model, rank=4)


def test_groups_of_another_optimizer_are_refused() -> None:
    parameters = list(nn.Linear(16, 32).parameters())
    with pytest.raises(ValueError, match="make the groups by grass_param_groups"):
        GrassAdamW([{"params": parameters, "rank": 4, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}])


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_and_a_pickle_are_models_of_their_own_that_can_be_released(kind: str) -> None:
    model = made(kind)
    stock = copy.deepcopy(model)
    groups = grass_param_groups(model, rank=4)
    GrassAdamW(groups)
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    for other in (copy.deepcopy(model), torch.load(saved, weights_only=False), pickle.loads(pickle.dumps(model))):
        assert torch.equal(loss(other), loss(model))
        loss(other).backward()
        assert all(proxy.grad is None for proxy in groups[0]["params"])
        release(other)
        assert [type(module) for module in other.modules()] == [type(module) for module in stock.modules()]
        assert all(parameter.requires_grad for parameter in other.parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("when", ["before the optimizer", "after a step"])
def test_a_model_may_change_its_dtype(dtype: torch.dtype, when: str) -> None:
    model = made("linear")
    groups = grass_param_groups(model, rank=4)
    optimizer = GrassAdamW(groups, lr=1e-2)
    if when == "after a step":
        loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.to(dtype)
    assert {proxy.dtype for proxy in groups[0]["params"]} == {torch.float32}
    before = model[0].weight.detach().clone()
    model(torch.randn(6, 16, dtype=dtype)).square().mean().backward()
    optimizer.step()
    assert not torch.equal(model[0].weight, before)
    assert model[0].weight.dtype == dtype
    proxy = groups[0]["params"][0]
    assert proxy.data_ptr() == optimizer.state[proxy]["exp_avg"].data_ptr()


def test_a_weight_that_somebody_else_puts_in_gets_its_own_gradient() -> None:
    model = made("linear")
    grass_param_groups(model, rank=4)
    names = dict(model.named_parameters())
    other = {name: value.detach().clone().requires_grad_() for name, value in names.items() if "weight" in name}
    functional_call(model, other, (torch.randn(6, 16),)).square().mean().backward()
    assert all(value.grad is not None for value in other.values())


def test_thawing_the_model_afterwards_changes_nothing() -> None:
    model = made("linear")
    groups = grass_param_groups(model, rank=4)
    model.requires_grad_(True)
    loss(model).backward()
    assert all(proxy.grad is not None for proxy in groups[0]["params"])
    assert all(weight_of(model, name).grad is None for name in groups[0]["names"])


def test_a_layer_without_gradients_for_a_whole_period_is_named_once() -> None:
    """Such as one whose weight somebody keeps a reference to, and uses without the layer."""
    model = made("linear")
    kept = model[2].weight
    optimizer = GrassAdamW(grass_param_groups(model, rank=4, update_proj_gap=2, selection="top"), lr=1e-2)

    def step() -> None:
        linear(model[0](torch.randn(6, 16)), kept).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    step()
    with pytest.warns(UserWarning, match=r"^2 got no gradient in the last 2 steps.*exclude="):
        step()
    step()
