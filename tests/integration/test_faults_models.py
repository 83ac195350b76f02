"""A decoder that memory was attached to can still be copied, pickled, checkpointed and quantized; or it is refused."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torchao.quantization import Int8WeightOnlyConfig, IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerGroup
from transformers import AutoModel

from remanence import MemoryModel
from remanence.config import LongTermConfig, LoraSettings
from remanence.errors import UnsupportedModelError
from tests.support.reading import CLOSE, or_refused, written
from tests.support.tiny import LAYERS, SLOTS, K, decoder, ids, with_memory

SETTINGS: dict[str, dict[str, Any]] = {
    "a pool": {},
    "adapters and a retriever": {
        "longterm": LongTermConfig(retrieved=4),
        "retrieval_size": 8,
        "lora": LoraSettings(r=2, lora_alpha=4.0),
    },
}


def used(model: MemoryModel) -> Tensor:
    """Logits `[1 + T, V]` after a write that evicts: the last one alone, as a generation takes it, and all of them."""
    memory, prompt = written(model), ids(9, seed=8)
    model.write(memory, ids(20, seed=7))
    return torch.cat([model.read(memory, prompt, logits_to_keep=kept).logits[0] for kept in (1, 0)]).detach()


@torch.no_grad()
def spoil(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.mul_(0.5)


# Copies.


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_copy_computes_with_its_own_weights(settings: dict[str, Any]) -> None:
    model = with_memory(**settings)
    twin, before = copy.deepcopy(model), used(model)
    spoil(model)
    assert torch.equal(used(twin), before)
    assert not torch.allclose(used(model), before, **CLOSE)


def test_a_copy_of_a_model_that_runs_its_layers_again_computes_with_its_own_weights() -> None:
    model = with_memory()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    twin, fresh = copy.deepcopy(model), with_memory()
    for each in (twin, fresh):
        spoil(each.hf.base_model.layers)
    torch.testing.assert_close(used(twin), used(fresh), **CLOSE)


@torch.no_grad()
def test_a_copy_of_the_decoder_alone_computes_with_its_own_weights() -> None:
    hf = decoder()
    with_memory(hf)
    twin, before = copy.deepcopy(hf), hf(ids(9)[None]).logits
    spoil(hf)
    torch.testing.assert_close(twin(ids(9)[None]).logits, before, **CLOSE)


# Pickles.


def test_a_model_is_pickled_or_says_what_to_do() -> None:
    model = with_memory()
    with or_refused("save_pretrained"):
        again = pickle.loads(pickle.dumps(model))
        assert torch.equal(used(again), used(model))


def test_a_decoder_with_memory_is_pickled_or_says_what_to_do(tmp_path: Path) -> None:
    hf = decoder()
    with_memory(hf)
    with or_refused("detach"):
        torch.save(hf, tmp_path / "hf.pt")
        again = torch.load(tmp_path / "hf.pt", weights_only=False)
        torch.testing.assert_close(again(ids(9)[None]).logits, hf(ids(9)[None]).logits, **CLOSE)


@torch.no_grad()
def test_detach_gives_the_stock_decoder_back() -> None:
    hf = decoder()
    before, kinds = hf(ids(9)[None]).logits, [type(module) for module in hf.modules()]
    model = with_memory(hf)
    used(model)
    model.detach()
    assert [type(module) for module in hf.modules()] == kinds
    assert torch.equal(hf(ids(9)[None]).logits, before)
    assert torch.equal(pickle.loads(pickle.dumps(hf))(ids(9)[None]).logits, before)


# Layers that run again in the backward pass.


@pytest.mark.parametrize("how", [{}, {"gradient_checkpointing_kwargs": {"use_reentrant": True}}], ids=["", "reentrant"])
@pytest.mark.parametrize("order", ["before attach", "after attach"])
def test_transformers_own_checkpointing_works_or_says_which_call_to_make(order: str, how: dict[str, Any]) -> None:
    expected = used(with_memory())
    hf = decoder()
    if order == "before attach":
        hf.gradient_checkpointing_enable(**how)
    model = with_memory(hf)
    if order == "after attach":
        model.hf.gradient_checkpointing_enable(**how)
    model.train()
    with or_refused("gradient_checkpointing_enable"):
        torch.testing.assert_close(used(model), expected, **CLOSE)
    with or_refused("gradient_checkpointing_enable"):
        model.generate(model.new_memory(), ids(5), max_new_tokens=2)


# Decoders that are not as expected.


def test_attach_takes_a_decoder_with_peft_adapters() -> None:
    hf = get_peft_model(decoder(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=2))
    for name, parameter in hf.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.5)
    with torch.no_grad():
        expected = hf(ids(9)[None]).logits
    model = MemoryModel.attach(hf, None, slots=SLOTS, slots_per_write=K)
    torch.testing.assert_close(model.read(model.new_memory(), ids(9)).logits, expected, **CLOSE)
    used(model)


def test_attach_refuses_a_decoder_without_a_head(tmp_path: Path) -> None:
    decoder().save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="AutoModelForCausalLM"):
        with_memory(AutoModel.from_pretrained(tmp_path))


def test_attach_works_or_refuses_where_a_layer_lies_on_disk(tmp_path: Path) -> None:
    decoder().save_pretrained(tmp_path)
    parts = ["model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head"]
    parts += [f"model.layers.{index}" for index in range(LAYERS)]
    places = {**dict.fromkeys(parts, "cpu"), "model.layers.1": "disk"}
    hf = type(decoder()).from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload")
    with or_refused("disk", UnsupportedModelError):
        torch.testing.assert_close(used(with_memory(hf)), used(with_memory()), **CLOSE)


ROUNDED = {
    "int8": Int8WeightOnlyConfig(),
    "int4": IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(16)),
}


@pytest.mark.parametrize("order", ["before attach", "after attach"])
@pytest.mark.parametrize("config", ROUNDED.values(), ids=ROUNDED)
@torch.no_grad()
def test_a_decoder_with_quantized_weights_writes_and_reads(config: Any, order: str) -> None:
    stock, hf = decoder(), decoder()
    quantize_(stock, config)
    if order == "before attach":
        quantize_(hf, config)
    model = with_memory(hf)
    if order == "after attach":
        quantize_(model.hf, config)
    unwritten = model.read(model.new_memory(), ids(9)).logits
    torch.testing.assert_close(unwritten, stock(ids(9)[None]).logits, **CLOSE)
    memory = written(model)
    assert not torch.allclose(model.read(memory, ids(9)).logits, unwritten, **CLOSE)
    assert model.generate(memory, ids(4), max_new_tokens=2).shape == (1, 6)


@pytest.mark.filterwarnings("ignore")
def test_quantize_dynamic_finds_as_many_layers_as_in_the_stock_decoder() -> None:
    def quantized(hf: nn.Module) -> int:
        made = torch.ao.quantization.quantize_dynamic(hf, {nn.Linear}, dtype=torch.qint8)
        return sum(isinstance(module, torch.ao.nn.quantized.dynamic.Linear) for module in made.modules())

    assert quantized(with_memory().hf) == quantized(decoder()) == 7 * LAYERS + 1
