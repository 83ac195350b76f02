"""Long-term memory that comes with a checkpoint: every new memory starts with it, and has it to itself."""

import torch
from remanence.model.adapters import LoraSettings
from remanence.model.shipped import ShippedLongTerm, ShippedSlots
from torch import Tensor

from remanence import Memory, MemoryModel
from remanence.memory import LongTerm, LongTermRules, Storage
from tests.support import tiny
from tests.support.tiny import ids

SHIPPED = 30  # slots per layer


def model_of() -> MemoryModel:
    model = tiny.with_memory(longterm=LongTermRules(retrieved=4), retrieval_size=8, lora=LoraSettings(r=4))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    size = model.hf.config.hidden_size
    ages = torch.arange(SHIPPED).flip(0)
    model.shipped_longterm = ShippedLongTerm(
        [
            ShippedSlots(torch.randn(SHIPPED, size), torch.randn(SHIPPED, 8), ages, torch.ones(SHIPPED))
            for _ in range(tiny.LAYERS)
        ]
    )
    return model


def held(memory: Memory) -> LongTerm:
    assert memory.longterm is not None
    return memory.longterm


def keys_of(memory: Memory) -> Tensor:
    """Of the first layer."""
    return held(memory).layers[0].take(torch.arange(SHIPPED))[0]


def projected(model: MemoryModel) -> Tensor:
    """Keys of the first layer's shipped slots, by the adapter that is active."""
    assert model.shipped_longterm is not None
    with torch.no_grad():
        return model.backbone.project(0, model.shipped_longterm.layers[0].hidden)[0]


def test_a_write_into_one_new_memory_shows_in_no_other() -> None:
    model = model_of()
    first, second = model.new_memory(), model.new_memory()
    for number in range(3):
        model.write(first, ids(9, seed=number))
    assert held(first).sizes() == [SHIPPED + 2 * tiny.K] * tiny.LAYERS
    for other in (second, model.new_memory()):
        assert held(other).sizes() == [SHIPPED] * tiny.LAYERS
        assert held(other).clock == 0


def test_shipped_slots_are_kept_as_the_reading_adapter_sees_them() -> None:
    model = model_of()
    keys = keys_of(model.new_memory())
    with model.role("read"):
        torch.testing.assert_close(keys, projected(model))
    with model.role("write"):
        assert not torch.allclose(keys, projected(model), atol=1e-2)


def test_shipped_slots_follow_a_change_of_the_weights() -> None:
    model = model_of()
    before = keys_of(model.new_memory())
    with torch.no_grad():
        for name, parameter in model.hf.named_parameters():
            if "k_proj" in name:
                parameter.mul_(2)
    after = keys_of(model.new_memory())
    assert not torch.allclose(after, before, atol=1e-2)
    with model.role("read"):
        torch.testing.assert_close(after, projected(model))


def test_each_new_memory_has_the_storage_and_the_capacity_asked_for() -> None:
    model = model_of()
    for storage in (Storage(), Storage(int8=True), Storage("device")):
        assert held(model.new_memory(storage=storage)).layout.storage == storage
    for capacity in (20, SHIPPED, 12):
        assert held(model.new_memory(capacity=capacity)).sizes() == [capacity] * tiny.LAYERS
