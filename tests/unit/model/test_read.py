"""One forward pass behind memories: which rows read, what is refused, and what comes back."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from remanence import Memory
from remanence.errors import CorruptMemoryError, InvalidInputError
from tests.support import tiny
from tests.support.models import KINDS, told, with_longterm
from tests.support.tiny import SIZES, decoder, ids, with_memory, with_text

CLOSE = {"atol": 2e-5, "rtol": 0.0}
POSITIONS = 64
every_kind = pytest.mark.parametrize("kind", KINDS)


def padded(rows: list[Tensor]) -> tuple[Tensor, Tensor]:  # ids and mask, [B, T]
    width = max(map(len, rows))
    filled = torch.full((len(rows), width), 2)
    mask = torch.stack([(torch.arange(width) >= width - len(row)).long() for row in rows])
    filled[mask.bool()] = torch.cat(rows)
    return filled, mask


@torch.no_grad()
@every_kind
def test_read_of_memories_that_were_never_written_is_the_stock_call_bit_for_bit(kind: str) -> None:
    model, rows = KINDS[kind](), [ids(7), ids(4, seed=1)]
    filled, mask = padded(rows)
    memories = [model.new_memory(), model.new_memory()]
    stock, kept = tiny.decoder(), mask.bool()
    model.read(told(model), rows[0])  # with an adapter, where there is one
    expected = stock(filled, attention_mask=mask).logits
    assert torch.equal(model.read(memories, rows).logits[kept], expected[kept])
    assert torch.equal(model.read(memories[0], rows[0]).logits, stock(rows[0][None]).logits)
    assert torch.equal(model(rows[0][None]).logits, stock(rows[0][None]).logits)
    greedy = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    continued = stock.generate(rows[0][None], attention_mask=torch.ones(1, 7), **greedy)
    assert torch.equal(model.generate(memories[0], rows[0], **greedy), continued)


@torch.no_grad()
@every_kind
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_read_of_several_memories_is_that_of_each(kind: str, attention: str) -> None:
    model = KINDS[kind](decoder(attention=attention))
    few = 0 if kind != "adapters" else 1  # the adapter that reads acts on all rows of a call, or on none
    memories = [told(model, seed, writes) for seed, writes in enumerate([2, few, 5, 1])]
    prompts = [ids(length, seed=length) for length in (6, 4, 9, 1)]
    together = model.read(memories, prompts).logits
    assert together.shape == (4, 9, tiny.VOCABULARY)
    for row, (memory, prompt) in enumerate(zip(memories, prompts, strict=True)):
        torch.testing.assert_close(together[row, -len(prompt) :], model.read(memory, prompt).logits[0], **CLOSE)


@every_kind
def test_read_of_what_was_told_differs_from_the_stock_call(kind: str) -> None:
    model = KINDS[kind]()
    with torch.no_grad():
        stock = model.hf(ids(6)[None]).logits
    assert not torch.allclose(model.read(told(model), ids(6)).logits, stock, atol=1e-2)
    assert not torch.allclose(
        model.read(told(model, 1), ids(6)).logits, model.read(told(model), ids(6)).logits, atol=1e-2
    )


@every_kind
def test_read_gives_the_logits_that_are_asked_for(kind: str) -> None:
    model = KINDS[kind]()
    memory = told(model)
    whole = model.read(memory, ids(6)).logits
    assert whole.shape == (1, 6, tiny.VOCABULARY) and not whole.requires_grad
    last = model.read(memory, ids(6), logits_to_keep=1, output_hidden_states=True)
    torch.testing.assert_close(last.logits, whole[:, -1:], **CLOSE)
    assert len(last.hidden_states) == tiny.LAYERS + 1


@every_kind
def test_read_takes_rows_that_the_caller_padded(kind: str) -> None:
    model, rows = KINDS[kind](), [ids(3), ids(8, seed=1)]
    memories = [told(model, seed) for seed in range(2)]
    filled, mask = padded(rows)
    expected = model.read(memories, rows).logits
    for given in (mask, mask.bool()):
        assert torch.equal(
            model.read(memories, filled, attention_mask=given).logits[mask.bool()], expected[mask.bool()]
        )
    encoded = {"input_ids": filled, "attention_mask": mask}
    assert torch.equal(model.read(memories, encoded).logits[mask.bool()], expected[mask.bool()])
    one = model.read(memories[0], filled[0], attention_mask=mask[0]).logits
    assert one.shape == (1, 8, tiny.VOCABULARY)
    torch.testing.assert_close(one[0, -3:], expected[0, -3:], **CLOSE)
    last = model.read(memories[0], filled[0], attention_mask=mask[0], logits_to_keep=2).logits
    torch.testing.assert_close(last[0], expected[0, -2:], **CLOSE)


OWN: dict[str, Any] = {
    "use_cache": False,
    "past_key_values": DynamicCache(),
    "position_ids": torch.arange(3)[None],
    "input_ids": torch.tensor([[5]]),
    "inputs_embeds": torch.zeros(1, 1, SIZES["hidden_size"]),
}


@every_kind
@pytest.mark.parametrize("name", OWN)
def test_read_refuses_what_it_sets_itself(kind: str, name: str) -> None:
    model = KINDS[kind]()
    for memory in (told(model), model.new_memory()):
        with pytest.raises(InvalidInputError, match=f"read sets {name} itself"):
            model.read(memory, ids(3), **{name: OWN[name]})


@every_kind
@pytest.mark.parametrize("writes", [0, 3])
def test_read_refuses_a_prompt_that_does_not_fit_and_says_by_how_much(kind: str, writes: int) -> None:
    model = KINDS[kind](decoder(max_position_embeddings=POSITIONS))
    memory = told(model, writes=writes)
    with pytest.raises(InvalidInputError, match=rf"\b70 tokens.*reads {POSITIONS}; shorten it by 6 tokens"):
        model.read(memory, ids(70))
    assert model.read(memory, ids(20)).logits.isfinite().all()


@pytest.mark.parametrize("make", [with_memory, with_text])
def test_read_stops_at_logits_that_are_no_numbers(make: Any) -> None:
    model = make()
    with torch.no_grad():
        model.hf.lm_head.weight[0] = torch.nan
    memory = told(model)
    for act in (model.read, lambda *given: model.generate(*given, max_new_tokens=2)):
        with pytest.raises(CorruptMemoryError, match="not numbers"):
            act(memory, ids(5))


def test_read_and_write_under_autocast_leave_slots_in_the_models_dtype(tmp_path: Path) -> None:
    model = with_longterm()
    memory = model.new_memory()
    with torch.autocast("cpu", torch.bfloat16):
        for seed in range(3):
            model.write(memory, ids(40, seed=seed))
        model.read(memory, ids(5))
    assert memory.pool.keys.dtype == torch.float32
    memory.save(tmp_path / "memory")
    again = Memory.load(tmp_path / "memory")
    assert torch.equal(model.read(again, ids(5)).logits, model.read(memory, ids(5)).logits)
    fresh = with_longterm()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.bos_slots(), fresh.bos_slots())


@every_kind
def test_read_of_a_model_in_training_counts_as_any(kind: str) -> None:
    """No dropout here: the mode alone changes nothing."""
    model = KINDS[kind]()
    memory = told(model)
    expected = model.read(memory, ids(5)).logits
    assert torch.equal(model.train().read(memory, ids(5)).logits, expected)


def test_read_of_a_bfloat16_model_gives_bfloat16() -> None:
    for make in KINDS.values():
        model = make(decoder(dtype=torch.bfloat16))
        memory = told(model)
        assert model.read(memory, ids(7)).logits.dtype == torch.bfloat16
        assert model.spec.dtype == "bfloat16"
        assert model.generate(memory, ids(7), max_new_tokens=5, do_sample=False).shape[1] > 7
