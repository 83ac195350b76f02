"""Published checkpoints in every layout, what is said of damaged ones, and the long-term memory that they ship."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from remanence import Memory, MemoryConfig, MemoryModel
from remanence.config import StorageConfig
from remanence.errors import CheckpointError, InvalidInputError
from remanence.memory import LongTerm
from remanence.memory.published import RecallFrequency
from remanence.memory.state import Frequencies
from remanence.model.formats.memoryllm import ShippedLongTerm, ShippedSlots
from remanence.model.learned import LearnedWriter
from tests.support import tiny
from tests.support.models import with_adapters
from tests.support.replay import encode
from tests.support.tiny import ids

GOLDEN = Path(__file__).parents[2] / "golden"
SOURCE = GOLDEN / "A-memoryllm-gqa"
IDS = torch.arange(3, 40)

Weights = dict[str, Tensor]


def weights_of(source: Path = SOURCE) -> Weights:
    return load_file(source / "weights.safetensors")


def config_of(source: Path = SOURCE, **changes: Any) -> dict[str, Any]:
    return {**json.loads((source / "config.json").read_text()), **changes}


def checkpoint(path: Path, weights: Weights, config: dict[str, Any] | None = None) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config_of() if config is None else config))
    save_file(weights, path / "model.safetensors")
    return path


def logits(path: Path) -> Tensor:
    model = MemoryModel.from_pretrained(path)
    out = model.read(model.new_memory(), IDS).logits
    assert out is not None
    return out


def in_shards(weights: Weights) -> dict[str, Weights]:
    names = sorted(weights)
    return {
        "00001-of-00002": {n: weights[n] for n in names[::2]},
        "00002-of-00002": {n: weights[n] for n in names[1::2]},
    }


def sharded(path: Path, name: str, save: Callable[[Any, Path], None]) -> Path:
    checkpoint(path, {})
    (path / "model.safetensors").unlink()
    stem, suffix = name.split(".")
    index = {}
    for shard, part in in_shards(weights_of()).items():
        save(part, path / f"{stem}-{shard}.{suffix}")
        index |= dict.fromkeys(part, f"{stem}-{shard}.{suffix}")
    (path / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return path


def one_pickle(path: Path) -> Path:
    checkpoint(path, {})
    (path / "model.safetensors").unlink()
    torch.save(weights_of(), path / "pytorch_model.bin")
    return path


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "sharded safetensors": lambda path: sharded(path, "model.safetensors", save_file),
    "one bin": one_pickle,
    "sharded bin": lambda path: sharded(path, "pytorch_model.bin", torch.save),
    "old rotary buffers": lambda path: checkpoint(
        path, weights_of() | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    ),
}


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_from_pretrained_reads_every_layout_alike(tmp_path: Path, layout: str) -> None:
    expected = logits(checkpoint(tmp_path / "one", weights_of()))
    torch.testing.assert_close(logits(LAYOUTS[layout](tmp_path / "other")), expected, atol=1e-5, rtol=0.0)


@pytest.mark.parametrize("named", ["torch_dtype", "dtype", None])
def test_from_pretrained_keeps_the_dtype_of_a_checkpoint(tmp_path: Path, named: str | None) -> None:
    config = config_of(torch_dtype=None)
    if named is not None:
        config[named] = "bfloat16"
    weights = {name: t.bfloat16() if t.is_floating_point() else t for name, t in weights_of().items()}
    model = MemoryModel.from_pretrained(checkpoint(tmp_path, weights, config))
    memory = model.new_memory()
    model.write(memory, IDS)
    assert model.read(memory, IDS).logits.dtype == memory.pool.keys.dtype == torch.bfloat16
    assert MemoryModel.from_pretrained(tmp_path, dtype=torch.float32).spec.dtype == "float32"


@pytest.mark.parametrize(
    "name",
    [
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        "model.layers.2.mlp.down_proj.weight",
        "memory",
        "bos_embedding",
        "new_memory_positional_emb",
    ],
)
def test_from_pretrained_names_a_missing_or_misshapen_tensor(tmp_path: Path, name: str) -> None:
    weights = weights_of()
    tensor = weights.pop(name)
    with pytest.raises(CheckpointError, match=f"lacks .*{name}"):
        MemoryModel.from_pretrained(checkpoint(tmp_path, weights))
    weights[name] = torch.cat([tensor, tensor], dim=-1)
    wrong = rf"has shape \[.*{2 * tensor.shape[-1]}\].*\[.*{tensor.shape[-1]}\]"
    with pytest.raises(CheckpointError, match=wrong):
        MemoryModel.from_pretrained(checkpoint(tmp_path, weights))


@pytest.mark.parametrize("share", [0.0, 0.001, 0.7])
@pytest.mark.parametrize("layout", ["model.safetensors", "pytorch_model.bin"])
def test_from_pretrained_names_a_truncated_file(tmp_path: Path, layout: str, share: float) -> None:
    path = checkpoint(tmp_path, weights_of()) if layout == "model.safetensors" else one_pickle(tmp_path)
    content = (path / layout).read_bytes()
    (path / layout).write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=f"{layout} is truncated or damaged"):
        MemoryModel.from_pretrained(path)


@pytest.mark.parametrize(("layout", "stem"), [("sharded safetensors", "model"), ("sharded bin", "pytorch_model")])
def test_from_pretrained_names_a_missing_shard(tmp_path: Path, layout: str, stem: str) -> None:
    path = LAYOUTS[layout](tmp_path)
    next(path.glob("*00002-of-00002*")).unlink()
    with pytest.raises(CheckpointError, match=f"{stem}-00002-of-00002.*not there"):
        MemoryModel.from_pretrained(path)


@pytest.mark.parametrize("content", ["{", "[]", '{"metadata": {}}', '{"weight_map": 3}'])
def test_from_pretrained_names_a_damaged_index(tmp_path: Path, content: str) -> None:
    path = LAYOUTS["sharded safetensors"](tmp_path)
    (path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"index\.json"):
        MemoryModel.from_pretrained(path)


class Trap:
    """Unpickling this calls a function."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_from_pretrained_unpickles_nothing_but_tensors(tmp_path: Path) -> None:
    path = one_pickle(tmp_path)
    torch.save({**weights_of(), "trap": Trap(tmp_path / "sprung")}, path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin is truncated or damaged"):
        MemoryModel.from_pretrained(path)
    assert not (tmp_path / "sprung").exists()


def test_from_pretrained_refuses_a_directory_without_weights(tmp_path: Path) -> None:
    path = checkpoint(tmp_path, {})
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        MemoryModel.from_pretrained(path)


@pytest.mark.parametrize("name", ["num_blocks", "num_tokens"])
def test_from_pretrained_names_a_missing_size(tmp_path: Path, name: str) -> None:
    config = config_of()
    del config[name]
    with pytest.raises(CheckpointError, match=name):
        MemoryModel.from_pretrained(checkpoint(tmp_path, weights_of(), config))


@pytest.mark.parametrize("content", ["", "{", "[1]", "\udcff"])
def test_from_pretrained_names_a_damaged_configuration(tmp_path: Path, content: str) -> None:
    path = checkpoint(tmp_path, weights_of())
    (path / "config.json").write_text(content, errors="surrogateescape")
    with pytest.raises(CheckpointError, match=r"config.json is not"):
        MemoryModel.from_pretrained(path)


def test_write_of_a_draw_of_one_slot_too_few_makes_the_pool_grow_and_reads_right(tmp_path: Path) -> None:
    config = config_of(drop_memory_per_layer=False)
    model = MemoryModel.from_pretrained(checkpoint(tmp_path, weights_of(), config), keep_hidden=True)
    n, k, layers = model.slots, model.slots_per_write, config["num_hidden_layers"]
    memory = model.new_memory()
    before, made = memory.pool.slots(), encode(model, memory, IDS)
    evict = torch.arange(1, k)  # K - 1 ranks, the same in every layer
    model.write(memory, IDS, evict=evict.repeat(layers, 1))
    expected = torch.cat([before[:, :1], before[:, k:], made], dim=1)
    assert memory.pool.size == n + 1 and torch.equal(memory.pool.slots(), expected)

    larger = MemoryModel(model.hf, config=MemoryConfig(writer="learned", slots=n + 1, slots_per_write=n + 1))
    larger.bos_embedding = model.bos_embedding
    same = larger.memory_from_slots(expected)
    torch.testing.assert_close(model.read(memory, IDS).logits, larger.read(same, IDS).logits)
    assert torch.equal(
        model.generate(memory, IDS, max_new_tokens=5, do_sample=False),
        larger.generate(same, IDS, max_new_tokens=5, do_sample=False),
    )
    model.write(memory, IDS)
    assert memory.pool.size == n + 1
    memory.save(tmp_path / "grown")
    assert torch.equal(Memory.load(tmp_path / "grown").pool.slots(), memory.pool.slots())


def test_save_pretrained_refuses_what_only_the_published_format_holds(tmp_path: Path) -> None:
    source = GOLDEN / "D-mplus-gqa"
    path = checkpoint(tmp_path / "published", weights_of(source), config_of(source))
    with pytest.raises(CheckpointError, match="no long-term memory that a checkpoint ships"):
        MemoryModel.from_pretrained(path).save_pretrained(tmp_path / "own")
    assert not (tmp_path / "own").exists()
    plain = MemoryModel.from_pretrained(checkpoint(tmp_path / "plain", weights_of()))
    plain.save_pretrained(tmp_path / "own")
    again = MemoryModel.from_pretrained(tmp_path / "own")
    assert again.config == plain.config
    read = [one.read(one.new_memory(), IDS).logits for one in (plain, again)]
    torch.testing.assert_close(*read, atol=1e-5, rtol=0.0)


# Long-term memory that comes with a checkpoint: every new memory starts with it, and has it to itself.

SHIPPED = 30  # slots per layer


def shipping() -> MemoryModel:
    model = with_adapters()
    ages = torch.arange(SHIPPED).flip(0)
    slots = [
        ShippedSlots(torch.randn(SHIPPED, 32), torch.randn(SHIPPED, 16), ages, torch.full((SHIPPED,), 5.0))
        for _ in range(tiny.LAYERS)
    ]
    writer_of(model).shipped = ShippedLongTerm(slots, Frequencies(merge_after=3 * tiny.K, initial=3.0, decay=1.0))
    return model


def writer_of(model: MemoryModel) -> LearnedWriter:
    assert isinstance(model.writer, LearnedWriter)
    return model.writer


def held(memory: Memory) -> LongTerm:
    assert memory.longterm is not None
    return memory.longterm


def keys_of(memory: Memory) -> Tensor:
    """Of the first layer."""
    return held(memory).layers[0].take(torch.arange(SHIPPED))[0]


def projected(model: MemoryModel) -> Tensor:
    """Keys of the first layer's shipped slots, by the adapter that is active."""
    with torch.no_grad():
        return model.backbone.project(0, writer_of(model).shipped.layers[0].hidden)[0]


def test_new_memory_has_the_shipped_slots_to_itself() -> None:
    model = shipping()
    first, second = model.new_memory(), model.new_memory()
    for number in range(3):
        model.write(first, ids(9, seed=number))
    policy = held(first).policy
    assert isinstance(policy, RecallFrequency)
    assert held(first).sizes() == [SHIPPED] * tiny.LAYERS
    assert policy.buffered(held(first)) == [2 * tiny.K] * tiny.LAYERS
    model.write(first, ids(9))
    assert held(first).sizes() == [SHIPPED + 3 * tiny.K] * tiny.LAYERS
    for other in (second, model.new_memory()):
        assert held(other).sizes() == [SHIPPED] * tiny.LAYERS
        assert held(other).clock == 0


def test_new_memory_keeps_shipped_slots_as_the_reading_adapter_sees_them() -> None:
    model = shipping()
    keys = keys_of(model.new_memory())
    with model.role("read"):
        torch.testing.assert_close(keys, projected(model))
    with model.role("write"):
        assert not torch.allclose(keys, projected(model), atol=1e-2)


def test_new_memory_has_shipped_slots_of_the_weights_as_they_are() -> None:
    model = shipping()
    before = keys_of(model.new_memory())
    with torch.no_grad():
        for name, parameter in model.hf.named_parameters():
            if "k_proj" in name:
                parameter.mul_(2)
    after = keys_of(model.new_memory())
    assert not torch.allclose(after, before, atol=1e-2)
    with model.role("read"):
        torch.testing.assert_close(after, projected(model))


def test_new_memory_has_the_storage_asked_for() -> None:
    model = shipping()
    for storage in (StorageConfig(), StorageConfig(int8=True), StorageConfig("device")):
        assert held(model.new_memory(storage=storage)).layout.storage == storage


def test_new_memory_refuses_a_capacity_where_recall_decides_who_goes() -> None:
    with pytest.raises(InvalidInputError, match="leave capacity= out"):
        shipping().new_memory(capacity=12)


def test_search_leaves_out_slots_that_no_write_made() -> None:
    model = shipping()
    model.tokenizer = tiny.tokenizer()
    memory = model.new_memory()
    for number in range(6):
        model.write(memory, ids(9, seed=number))
    retrieved = model.read(memory, ids(5)).past_key_values.retrieval.found
    assert any(bool((rows[0].serial == -1).any()) for rows in retrieved)
    assert {write for write, _ in model.search(memory, ids(5), k=9)} <= set(range(6))
