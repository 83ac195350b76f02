"""A model with a trained pool gets a retriever: it writes and reads as before, and can be trained further."""

from dataclasses import replace

import pytest
import torch
from remanence.model.adapters import LoraSettings

from remanence.errors import InvalidInputError
from remanence.memory import LongTermRules
from tests.support import tiny
from tests.support.tiny import ids

CLOSE = {"atol": 1e-5, "rtol": 0.0}


@pytest.mark.parametrize("bos", [True, False])
def test_it_takes_the_decoder_over_and_writes_and_reads_as_before(bos: bool) -> None:
    before = tiny.with_memory(bos=bos, eviction="shared", keep_hidden=True)
    spec, hf = before.spec, before.hf
    old = before.new_memory()
    for number in range(3):
        before.write(old, ids(9, seed=number))
    logits = before.read(old, ids(5)).logits
    model = before.with_longterm(LongTermRules(retrieved=4), retrieval_size=8, lora=LoraSettings(r=4))
    assert model.hf is hf
    assert replace(model.spec, model=spec.model, retrieval_size=0) == spec
    assert model.spec.retrieval_size == 8 and model.adapters is not None
    new = model.new_memory()
    for number in range(3):
        model.write(new, ids(9, seed=number))
    torch.testing.assert_close(new.pool.slots(), old.pool.slots(), **CLOSE)
    torch.testing.assert_close(model.read(new.pool_only(), ids(5)).logits, logits, **CLOSE)
    assert new.longterm is not None and new.longterm.sizes() == [2 * tiny.K] * tiny.LAYERS


def test_adapters_go_along_and_the_pool_may_be_smaller() -> None:
    before = tiny.with_memory(lora=LoraSettings(r=4))
    adapters = before.adapters
    model = before.with_longterm(LongTermRules(retrieved=4), slots=tiny.SLOTS - tiny.K, retrieval_size=8)
    assert model.adapters is adapters is not None
    assert model.spec.slots == tiny.SLOTS - tiny.K
    with pytest.raises(InvalidInputError, match="already"):
        tiny.with_memory(lora=LoraSettings(r=4)).with_longterm(LongTermRules(retrieved=4), lora=LoraSettings(r=4))


def test_new_memories_start_with_nothing_written() -> None:
    before = tiny.with_memory()
    before.shipped_pool = torch.randn(tiny.LAYERS, tiny.SLOTS, before.hf.config.hidden_size)
    assert before.new_memory().written
    assert not before.with_longterm(LongTermRules(retrieved=4), retrieval_size=8).new_memory().written
