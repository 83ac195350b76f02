"""Twin LoRA of published checkpoints: the same as two models into which the adapters were folded."""

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor

from remanence import MemoryModel
from remanence.config import LoraSettings
from remanence.errors import CheckpointError, InvalidInputError
from tests.support.models import randomised, told, with_adapters
from tests.support.replay import encode, read_pending
from tests.support.tiny import decoder, ids, with_memory
from tests.unit.model.test_formats_memoryllm import GOLDEN, Weights, checkpoint, config_of, weights_of

RANK, ALPHA = 4, 12
ADAPTED = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj")
CLOSE = {"atol": 5e-5, "rtol": 0.0}
SOURCES = {"written pool": GOLDEN / "A-memoryllm-gqa", "never-written pool": GOLDEN / "B-memoryllm-uninitialised"}


def adapters(weights: Weights, name: str, seed: int) -> Weights:
    """Random `lora_A` and `lora_B` for every adapted matrix."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for key, tensor in weights.items():
        if key.endswith(tuple(f"{module}.weight" for module in ADAPTED)):
            stem, (outputs, inputs) = key.removesuffix(".weight"), tensor.shape
            made[f"{stem}.lora_A.{name}.weight"] = 0.1 * torch.randn(RANK, inputs, generator=generator)
            made[f"{stem}.lora_B.{name}.weight"] = 0.1 * torch.randn(outputs, RANK, generator=generator)
    return made


def folded(weights: Weights, lora: Weights, name: str) -> Weights:
    """Plain weights that do what the adapter does."""
    made = dict(weights)
    for key, low in lora.items():
        if key.endswith(f".lora_A.{name}.weight"):
            high = lora[key.replace("lora_A", "lora_B")]
            target = key.replace(f".lora_A.{name}.weight", ".weight")
            made[target] = weights[target] + ALPHA / RANK * high @ low
    return made


def stored(weights: Weights, lora: Weights) -> Weights:
    """As published: adapted matrices are called base layers."""
    adapted = {key.split(".lora_")[0] for key in lora}
    renamed = {
        f"{key.removesuffix('.weight')}.base_layer.weight" if key.removesuffix(".weight") in adapted else key: tensor
        for key, tensor in weights.items()
    }
    return renamed | lora


class Twins:
    """A checkpoint with LoRA, and the two models that it is made of."""

    def __init__(self, path: Path, source: Path, twin: bool, **settings: Any) -> None:
        weights = weights_of(source)
        lora = adapters(weights, "default", seed=1) | (adapters(weights, "decoder_adapter", seed=2) if twin else {})
        lora_config = {"r": RANK, "lora_alpha": ALPHA, "lora_dropout": 0.1, "target_modules": list(ADAPTED), **settings}
        config = config_of(source, lora_config=lora_config, add_decoder_lora=twin)

        def load(name: str, held: Weights, settings: dict[str, Any]) -> MemoryModel:
            return MemoryModel.from_pretrained(checkpoint(path / name, held, settings), keep_hidden=True)

        path.mkdir(exist_ok=True)
        self.lora = load("lora", stored(weights, lora), config)
        reading = "decoder_adapter" if twin else "default"
        self.writes = load("writes", folded(weights, lora, "default"), config_of(source))
        self.reads = load("reads", folded(weights, lora, reading), config_of(source))

    def read(self, hidden: Tensor, ids: Tensor) -> Tensor:
        out = self.reads.read(self.reads.memory_from_slots(hidden), ids).logits
        assert out is not None
        return out


@pytest.mark.parametrize("source", sorted(SOURCES))
@pytest.mark.parametrize("twin", [True, False], ids=["twin", "one adapter"])
def test_lora_writes_and_reads_like_two_models_with_folded_weights(tmp_path: Path, source: str, twin: bool) -> None:
    twins = Twins(tmp_path, SOURCES[source], twin)
    memory, expected = twins.lora.new_memory(seed=1), twins.writes.new_memory(seed=1)
    for length in (20, 3, 33):
        ids = torch.arange(3, 3 + length)
        torch.testing.assert_close(encode(twins.lora, memory, ids), encode(twins.writes, expected, ids), **CLOSE)
        twins.lora.write(memory, ids)
        twins.writes.write(expected, ids)
        torch.testing.assert_close(memory.pool.slots(), expected.pool.slots(), **CLOSE)
        out = twins.lora.read(memory, ids).logits
        torch.testing.assert_close(out, twins.read(expected.pool.slots(), ids), **CLOSE)
    ids = torch.arange(5, 25)
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    same = twins.reads.memory_from_slots(expected.pool.slots())
    assert torch.equal(twins.lora.generate(memory, ids, **options), twins.reads.generate(same, ids, **options))
    pending = [encode(twins.lora, memory, ids)]
    alone = read_pending(twins.lora, memory, ids, pending, None).logits  # by the adapter that writes
    torch.testing.assert_close(alone, read_pending(twins.writes, expected, ids, pending, None).logits, **CLOSE)


def test_adapters_differ_enough_to_be_told_apart(tmp_path: Path) -> None:
    twins = Twins(tmp_path, SOURCES["written pool"], True)
    memory, ids = twins.lora.new_memory(), torch.arange(3, 20)
    right = twins.read(memory.pool.slots(), ids)
    with_the_writing_adapter = twins.writes.read(twins.writes.memory_from_slots(memory.pool.slots()), ids).logits
    assert with_the_writing_adapter is not None
    assert float((right - with_the_writing_adapter).abs().max()) > 0.1


def test_from_pretrained_takes_a_rank_that_is_left_out_from_the_weights(tmp_path: Path) -> None:
    twins = Twins(tmp_path, SOURCES["written pool"], True, r=None)
    memory, ids = twins.lora.new_memory(), torch.arange(3, 20)
    torch.testing.assert_close(twins.lora.read(memory, ids).logits, twins.read(memory.pool.slots(), ids), **CLOSE)


def test_write_leaves_training_flags_alone(tmp_path: Path) -> None:
    model = Twins(tmp_path, SOURCES["written pool"], True).lora
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.write(model.new_memory(), torch.arange(3, 20))
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("no adapter", "holds no LoRA weights"),
        ("no settings", "config.json has no lora_config"),
        ("a matrix less", "do not match.*layers.1.mlp.up_proj.lora_B.decoder_adapter"),
        ("another rank", "layers.1.mlp.up_proj.lora_A.default.weight has shape"),
    ],
)
def test_from_pretrained_names_damaged_adapters(tmp_path: Path, change: str, says: str) -> None:
    weights = weights_of()
    lora = adapters(weights, "default", seed=1) | adapters(weights, "decoder_adapter", seed=2)
    config = config_of(lora_config={"r": RANK, "lora_alpha": ALPHA}, add_decoder_lora=True)
    if change == "no adapter":
        lora = {}
    elif change == "no settings":
        config["lora_config"] = None
    elif change == "a matrix less":
        del lora["model.layers.1.mlp.up_proj.lora_B.decoder_adapter.weight"]
    else:
        lora["model.layers.1.mlp.up_proj.lora_A.default.weight"] = torch.zeros(RANK + 1, 64)
    with pytest.raises(CheckpointError, match=says):
        MemoryModel.from_pretrained(checkpoint(tmp_path, stored(weights, lora), config))


def acting(model: MemoryModel) -> set[str]:
    """The adapters that take part in a call now."""
    layers = [module for module in model.hf.modules() if isinstance(module, LoraLayer)]
    return {name for layer in layers if not layer.disable_adapters for name in layer.active_adapters}


def test_role_lets_one_adapter_act_and_none_outside_of_it() -> None:
    model = with_adapters()
    assert acting(model) == set()
    with model.role("read"):
        assert acting(model) == {"reader"}
        with model.role("write"):
            assert acting(model) == {"writer"}
        with suppress(KeyError), model.role(None):
            assert acting(model) == set()
            raise KeyError
        assert acting(model) == {"reader"}
        with model.stock():
            assert acting(model) == set()
    assert acting(model) == set()


def test_role_leaves_wanted_gradients_as_they_are() -> None:
    model = with_adapters()
    for name, parameter in model.hf.named_parameters():
        parameter.requires_grad_(".reader." in name)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.write(told(model), ids(9))
    model.read(told(model), ids(9))
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before


def test_writing_and_reading_use_an_adapter_each() -> None:
    fresh, plain = with_memory(lora=LoraSettings(r=4), bos=False), with_memory(bos=False)
    expected = plain.read(told(plain), ids(5)).logits
    torch.testing.assert_close(fresh.read(told(fresh), ids(5)).logits, expected, atol=1e-5, rtol=0.0)
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            if ".lora_B.reader" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    made = encode(fresh, told(fresh), ids(9)), encode(plain, told(plain), ids(9))
    torch.testing.assert_close(*made, atol=1e-5, rtol=0.0)
    assert not torch.allclose(fresh.read(told(fresh), ids(5)).logits, expected, atol=1e-2)
    with torch.no_grad():
        for name, parameter in fresh.named_parameters():
            if ".lora_B.writer" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    assert not torch.allclose(encode(fresh, told(fresh), ids(9)), made[1], atol=1e-2)


def test_attach_with_new_adapters_changes_nothing_until_they_are_trained() -> None:
    model, plain = with_memory(lora=LoraSettings(), bos=False), with_memory(bos=False)
    read = [one.read(told(one), ids(5)).logits for one in (model, plain)]
    torch.testing.assert_close(*read, atol=1e-5, rtol=0.0)
    randomised(model)
    assert not torch.allclose(model.read(told(model), ids(5)).logits, read[1], atol=1e-2)


def test_attach_puts_lora_onto_the_layers_that_are_named() -> None:
    def adapted(model: MemoryModel) -> set[str]:
        return {name.split(".")[-1] for name, module in model.hf.named_modules() if isinstance(module, LoraLayer)}

    assert adapted(with_memory(lora=LoraSettings(target_modules=("q_proj",)))) == {"q_proj"}
    assert adapted(with_memory(lora=LoraSettings())) == {*ADAPTED}
    assert adapted(with_memory(decoder("gpt_neox"), lora=LoraSettings())) == {
        "query_key_value",
        "dense_h_to_4h",
        "dense_4h_to_h",
    }
    with pytest.raises(InvalidInputError, match=r"no linear layer is named lm_head; there are .*q_proj"):
        with_memory(lora=LoraSettings(target_modules=("lm_head", "q_proj")))


def test_attach_refuses_lora_on_a_decoder_with_adapters_of_its_own() -> None:
    hf = decoder()
    hf.add_adapter(LoraConfig(target_modules=["q_proj"], r=2))
    with pytest.raises(InvalidInputError, match=r"adapters already.*merge_and_unload"):
        with_memory(hf, lora=LoraSettings())


def test_role_of_a_copy_is_its_own() -> None:
    model = with_adapters()
    twin = copy.deepcopy(model)
    memory = told(model)
    with model.role("write"):
        assert acting(twin) == set()
    assert torch.equal(twin.read(memory, ids(5)).logits, model.read(memory, ids(5)).logits)
