"""The plan counts what is really there, and follows what is asked of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, GPT2Config, LlamaForCausalLM, MixtralConfig, T5Config
from typer.testing import CliRunner

from remanence.cli import app
from remanence.optim import GrassAdamW, grass_param_groups
from remanence.optim.plan import METHODS, MODELS, Plan, configuration, plan
from tests.support.planning import CONFIG, kept_bytes


def planned(method: str = "grass", **settings: object) -> Plan:
    return plan(CONFIG, method, **{"rank": 8, "tokens": 16, "dtype": torch.float32, **settings})  # type: ignore[arg-type]


def step(model: LlamaForCausalLM, optimizer: torch.optim.Optimizer) -> tuple[int, int]:
    """Bytes of gradients and of state."""
    ids = torch.zeros(1, 16, dtype=torch.long)
    for _ in range(2):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    held = [
        value
        for state in optimizer.state.values()
        for name, value in state.items()
        if name != "steps" and name != "step"
    ]
    return gradients, sum({value.untyped_storage().data_ptr(): value.nbytes for value in held}.values())


def test_gradients_and_state_are_those_of_a_real_step() -> None:
    for method in ("grass", "adamw"):
        model = LlamaForCausalLM(CONFIG)
        weights = sum(parameter.nbytes for parameter in model.parameters())
        if method == "grass":
            optimizer: torch.optim.Optimizer = GrassAdamW(grass_param_groups(model, rank=8))
        else:
            optimizer = torch.optim.AdamW(model.parameters())
        gradients, state = step(model, optimizer)
        made = planned(method)
        assert (made.weights, made.gradients, made.state) == (weights, gradients, state)


def test_activations_are_what_autograd_keeps() -> None:
    model, ids = LlamaForCausalLM(CONFIG), torch.zeros(1, 16, dtype=torch.long)
    kept = kept_bytes(model, lambda: model(input_ids=ids, labels=ids, use_cache=False).loss)
    assert planned("adamw").activations == pytest.approx(kept, rel=0.1)


def test_activations_grow_with_tokens_and_shrink_with_checkpointing() -> None:
    usual, longer, batched = planned(), planned(tokens=64), planned(batch=4)
    assert longer.activations > 3 * usual.activations
    assert batched.activations > 3 * usual.activations
    assert planned(tokens=64, checkpointing=True).activations < longer.activations / 2
    assert longer.weights == usual.weights


def test_grass_takes_less_than_galore_and_galore_less_than_adamw() -> None:
    adamw, galore, lora, grass = (planned(method) for method in ("adamw", "galore", "lora", "grass"))
    assert grass.gradients < galore.gradients == adamw.gradients
    assert grass.state <= galore.state < adamw.state
    assert lora.gradients < grass.gradients
    assert grass.total < galore.total < adamw.total
    assert grass.refresh > planned(rank=4).refresh > 0
    assert galore.refresh > 0


def test_named_models_have_the_sizes_of_their_names() -> None:
    for name, least, most in (("llama-60m", 5.5e7, 6.5e7), ("llama-1b", 1.2e9, 1.4e9)):
        weights = plan(MODELS[name](), "adamw", dtype=torch.bfloat16).weights / 2
        assert least < weights < most, name


@pytest.mark.parametrize("settings", [{"rank": 0}, {"tokens": 0}, {"batch": 0}])
def test_numbers_below_one_are_refused(settings: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        planned(**settings)


CONFIGS = {
    "gpt2": GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=64, bos_token_id=1, eos_token_id=1),
    "bert": BertConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, vocab_size=64),
    "mixtral": MixtralConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=4,
        vocab_size=64,
    ),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", CONFIGS)
def test_any_decoder_that_the_library_knows_is_planned(name: str, method: Any, tmp_path: Path) -> None:
    CONFIGS[name].save_pretrained(tmp_path)
    made = plan(configuration(str(tmp_path)), method, rank=8, tokens=16)
    assert made.weights > 0
    assert made.total > made.weights + made.state


def test_what_is_no_decoder_is_refused(tmp_path: Path) -> None:
    T5Config(d_model=64, num_layers=2).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="of type t5, which is no decoder"):
        configuration(str(tmp_path))


def test_an_unknown_model_is_refused_with_those_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="llama-13b"):
        configuration("/no/such/model")


@pytest.mark.slow
def test_the_command_prints_a_table_and_json() -> None:
    words = ["plan", "--model", "llama-60m", "--tokens", "32"]
    shown = CliRunner().invoke(app, [*words, "--room", "1"])
    assert shown.exit_code == 0, shown.output
    assert "grass" in shown.output
    assert "fits" in shown.output
    assert max(map(len, shown.output.splitlines())) <= 80
    asked = CliRunner().invoke(app, [*words, "--method", "grass", "--json"])
    made = json.loads(asked.output)["grass"]
    assert made["total"] == sum(made[part] for part in ("weights", "gradients", "state", "activations", "transient"))
    wrong = CliRunner().invoke(app, ["plan", "--model", "/no/such/model"])
    assert wrong.exit_code == 2
