"""Our own format: a model comes back as it was, and reads the memories that it wrote."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from remanence.model.families import FAMILIES

from remanence import Memory, MemoryModel
from remanence.errors import CheckpointError
from tests.support import tiny
from tests.support.tiny import SLOTS, K, decoder, ids, with_memory

CLOSE = {"atol": 1e-5, "rtol": 0.0}


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("bos", [True, False], ids=["bos", "no bos"])
def test_a_saved_model_comes_back_and_reads_what_it_wrote(tmp_path: Path, family: str, bos: bool) -> None:
    model = with_memory(decoder(family), bos=bos, eviction="shared")
    memory = model.new_memory(seed=5)
    model.write(memory, ids(20))
    memory.save(tmp_path / "memory")
    model.save_pretrained(tmp_path / "model")
    again = MemoryModel.from_pretrained(tmp_path / "model")
    assert again.spec == model.spec
    loaded = Memory.load(tmp_path / "memory")
    # To the last bit only between two loads: how weights lie in memory decides how products are summed up.
    torch.testing.assert_close(again.read(loaded, ids(9)).logits, model.read(memory, ids(9)).logits, **CLOSE)
    again.write(loaded, ids(15))
    model.write(memory, ids(15))
    torch.testing.assert_close(loaded.pool.keys, memory.pool.keys, **CLOSE)


def test_two_loads_write_the_same_memory_bit_for_bit(tmp_path: Path) -> None:
    with_memory().save_pretrained(tmp_path)
    memories = []
    for _ in range(2):
        model = MemoryModel.from_pretrained(tmp_path)
        memories.append(model.new_memory(seed=5))
        for length in (20, 3, 40):
            model.write(memories[-1], ids(length))
    for name, tensor in memories[0].pool.tensors.items():
        assert torch.equal(memories[1].pool.tensors[name], tensor)


@pytest.mark.parametrize(
    "changes", [{"tie_word_embeddings": True}, {"dtype": torch.bfloat16}], ids=["tied", "bfloat16"]
)
def test_weights_come_back_exactly(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = with_memory(decoder(**changes))
    model.save_pretrained(tmp_path)
    again = MemoryModel.from_pretrained(tmp_path)
    assert again.spec == model.spec
    for name, parameter in model.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter)


def test_a_shipped_pool_comes_back(tmp_path: Path) -> None:
    model = with_memory(keep_hidden=True)
    model.shipped_pool = torch.randn(tiny.LAYERS, SLOTS, 32)
    model.save_pretrained(tmp_path)
    again = MemoryModel.from_pretrained(tmp_path, keep_hidden=True)
    assert torch.equal(again.new_memory().pool.slots(), model.shipped_pool)


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    model = with_memory(decoder(vocab_size=300), tokenizer=tiny.tokenizer())
    model.save_pretrained(tmp_path)
    again = MemoryModel.from_pretrained(tmp_path)
    memories = [one.new_memory() for one in (model, again)]
    for one, memory in zip((model, again), memories, strict=True):
        one.write(memory, "Alice Brown was born in Oslo.")
    torch.testing.assert_close(memories[0].pool.keys, memories[1].pool.keys, **CLOSE)


def test_a_model_moves_to_another_attention_and_dtype(tmp_path: Path) -> None:
    with_memory().save_pretrained(tmp_path)
    model = MemoryModel.from_pretrained(tmp_path, attn_implementation="eager", dtype=torch.bfloat16)
    assert model.hf.config._attn_implementation == "eager" and model.spec.dtype == "bfloat16"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    with_memory().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["remanence.safetensors", "model.safetensors", "config.json"])
def test_a_missing_file_is_refused(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        MemoryModel.from_pretrained(saved)


@pytest.mark.parametrize("name", ["remanence.safetensors", "model.safetensors"])
def test_a_truncated_file_is_refused(saved: Path, name: str) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        MemoryModel.from_pretrained(saved)


def test_settings_of_another_version_are_refused(saved: Path) -> None:
    settings = json.loads((saved / "remanence.json").read_text())
    (saved / "remanence.json").write_text(json.dumps({**settings, "format": "remanence-model-9"}))
    with pytest.raises(CheckpointError, match=r"remanence-model-9.*this version reads"):
        MemoryModel.from_pretrained(saved)


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_damaged_settings_are_refused(saved: Path, content: str) -> None:
    (saved / "remanence.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"remanence.json is not"):
        MemoryModel.from_pretrained(saved)


@pytest.mark.parametrize("name", ["slots", "slots_per_write", "eviction"])
def test_a_missing_setting_is_named(saved: Path, name: str) -> None:
    settings = json.loads((saved / "remanence.json").read_text())
    del settings[name]
    (saved / "remanence.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=name):
        MemoryModel.from_pretrained(saved)


def test_a_model_without_a_memory_says_how_to_give_it_one(tmp_path: Path) -> None:
    decoder().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"LlamaForCausalLM without a memory.*MemoryModel.attach"):
        MemoryModel.from_pretrained(tmp_path)


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        MemoryModel.from_pretrained(tmp_path)


def test_a_path_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        MemoryModel.from_pretrained(tmp_path / "nowhere")


def test_a_copy_writes_without_the_original() -> None:
    model = with_memory()
    twin = copy.deepcopy(model)
    for weight in model.hf.parameters():
        weight.data.zero_()
    fresh = with_memory()
    assert torch.equal(twin.encode(twin.new_memory(), ids(K)), fresh.encode(fresh.new_memory(), ids(K)))
