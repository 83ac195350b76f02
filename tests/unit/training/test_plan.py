"""The plan of memory training counts what a real step of it has."""

import json
from typing import Any

import pytest
import torch
from torch.optim import AdamW
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from remanence import MemoryModel
from remanence.cli import app
from remanence.config import LoraSettings
from remanence.errors import InvalidInputError
from remanence.model.lora import adapter_parameters
from remanence.optim.plan import METHODS, Method, Plan
from remanence.training.plan import Writes, WritingStep, plan_memory
from tests.support.planning import CONFIG, kept_bytes

WRITES = Writes(chunks=3, chunk=24, slots=32, slots_per_write=8)


def planned(method: Method = "adamw", writes: Writes = WRITES, **settings: Any) -> Plan:
    return plan_memory(CONFIG, method, writes, **{"rank": 8, "tokens": 16, "dtype": torch.float32, **settings})


def with_memory(lora: LoraSettings | None = None) -> MemoryModel:
    return MemoryModel.attach(LlamaForCausalLM(CONFIG), None, WRITES.config(lora))


def test_gradients_and_state_are_those_of_a_real_step() -> None:
    model = with_memory()
    step = WritingStep(model, WRITES, tokens=16, batch=1)
    optimizer = AdamW(model.parameters())
    step.loss().backward()
    optimizer.step()
    made = planned()
    assert made.weights == sum(p.nbytes for p in model.parameters())
    assert made.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    moments = sum(state[name].nbytes for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    assert made.state == moments + step.earlier.nbytes


def test_lora_is_a_twin_where_the_product_puts_it() -> None:
    model = with_memory(LoraSettings(r=8))
    adapters = sum(p.nbytes for _, p in adapter_parameters(model))
    added = sum(p.nbytes for p in (model.bos_embedding, model.new_memory_positional_emb) if p is not None)
    assert planned("lora").gradients == adapters + added


def test_activations_are_what_autograd_keeps() -> None:
    model = with_memory()
    step = WritingStep(model, WRITES, tokens=16, batch=1)
    assert planned().activations == pytest.approx(kept_bytes(model, step.loss), rel=0.1)


def test_what_is_written_read_and_kept_costs() -> None:
    usual = planned()
    assert planned(batch=3).activations > 2 * usual.activations
    assert planned(writes=Writes(3, 96, 32, 8)).activations > 1.5 * usual.activations
    assert planned(writes=Writes(3, 24, 64, 8, bank=6)).activations > usual.activations
    more = Writes(3, 24, 32, 8, bank=12)
    assert planned(writes=more).state - usual.state == 6 * 8 * 3 * 64 * 4  # chunks, K, layers, d, bytes
    assert planned(checkpointing=True).activations < usual.activations / 2


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        planned(writes=Writes(0))
    with pytest.raises(InvalidInputError, match="K=9"):
        planned(writes=Writes(slots=8, slots_per_write=9))


@pytest.mark.parametrize("method", METHODS)
def test_each_method_is_planned(method: Method) -> None:
    made = planned(method)
    assert made.total > made.weights + made.state


@pytest.mark.slow
def test_the_command_plans_memory_in_80_columns() -> None:
    words = ["plan", "--task", "memory", "--model", "llama-60m", "--chunk", "64", "--slots", "512"]
    words += ["--slots-per-write", "32", "--tokens", "16"]
    shown = CliRunner().invoke(app, [*words, "--room", "1000"])
    assert shown.exit_code == 0, shown.output
    assert "8 x 64 tokens written" in shown.output and max(map(len, shown.output.splitlines())) <= 80
    asked = CliRunner().invoke(app, [*words, "--method", "lora", "--json"])
    assert json.loads(asked.output)["lora"]["gradients"] > 0
