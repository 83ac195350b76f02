"""Every supported family writes and reads memory exactly."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from remanence import MemoryModel
from remanence.errors import UnsupportedModelError
from remanence.model.backbone import FAMILIES, Backbone
from tests.support import tiny
from tests.support.equivalence import TOLERANCE, equivalence
from tests.support.replay import encode
from tests.support.tiny import K, attentions, decoder, ids, with_memory

CLOSE = {"atol": 2e-5, "rtol": 0.0}

WINDOWED = ["phi3", *(family for family in sorted(FAMILIES) if "sliding_window" in tiny.FAMILIES[family])]

every_family = pytest.mark.parametrize("family", sorted(FAMILIES))


def with_attentions(families: list[str]) -> pytest.MarkDecorator:
    each = [(family, attention) for family in families for attention in attentions(family)]
    return pytest.mark.parametrize(("family", "attention"), each)


def wide(family: str, **changes: Any) -> PreTrainedModel:
    """A decoder whose windows, where it has any, hide nothing."""
    window = {"sliding_window": 128} if family in WINDOWED else {}
    return decoder(family, **window, **changes)


def windowed(family: str, window: int, layers: int = tiny.LAYERS, attention: str | None = None) -> PreTrainedModel:
    """A decoder that sees a window of the text in every layer."""
    types = {"layer_types": ["sliding_attention"] * layers} if "layer_types" in tiny.FAMILIES[family] else {}
    return decoder(family, attention=attention, sliding_window=window, num_hidden_layers=layers, **types)


def logits(model: MemoryModel, memory: object, prompt: object) -> Tensor:
    out = model.read(memory, prompt).logits
    assert out is not None
    return out


@with_attentions(sorted(FAMILIES))
def test_slots_that_hold_the_layer_inputs_of_a_text_are_that_text(family: str, attention: str) -> None:
    assert equivalence(wide(family, attention=attention), ids(24), ids(13, seed=1)) <= TOLERANCE


def test_a_wrong_rotation_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = Backbone.rotary
    monkeypatch.setattr(Backbone, "rotary", lambda self, positions, *rest: right(self, positions + 1, *rest))
    assert equivalence(wide("mistral"), ids(24), ids(13, seed=1)) > TOLERANCE


@every_family
def test_slots_of_another_text_read_differently(family: str) -> None:
    hf = wide(family)
    model = MemoryModel.attach(hf, slots=24, slots_per_write=6, bos=False)

    def inputs(text: Tensor) -> Tensor:
        return torch.cat(hf(text[None], output_hidden_states=True).hidden_states[: tiny.LAYERS])

    text, other = ids(24), ids(24)
    other[0] = 60 if text[0] != 60 else 59
    read = [logits(model, model.memory_from_slots(inputs(t)), ids(13, seed=1)) for t in (text, other)]
    assert float((read[0] - read[1]).detach()[0, -1].abs().max()) > 1e-3


# Gemma 2 caps its scores, which sdpa leaves out in the releases of transformers that let it have sdpa.
with_both = [family for family in sorted(FAMILIES) if len(attentions(family)) > 1 and family != "gemma2"]


@pytest.mark.parametrize("family", with_both)
def test_attention_implementations_agree(family: str) -> None:
    read, generated = [], []
    for attention in attentions(family):
        model = with_memory(decoder(family, attention=attention))
        memory = model.new_memory()
        for length in (20, 3, 9):
            model.write(memory, ids(length, seed=length))
        read.append(logits(model, memory, ids(11)))
        generated.append(model.generate(memory, ids(11), max_new_tokens=8, do_sample=False).tolist())
    torch.testing.assert_close(*read, **CLOSE)
    assert generated[0] == generated[1]


@with_attentions(sorted(FAMILIES))
def test_a_batch_writes_and_reads_what_single_calls_do(family: str, attention: str) -> None:
    model = with_memory(decoder(family, attention=attention), keep_hidden=True)
    together = [model.new_memory(seed) for seed in range(4)]
    alone = [model.new_memory(seed) for seed in range(4)]
    lengths = [(20, 17, 12, 9), (K, 2, 15, 1), (3, 4, 1, 5)]  # the last round has only chunks shorter than K
    for step, row_lengths in enumerate(lengths):
        texts = [ids(length, seed=10 * step + row) for row, length in enumerate(row_lengths)]
        model.write(together, texts)
        for memory, text in zip(alone, texts, strict=True):
            model.write(memory, text)
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one.pool.slots(), other.pool.slots(), **CLOSE)
    prompts = [ids(5, seed=1), ids(8, seed=2), ids(1, seed=3), ids(3, seed=4)]
    read = logits(model, together, prompts)
    for row, prompt in enumerate(prompts):
        torch.testing.assert_close(read[row, -len(prompt) :], logits(model, alone[row], prompt)[0], **CLOSE)


@with_attentions(WINDOWED)
def test_a_sliding_window_smaller_than_the_pool_hides_no_slot(family: str, attention: str) -> None:
    model = with_memory(windowed(family, 8, attention=attention))
    slots = torch.randn(tiny.LAYERS, tiny.SLOTS, 32)
    oldest_changed = slots.clone()
    oldest_changed[:, 0] = torch.randn(tiny.LAYERS, 32)
    one, other = model.memory_from_slots(slots), model.memory_from_slots(oldest_changed)
    prompt = ids(20)
    assert float((logits(model, one, prompt) - logits(model, other, prompt))[0, -1].abs().max()) > 1e-4
    step = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    shown = {"return_dict_in_generate": True, "output_logits": True}
    generated = [torch.cat(model.generate(memory, prompt, **step, **shown).logits) for memory in (one, other)]
    assert float((generated[0] - generated[1])[-1].abs().max()) > 1e-4


@with_attentions(WINDOWED)
def test_text_beyond_the_sliding_window_stays_out_of_sight(family: str, attention: str) -> None:
    # One layer, because what leaves the window of a layer still comes through the layer below.
    model = with_memory(windowed(family, 8, layers=1, attention=attention))
    memory = model.memory_from_slots(torch.randn(1, tiny.SLOTS, 32))
    prompt, changed = ids(20), ids(20)
    changed[11] = 3 if prompt[11] != 3 else 4
    difference = (logits(model, memory, prompt) - logits(model, memory, changed))[0].abs().amax(dim=-1)
    assert float(difference[11:19].min()) > 1e-6  # positions 11..18 have it in their window of 8
    assert float(difference[19]) == 0.0


@with_attentions(WINDOWED)
def test_a_chunk_within_the_window_is_written_as_if_there_were_none(family: str, attention: str) -> None:
    newest = torch.randn(tiny.LAYERS, K, 32)
    made = []
    for window in (3, 128):
        model = with_memory(windowed(family, window, attention=attention))
        made.append([encode(model, model.memory_from_slots(newest.repeat(1, 4, 1)), ids(n)) for n in (1, 3)])
    torch.testing.assert_close(*made, **CLOSE)


def test_windows_of_an_attention_that_takes_no_mask_are_refused() -> None:
    model = with_memory(decoder("mistral", sliding_window=8))
    model.hf.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedModelError, match="takes no mask"):
        model.read(model.memory_from_slots(torch.randn(tiny.LAYERS, tiny.SLOTS, 32)), ids(4))


@every_family
def test_two_memory_models_on_one_decoder_write_alike(family: str) -> None:
    hf = decoder(family)
    first = with_memory(hf)
    before = encode(first, first.new_memory(), ids(12))
    with_memory(hf)
    torch.testing.assert_close(encode(first, first.new_memory(), ids(12)), before)


@every_family
def test_a_bfloat16_model_writes_reads_and_generates(family: str) -> None:
    model = with_memory(decoder(family, dtype=torch.bfloat16))
    memory = model.new_memory()
    for length in (20, 2, 9):
        model.write(memory, ids(length))
    assert memory.pool.keys.dtype == memory.pool.values.dtype == torch.bfloat16
    assert logits(model, memory, ids(7)).dtype == torch.bfloat16
    assert model.generate(memory, ids(7), max_new_tokens=5, do_sample=False).shape[1] > 7
