"""A decoder with all that memory takes: extended by a retriever, its bos slots, and what a memory must agree on."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from remanence import MemoryModel
from remanence.config import LongTermConfig, LoraSettings
from remanence.errors import InvalidInputError
from tests.support import tiny
from tests.support.models import KINDS, told, with_adapters, with_longterm
from tests.support.tiny import SLOTS, K, decoder, ids, with_memory, with_text

CLOSE = {"atol": 1e-5, "rtol": 0.0}
RULES = LongTermConfig(retrieved=4)


@pytest.mark.parametrize("bos", [True, False])
def test_with_longterm_takes_the_decoder_over_and_writes_and_reads_as_before(bos: bool) -> None:
    before = with_memory(bos=bos, eviction="shared", keep_hidden=True)
    spec, hf = before.spec, before.hf
    old = told(before)
    logits = before.read(old, ids(5)).logits
    model = before.with_longterm(RULES, retrieval_size=8, lora=LoraSettings(r=4))
    assert model.hf is hf
    assert replace(model.spec, model=spec.model, retrieval_size=0) == spec
    assert model.spec.retrieval_size == 8 and model.adapters is not None
    new = told(model)
    torch.testing.assert_close(new.pool.slots(), old.pool.slots(), **CLOSE)
    torch.testing.assert_close(model.read(new.pool_only(), ids(5)).logits, logits, **CLOSE)
    assert new.longterm is not None and new.longterm.sizes() == [2 * K] * tiny.LAYERS


def test_with_longterm_takes_adapters_along_and_may_make_the_pool_smaller() -> None:
    before = with_memory(lora=LoraSettings(r=4))
    adapters = before.adapters
    model = before.with_longterm(RULES, slots=SLOTS - K, retrieval_size=8)
    assert model.adapters is adapters is not None
    assert model.spec.slots == SLOTS - K
    assert model.config == before.config.replace(slots=SLOTS - K, longterm=RULES.replace(key_size=8))


@pytest.mark.parametrize(
    ("model", "options"),
    [
        (with_longterm, {}),
        (with_adapters, {}),
        (lambda: with_memory(lora=LoraSettings(r=4)), {"lora": LoraSettings(r=4)}),
    ],
    ids=["a retriever", "both", "adapters"],
)
def test_with_longterm_refuses_what_is_there_already(model: Any, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="has a retriever or adapters already"):
        model().with_longterm(RULES, **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"slots": 2 * K + 1}, "not a multiple"),
        ({"retrieval_size": 0}, "key_size must be at least 1"),
        ({"retrieval_size": 8.0}, "retrieval_size must be an integer"),
        ({"lora": LoraSettings(target_modules=("nothing",))}, "no linear layer is named nothing"),
    ],
    ids=str,
)
def test_with_longterm_refuses_what_does_not_fit_and_leaves_the_model_usable(
    options: dict[str, Any], says: str
) -> None:
    model = with_memory()
    with pytest.raises(InvalidInputError, match=says):
        model.with_longterm(RULES, **options)
    told(model)


def test_with_longterm_belongs_to_a_learned_writer() -> None:
    with pytest.raises(InvalidInputError, match="longterm= belongs to a learned memory"):
        with_text().with_longterm(RULES)


def test_with_longterm_starts_new_memories_with_nothing_written() -> None:
    before = with_memory()
    before.shipped_pool = torch.randn(tiny.LAYERS, SLOTS, before.hf.config.hidden_size)
    assert before.new_memory().written
    assert not before.with_longterm(RULES, retrieval_size=8).new_memory().written


def test_attach_gives_retrieval_keys_256_features_unless_something_else_is_asked_for() -> None:
    sizes = [with_longterm(retrieval_size=size).spec.retrieval_size for size in (None, 8)]
    assert sizes == [256, 8]


def test_bos_slots_follow_a_change_of_the_embedding_and_of_what_projects_it() -> None:
    model = with_memory()
    told(model)
    kept = model.spec.model
    for parameter in (model.bos_embedding, model.backbone.layers[0].self_attn.k_proj.weight):
        before = model.bos_slots()
        assert before is not None and model.bos_slots() is before
        assert parameter is not None
        with torch.no_grad():
            parameter.add_(0.5)
        after = model.bos_slots()
        assert after is not None and not torch.equal(after[0][0], before[0][0])
    assert model.spec.model != kept
    assert model.read(told(model), ids(5, seed=1)).logits.isfinite().all()


def test_bos_slots_are_those_of_the_adapter_that_reads() -> None:
    model = with_adapters()
    bos = model.bos_embedding
    assert bos is not None
    read, write = model.bos_slots("read"), model.bos_slots("write")
    assert read is not None and write is not None
    with model.role("read"):
        torch.testing.assert_close(read[1][1], model.backbone.project(1, bos[1])[1])
    assert not torch.allclose(read[1][1], write[1][1], atol=1e-3)
    assert with_memory(bos=False).bos_slots() is None


@pytest.mark.parametrize("kind", KINDS)
def test_spec_names_what_made_the_slots(kind: str) -> None:
    model = KINDS[kind]()
    spec, learned = model.spec, kind != "text"
    assert (spec.writer, spec.layers, spec.hidden_size) == (model.config.writer, tiny.LAYERS, 32)
    assert (spec.slots, spec.slots_per_write) == ((SLOTS, K) if learned else (0, 0))
    assert (spec.kv_heads, spec.head_dim, spec.dtype) == (2, 8, "float32")
    assert spec.model == model.fingerprint() and spec == KINDS[kind]().spec
    assert (spec.retrieval == "") is learned
    assert told(model).spec == spec


def test_fingerprint_of_a_text_writer_is_that_of_the_decoder_whatever_stands_beside_it() -> None:
    hf = decoder()
    model = with_text(hf)
    memory, before = told(model), model.fingerprint()
    with_adapters(hf)
    assert model.fingerprint() == before
    assert with_text().fingerprint() == before != with_text(decoder(vocab_size=62)).fingerprint()
    model.read(memory, ids(5))


@pytest.mark.parametrize("kind", KINDS)
def test_stamp_moves_with_every_change_of_a_parameter(kind: str) -> None:
    model = KINDS[kind]()
    first = model.stamp()
    assert model.stamp() == first
    weight: Any = model.backbone.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        weight.view(-1)[1] += 1
    second = model.stamp()
    weight.data = weight.data.clone()
    assert len({first, second, model.stamp()}) == 3


@pytest.mark.parametrize(
    "asked",
    [
        {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
        {"gradient_checkpointing_kwargs": {"preserve_rng_state": False}},
        {"every_n_layers": 2},
        {"offload": True},
    ],
    ids=str,
)
def test_gradient_checkpointing_enable_refuses_other_kinds(asked: dict[str, Any]) -> None:
    model = with_memory()
    with pytest.raises(InvalidInputError, match="leave out"):
        model.gradient_checkpointing_enable(**asked)
    told(model)


def test_gradient_checkpointing_of_the_decoder_itself_is_refused_where_it_would_lose_memory() -> None:
    model = with_memory()
    memory = told(model)
    model.hf.gradient_checkpointing_enable()
    model.train()
    with pytest.raises(InvalidInputError, match=r"model.gradient_checkpointing_enable\(\) of the model with memory"):
        model.read(memory, ids(4))
    model.eval()
    model.read(memory, ids(4))


def test_repr_names_the_writer_and_whether_it_was_trained() -> None:
    untrained = MemoryModel.attach(decoder(), slots=SLOTS, slots_per_write=K)
    assert "writer='learned', not trained" in repr(untrained)
    assert "writer='text'\n" in repr(with_text()) and "not trained" not in repr(with_memory())


def test_memory_from_slots_belongs_to_a_learned_writer() -> None:
    with pytest.raises(InvalidInputError, match="this model writes text slots"):
        with_text().memory_from_slots(torch.zeros(tiny.LAYERS, SLOTS, 32))
