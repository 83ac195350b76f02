"""On a CUDA device, in bfloat16: a memory reads there as it does on the CPU in float32, by and large."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remanence import Memory, MemoryModel
from remanence.checkpoints import bundled
from remanence.config import LongTermConfig
from remanence.memory import Storage
from tests.golden.test_answers import RECORDED, TOKENS, written
from tests.support.tiny import ids, with_memory

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
WHERE: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}


def filled(model: MemoryModel, storage: Storage) -> Memory:
    """Some slots in the pool, and more in long-term memory."""
    memory = model.new_memory(storage=storage)
    for number in range(12):
        model.write(memory, ids(20, seed=number).to(model.device))
    return memory


def read(model: MemoryModel, memory: Memory) -> Tensor:  # [T, V]
    return model.read(memory, ids(9).to(model.device)).logits[0].float().cpu()


@pytest.mark.parametrize("tier", ["device", "host", "disk"])
def test_a_memory_on_the_device_reads_as_on_the_cpu_wherever_its_slots_lie(tier: Any, tmp_path: Path) -> None:
    # All long-term slots are read: which are the best few of them may hang on the last bit.
    with_memory(longterm=LongTermConfig(retrieved=1000), retrieval_size=8).save_pretrained(tmp_path / "model")
    plain = MemoryModel.from_pretrained(tmp_path / "model")
    model = MemoryModel.from_pretrained(tmp_path / "model", **WHERE)
    memory = filled(model, Storage(tier))
    got, expected = read(model, memory), read(plain, filled(plain, Storage()))
    assert torch.cosine_similarity(got, expected, dim=1).min() > 0.99
    assert torch.cosine_similarity(got, read(model, model.new_memory()), dim=1).max() < 0.9
    assert torch.equal(read(model, memory.fork()), got)
    memory.save(tmp_path / "m")
    assert torch.equal(read(model, Memory.load(tmp_path / "m", model.device, storage=Storage(tier))), got)


@pytest.mark.parametrize("name", ["tiny", "tiny_longterm"])
def test_answers_on_the_device_are_those_recorded_on_a_cpu_but_for_a_few(name: str) -> None:
    model = MemoryModel.from_pretrained(bundled(name), **WHERE)
    recorded = json.loads(RECORDED.read_text())[name][0]
    memory, asked = written(model, recorded["seed"], recorded["texts"]), recorded["answers"]
    given = {text: model.generate(memory, text, max_new_tokens=TOKENS, do_sample=False) for text in asked}
    assert sum(given[text] == answer for text, answer in asked.items()) >= 0.9 * len(asked)
