"""Which layers are projected, and what is said where that makes no sense."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from remanence.optim import GrassAdamW, grass_param_groups


def llama(**settings: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, **settings))


@pytest.mark.parametrize("tied", [False, True])
def test_all_linear_layers_but_the_head_are_projected_and_the_rest_is_trained_in_full(tied: bool) -> None:
    model = llama(tie_word_embeddings=tied)
    projected, plain = grass_param_groups(model, rank=4)
    assert len(projected["names"]) == len(projected["params"]) == 2 * 7
    assert not any("lm_head" in name for name in projected["names"])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rest = {names[id(parameter)].split(".")[-2] for parameter in plain["params"]}
    norms = {"norm", "input_layernorm", "post_attention_layernorm"}
    assert rest == norms | {"embed_tokens"} | (set() if tied else {"lm_head"})


def test_words_choose_layers() -> None:
    projected, plain = grass_param_groups(llama(), rank=4, target_modules=["mlp", "q_proj"])
    assert len(projected["names"]) == 2 * 4
    assert all("mlp" in name or "q_proj" in name for name in projected["names"])
    assert len(plain["params"]) == 2 * (3 + 2) + 3


def test_a_frozen_layer_stays_frozen() -> None:
    model = llama()
    model.model.layers[0].requires_grad_(False)
    projected, _ = grass_param_groups(model, rank=4)
    assert all("layers.1." in name for name in projected["names"])


def test_two_layers_with_one_weight_share_their_selection() -> None:
    model = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 8, bias=False))
    model[2].weight = model[0].weight
    stock = nn.Sequential(nn.Linear(8, 8, bias=False), nn.Tanh(), nn.Linear(8, 8, bias=False))
    stock[2].weight = stock[0].weight
    stock.load_state_dict(model.state_dict())
    groups = grass_param_groups(model, rank=3)
    assert len(groups[0]["params"]) == 1
    for one in (model, stock):
        one(torch.ones(2, 8)).square().sum().backward()
    full = stock[0].weight.grad
    assert full is not None
    torch.testing.assert_close(groups[0]["params"][0].grad, full[:, groups[0]["projections"][0].rows])


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"rank": 17}, ValueError, r"layers\.0\.self_attn\.q_proj \(its smaller side, 16, is below the rank\)"),
        ({"update_proj_gap": 0}, ValueError, "update_proj_gap counts optimizer steps"),
        ({"rank": 0}, ValueError, "rank and sketch_size are at least 1"),
        ({"selection": "best"}, ValueError, "selection is one of subspace, top"),
        ({"replacement": True}, ValueError, "not drawn"),
        ({"on_refresh": "forget"}, ValueError, "on_refresh is 'reset' or 'keep'"),
        (
            {"on_refresh": "keep", "selection": "uniform", "replacement": True},
            ValueError,
            "rows may be drawn twice",
        ),
        ({"target_modules": ["norm"]}, TypeError, "names modules, such as .*norm.*, but no linear layer"),
        ({"target_modules": ["qkv"]}, ValueError, "no trainable linear layer matches"),
    ],
)
def test_what_makes_no_sense_is_refused_and_the_model_left_alone(
    settings: dict[str, Any], error: type[Exception], said: str
) -> None:
    model = llama()
    before = [type(module) for module in model.modules()]
    with pytest.raises(error, match=said):
        grass_param_groups(model, **{"rank": 4, **settings})
    assert [type(module) for module in model.modules()] == before
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_weight_that_an_embedding_uses_too_is_refused() -> None:
    with pytest.raises(ValueError, match=r"lm_head shares its weight with model\.embed_tokens"):
        grass_param_groups(llama(tie_word_embeddings=True), rank=4, target_modules=["lm_head"])


def test_projecting_twice_is_refused() -> None:
    model = llama()
    grass_param_groups(model, rank=4)
    with pytest.raises(ValueError, match="call release"):
        grass_param_groups(model, rank=4)


def test_the_loss_of_a_decoder_falls() -> None:
    model = llama()
    optimizer = GrassAdamW(grass_param_groups(model, rank=4), lr=1e-2)
    ids = torch.arange(12)[None]
    losses = []
    for _ in range(8):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
