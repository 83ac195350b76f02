"""Our own format: a model comes back as it was, and reads the memories that it wrote; version 0.1's is read too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from remanence import Memory, MemoryConfig, MemoryModel
from remanence.checkpoints import bundled
from remanence.config import LongTermConfig, LoraSettings, RetrievalConfig
from remanence.errors import CheckpointError
from remanence.model.backbone import FAMILIES
from tests.support import tiny
from tests.support.models import KINDS, everything, told, with_adapters, with_longterm
from tests.support.tiny import SLOTS, K, decoder, ids, with_memory, with_text

CLOSE = {"atol": 2e-5, "rtol": 0.0}
every_kind = pytest.mark.parametrize("kind", KINDS)


def settings_of(path: Path) -> dict[str, Any]:
    settings: dict[str, Any] = json.loads((path / "remanence.json").read_text())
    return settings


def change(path: Path, **settings: Any) -> None:
    """Settings of the memory changed in a saved model; those that are None are left out."""
    held = settings_of(path)
    held["memory"] = {name: value for name, value in {**held["memory"], **settings}.items() if value is not None}
    (path / "remanence.json").write_text(json.dumps(held))


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("make", [with_memory, with_text])
def test_from_pretrained_of_every_family_reads_what_was_written_before(
    tmp_path: Path, family: str, make: Callable[..., MemoryModel]
) -> None:
    model = make(decoder(family))
    memory = told(model)
    memory.save(tmp_path / "memory")
    model.save_pretrained(tmp_path / "model")
    again = MemoryModel.from_pretrained(tmp_path / "model")
    assert again.spec == model.spec
    loaded = Memory.load(tmp_path / "memory")
    # To the last bit only between two loads: how weights lie in memory decides how products are summed up.
    torch.testing.assert_close(again.read(loaded, ids(9)).logits, model.read(memory, ids(9)).logits, **CLOSE)


@every_kind
def test_from_pretrained_gives_the_model_that_was_saved(tmp_path: Path, kind: str) -> None:
    model = KINDS[kind](decoder(tie_word_embeddings=kind == "pool"))
    memory = told(model)
    model.save_pretrained(tmp_path)
    again = MemoryModel.from_pretrained(tmp_path)
    assert (again.config, again.spec, again.fingerprint()) == (model.config, model.spec, model.fingerprint())
    assert again.state_dict().keys() == model.state_dict().keys() and not again.training
    for name, parameter in model.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter)
    torch.testing.assert_close(again.read(memory, ids(5)).logits, model.read(memory, ids(5)).logits, **CLOSE)
    torch.testing.assert_close(again(ids(5)[None]).logits, model(ids(5)[None]).logits, **CLOSE)
    assert settings_of(tmp_path)["format"] == "remanence-model-2"


@pytest.mark.parametrize(
    "config",
    [
        MemoryConfig(writer="learned", slots=SLOTS, slots_per_write=K, bos=False, eviction="shared", chunk=32),
        MemoryConfig(
            writer="learned",
            slots=SLOTS,
            slots_per_write=K,
            longterm=LongTermConfig(retrieved=4, capacity=99, cross_layer_prior=0.02, key_size=8, key_layers=1),
            lora=LoraSettings(r=2, lora_alpha=3.0, lora_dropout=0.1, target_modules=("q_proj", "v_proj")),
        ),
        MemoryConfig(slots=512, chunk=64, eviction="random", retrieval=RetrievalConfig(slots=100, min_score=0.25)),
        MemoryConfig(keep_text=False, cache_bytes=1000, retrieval=RetrievalConfig(min_score=None)),
    ],
    ids=["learned", "all of it", "text", "text without text"],
)
def test_from_pretrained_knows_every_setting(tmp_path: Path, config: MemoryConfig) -> None:
    model = MemoryModel.attach(decoder(), config=config)
    model.save_pretrained(tmp_path)
    assert MemoryModel.from_pretrained(tmp_path).config == config


@every_kind
def test_from_pretrained_twice_writes_the_same_memory_bit_for_bit(tmp_path: Path, kind: str) -> None:
    KINDS[kind]().save_pretrained(tmp_path)
    made = []
    for _ in range(2):
        model = MemoryModel.from_pretrained(tmp_path)
        memory = model.new_memory(seed=5)
        for length in (20, 3, 40):
            model.write(memory, ids(length))
        made.append(everything(memory, times=False))
    assert made[0] == made[1]


def test_from_pretrained_gives_weights_in_their_dtype(tmp_path: Path) -> None:
    model = with_adapters(decoder(dtype=torch.bfloat16))
    model.save_pretrained(tmp_path)
    again = MemoryModel.from_pretrained(tmp_path)
    assert again.spec == model.spec and again.spec.dtype == "bfloat16"
    for name, parameter in model.named_parameters():
        assert torch.equal(again.get_parameter(name), parameter)


def test_from_pretrained_brings_the_shipped_pool(tmp_path: Path) -> None:
    model = with_memory(keep_hidden=True)
    model.shipped_pool = torch.randn(tiny.LAYERS, SLOTS, 32)
    model.save_pretrained(tmp_path)
    assert not MemoryModel.from_pretrained(tmp_path).config.keep_hidden
    again = MemoryModel.from_pretrained(tmp_path, keep_hidden=True)
    assert torch.equal(again.new_memory().pool.slots(), model.shipped_pool)


@pytest.mark.parametrize("make", [with_memory, with_text])
def test_from_pretrained_brings_the_tokenizer(tmp_path: Path, make: Callable[..., MemoryModel]) -> None:
    model = make(decoder(vocab_size=300), tokenizer=tiny.tokenizer())
    model.save_pretrained(tmp_path)
    again = MemoryModel.from_pretrained(tmp_path)
    read = []
    for one in (model, again):
        memory = one.new_memory()
        one.write(memory, "Alice Brown was born in Oslo.")
        read.append(one.read(memory, "Alice").logits)
    torch.testing.assert_close(*read, **CLOSE)


def test_from_pretrained_takes_another_attention_dtype_and_device(tmp_path: Path) -> None:
    with_memory().save_pretrained(tmp_path)
    model = MemoryModel.from_pretrained(
        tmp_path, attn_implementation="eager", dtype=torch.bfloat16, device="cpu", bfloat16_rotary=True
    )
    assert model.hf.config._attn_implementation == "eager" and model.spec.dtype == "bfloat16"
    frequencies = model.hf.base_model.rotary_emb.inv_freq
    assert torch.equal(frequencies, frequencies.bfloat16().float())


def test_save_pretrained_keeps_adapters_out_of_the_decoders_own_files(tmp_path: Path) -> None:
    model = with_adapters()
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() <= decoder().state_dict().keys()
    stock = type(decoder()).from_pretrained(tmp_path)
    torch.testing.assert_close(stock(ids(5)[None]).logits, decoder()(ids(5)[None]).logits, **CLOSE)


def test_save_pretrained_writes_the_state_that_is_handed_over(tmp_path: Path) -> None:
    model = with_longterm()
    state = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    again = MemoryModel.from_pretrained(tmp_path)
    for name, tensor in again.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_save_pretrained_refuses_adapters_that_are_not_its_own_before_it_writes(tmp_path: Path) -> None:
    own = get_peft_model(decoder(), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2))
    with pytest.raises(CheckpointError, match="merge"):
        with_text(own).save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


# Version 0.1.


def as_before(path: Path) -> None:
    """A saved model as version 0.1 saved it."""
    memory = settings_of(path)["memory"]
    old: dict[str, Any] = {"format": "remanence-model-1"}
    old |= {name: memory[name] for name in ("slots", "slots_per_write")}
    old["eviction"] = memory["eviction"] or "per_layer"
    if (longterm := memory["longterm"]) is not None:
        old["longterm"] = {"retrieved": longterm["retrieved"], "capacity": longterm["capacity"]}
        old["longterm"] |= {"policy": "oldest", "merge_after": 15360, "initial_frequency": 10.0}
        old["longterm"] |= {"decay": 1.0, "repeat": False, "agreement": longterm["cross_layer_prior"]}
        old["retriever"] = {"size": longterm["key_size"], "depth": longterm["key_layers"]}
    if memory["lora"] is not None:
        old["lora"] = memory["lora"]
    (path / "remanence.json").write_text(json.dumps(old))


@pytest.mark.parametrize("kind", ["pool", "longterm", "adapters"])
@pytest.mark.parametrize("bos", [True, False])
def test_from_pretrained_reads_what_version_0_1_saved(tmp_path: Path, kind: str, bos: bool) -> None:
    model = KINDS[kind](eviction="shared", bos=bos)
    memory = told(model)
    model.save_pretrained(tmp_path)
    as_before(tmp_path)
    again = MemoryModel.from_pretrained(tmp_path)
    assert again.config == model.config and again.fingerprint() == model.fingerprint()
    torch.testing.assert_close(again.read(memory, ids(5)).logits, model.read(memory, ids(5)).logits, **CLOSE)
    again.save_pretrained(tmp_path / "new")
    assert settings_of(tmp_path / "new")["format"] == "remanence-model-2"
    assert MemoryModel.from_pretrained(tmp_path / "new").config == model.config


def test_from_pretrained_knows_the_settings_of_the_bundled_checkpoints() -> None:
    pool, longterm = (MemoryModel.from_pretrained(bundled(name)).config for name in ("tiny", "tiny_longterm"))
    assert pool == MemoryConfig(writer="learned", slots=512, slots_per_write=32, eviction="per_layer")
    assert longterm == pool.replace(
        longterm=LongTermConfig(retrieved=32, cross_layer_prior=0.02, key_size=64, key_layers=2), lora=LoraSettings()
    )


@pytest.mark.parametrize("name", ["slots", "slots_per_write", "eviction", "retriever"])
def test_from_pretrained_names_a_setting_of_version_0_1_that_is_missing(tmp_path: Path, name: str) -> None:
    with_longterm().save_pretrained(tmp_path)
    as_before(tmp_path)
    settings = settings_of(tmp_path)
    del settings[name]
    (tmp_path / "remanence.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match=f"remanence.json lacks .*{name}"):
        MemoryModel.from_pretrained(tmp_path)


# What is damaged.


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    with_adapters().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["remanence.safetensors", "model.safetensors", "config.json"])
def test_from_pretrained_refuses_where_a_file_is_missing(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        MemoryModel.from_pretrained(saved)


@pytest.mark.parametrize("name", ["remanence.safetensors", "model.safetensors", "config.json"])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_from_pretrained_refuses_a_truncated_file(saved: Path, name: str, share: float) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="not a complete checkpoint"):
        MemoryModel.from_pretrained(saved)


@pytest.mark.parametrize(
    "name", ["bos_embedding", "retriever.query.1.0.weight", "model.layers.2.mlp.up_proj.lora_B.reader.weight"]
)
def test_from_pretrained_names_a_parameter_that_is_missing_or_misshapen(saved: Path, name: str) -> None:
    tensors = load_file(saved / "remanence.safetensors")
    tensor = tensors[name]
    save_file({**tensors, name: torch.cat([tensor, tensor])}, saved / "remanence.safetensors")
    with pytest.raises(CheckpointError, match=rf"{name} has shape \[{2 * len(tensor)}, .*expected \[{len(tensor)}, "):
        MemoryModel.from_pretrained(saved)
    del tensors[name]
    save_file(tensors, saved / "remanence.safetensors")
    with pytest.raises(CheckpointError, match=f"lacks {name}"):
        MemoryModel.from_pretrained(saved)


def test_from_pretrained_refuses_a_shipped_pool_of_another_shape(tmp_path: Path) -> None:
    model = with_memory()
    model.shipped_pool = torch.randn(tiny.LAYERS, SLOTS, 32)
    model.save_pretrained(tmp_path)
    change(tmp_path, slots=2 * SLOTS)
    with pytest.raises(CheckpointError, match=rf"shipped_pool has shape \[3, {SLOTS}, 32\], expected \[3, {2 * SLOTS}"):
        MemoryModel.from_pretrained(tmp_path)


def test_from_pretrained_refuses_settings_of_another_version(saved: Path) -> None:
    (saved / "remanence.json").write_text(json.dumps({**settings_of(saved), "format": "remanence-model-9"}))
    with pytest.raises(CheckpointError, match=r"remanence-model-9.*this version reads"):
        MemoryModel.from_pretrained(saved)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff"])
def test_from_pretrained_refuses_settings_that_are_none(saved: Path, content: bytes) -> None:
    (saved / "remanence.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"remanence.json is not"):
        MemoryModel.from_pretrained(saved)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"slots": None}, "needs slots"),
        ({"slots": "many"}, "slots: must be an integer"),
        ({"slots": 25}, "not a multiple"),
        ({"writer": "drawn"}, "writer"),
        ({"forget": True}, "no setting forget"),
        ({"longterm": {"capacity": 3}}, "longterm.retrieved|needs"),
        ({"longterm": 3}, "longterm"),
        ({"lora": {"r": "two"}}, "lora.r"),
        ({"lora": {"target_modules": ["nothing"]}}, "no linear layer is named nothing"),
    ],
    ids=str,
)
def test_from_pretrained_names_settings_that_do_not_fit(saved: Path, settings: dict[str, Any], says: str) -> None:
    change(saved, **settings)
    with pytest.raises(CheckpointError, match=says) as error:
        MemoryModel.from_pretrained(saved)
    assert str(saved) in str(error.value)


def test_from_pretrained_refuses_settings_without_those_of_the_memory(saved: Path) -> None:
    (saved / "remanence.json").write_text(json.dumps({"format": "remanence-model-2"}))
    with pytest.raises(CheckpointError, match="lacks 'memory'"):
        MemoryModel.from_pretrained(saved)


def test_from_pretrained_says_how_to_give_a_model_a_memory(tmp_path: Path) -> None:
    decoder().save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"LlamaForCausalLM without a memory.*MemoryModel.attach"):
        MemoryModel.from_pretrained(tmp_path)


def test_from_pretrained_refuses_an_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        MemoryModel.from_pretrained(tmp_path)


def test_from_pretrained_names_a_path_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        MemoryModel.from_pretrained(tmp_path / "nowhere")
