"""The learned writer: chunks, the slots that they make, and who leaves the pool for them."""

import pytest
import torch
from torch import Tensor

from remanence import Memory, MemoryModel
from remanence.errors import CorruptMemoryError, InvalidInputError
from remanence.model.learned import encode
from tests.support import tiny
from tests.support.models import everything, told, with_longterm
from tests.support.replay import encode as encoded
from tests.support.replay import update
from tests.support.tiny import SLOTS, K, decoder, ids, with_memory

CHUNK = 32
LONG = 2 * CHUNK + 20  # three chunks


@pytest.fixture
def model() -> MemoryModel:
    return with_memory(keep_hidden=True, chunk=CHUNK)


def draws(one: Memory) -> list[Tensor]:
    return [one.pool.slots(), one.pool.keys, one.pool.values]


def test_write_draws_who_leaves_for_each_layer_or_once(model: MemoryModel) -> None:
    shared = with_memory(eviction="shared")
    for one, rows in ((model, tiny.LAYERS), (shared, 1)):
        (evicted,) = one.write(told(one), ids(9)).evicted
        assert evicted is not None and evicted.shape == (tiny.LAYERS, K)
        assert len({tuple(row) for row in evicted.tolist()}) == rows


def test_write_of_fewer_tokens_than_slots_still_makes_k_of_them(model: MemoryModel) -> None:
    memory = told(model)
    for length in (1, K - 1, K, K + 1):
        (evicted,) = model.write(memory, ids(length)).evicted
        assert evicted is not None and evicted.shape == (tiny.LAYERS, K)
        assert set(memory.provenance()[:, -K:].flatten().tolist()) == {memory.writes[-1].id}


@pytest.mark.parametrize("length", [1, 4, K, SLOTS + 5])
def test_write_for_the_first_time_fills_the_pool_with_what_it_made_over_and_over(
    model: MemoryModel, length: int
) -> None:
    memory = model.new_memory()
    made = encoded(model, memory, ids(length))
    assert made.shape == (tiny.LAYERS, min(length, K), 32)
    (evicted,) = model.write(memory, ids(length)).evicted
    slots = memory.pool.slots()
    assert evicted is None and slots.shape[1] == SLOTS
    times, rest = divmod(SLOTS, made.shape[1])
    assert torch.equal(slots, torch.cat([*[made] * times, made[:, made.shape[1] - rest :]], dim=1))


def test_write_replays_whom_a_recorded_one_evicted(model: MemoryModel) -> None:
    first, second = told(model, seed=1), told(model, seed=1)
    second.seed(99)
    for number in range(5):
        (evicted,) = model.write(first, ids(4 * number + 2)).evicted
        model.write(second, ids(4 * number + 2), evict=evicted)
    for one, other in zip(draws(first), draws(second), strict=True):
        assert torch.equal(one, other)
    model.write(first, ids(9))
    model.write(second, ids(9))
    assert not torch.equal(first.pool.slots(), second.pool.slots())  # each draws for itself again


def test_write_keeps_the_slots_that_stay_in_order(model: MemoryModel) -> None:
    memory = told(model)
    before = memory.pool.slots()
    evict = torch.stack([torch.arange(K) * 4, torch.arange(K), SLOTS - K + torch.arange(K)])
    made = encoded(model, memory, ids(9))
    (evicted,) = model.write(memory, ids(9), evict=evict).evicted
    kept = torch.ones(tiny.LAYERS, SLOTS, dtype=torch.bool).scatter_(1, evict, False)
    assert torch.equal(memory.pool.slots(), torch.cat([before[kept].view(tiny.LAYERS, SLOTS - K, -1), made], dim=1))
    assert evicted is not None and torch.equal(evicted, evict)
    assert memory.newest is not None and torch.equal(memory.newest, made)


@pytest.mark.parametrize(
    ("length", "evict", "says"),
    [
        (9, torch.arange(K).repeat(tiny.LAYERS, 1) + SLOTS, "outside"),
        (9, torch.zeros(tiny.LAYERS, K, dtype=torch.long), "twice"),
        (9, torch.arange(K)[None], "one row per layer"),
        (9, torch.arange(K + 1).repeat(tiny.LAYERS, 1), "the write makes only"),
        (9, torch.zeros(tiny.LAYERS, K), "integer ranks"),
        (LONG, torch.arange(K).repeat(tiny.LAYERS, 1), "one write, but this call makes 3"),
    ],
    ids=["outside", "twice", "shape", "too many", "dtype", "several chunks"],
)
def test_write_refuses_ranks_that_do_not_fit(model: MemoryModel, length: int, evict: Tensor, says: str) -> None:
    memory = told(model)
    before = everything(memory)
    with pytest.raises(InvalidInputError, match=says):
        model.write(memory, ids(length), evict=evict)
    assert everything(memory) == before


def test_write_for_the_first_time_evicts_nobody(model: MemoryModel) -> None:
    memory = model.new_memory()
    with pytest.raises(InvalidInputError, match="evicts nothing"):
        model.write(memory, ids(9), evict=torch.arange(K).repeat(tiny.LAYERS, 1))
    assert not memory.written


@pytest.mark.parametrize(
    ("length", "chunks"),
    [
        (CHUNK, [CHUNK]),
        (CHUNK + 15, [CHUNK + 15]),
        (CHUNK + 16, [CHUNK, 16]),
        (2 * CHUNK + 3, [CHUNK, CHUNK + 3]),
        (LONG, [CHUNK, CHUNK, 20]),
    ],
)
def test_write_cuts_long_text_and_joins_a_short_tail_to_the_chunk_before_it(
    model: MemoryModel, length: int, chunks: list[int]
) -> None:
    memory, step_by_step = told(model), told(model)
    reports: list[tuple[int, int]] = []
    receipt = model.write(memory, ids(length), progress=lambda done, of: reports.append((done, of)))
    assert (receipt.chunks, receipt.tokens, len(receipt.evicted)) == (len(chunks), length, len(chunks))
    assert reports == [(done + 1, len(chunks)) for done in range(len(chunks))]
    for chunk in ids(length).split(chunks):
        model.write(step_by_step, chunk)
    for one, other in zip(draws(memory), draws(step_by_step), strict=True):
        assert torch.equal(one, other)


def test_write_makes_chunks_of_512_tokens_unless_the_config_says_otherwise() -> None:
    model = with_memory(decoder(max_position_embeddings=1024))
    assert [model.write(model.new_memory(), ids(n)).chunks for n in (512, 527, 528)] == [1, 1, 2]


def test_write_gives_receipts_that_agree_with_the_table_of_writes(model: MemoryModel) -> None:
    memory = model.new_memory()
    receipts = [model.write(memory, ids(length)) for length in (3, LONG, 2)]
    assert [receipt.id for receipt in receipts] == [record.id for record in memory.writes] == [0, 1, 2]
    assert [record.tokens for record in memory.writes] == [3, LONG, 2]
    assert [record.slots for record in memory.writes] == [SLOTS, 3 * K, K]
    assert set(memory.provenance()[:, -K:].flatten().tolist()) == {2}


@pytest.mark.parametrize("count", [1, K - 1, K, 2 * K])
def test_update_puts_slots_that_were_encoded_earlier_into_the_pool_as_one_write(model: MemoryModel, count: int) -> None:
    memory = told(model)
    made = encoded(model, memory, ids(30))
    made = torch.cat([made, encoded(model, memory, ids(30), after=made)], dim=1)[:, -count:]
    update(model, memory, made)
    assert torch.equal(memory.pool.slots()[:, -count:], made)
    assert memory.newest is not None and torch.equal(memory.newest, memory.pool.slots()[:, -K:])
    model.write(memory, ids(3))


@pytest.mark.parametrize(
    "slots",
    [
        torch.zeros(tiny.LAYERS, 0, 32),
        torch.zeros(2, K, 32),
        torch.zeros(tiny.LAYERS, K, 31),
        torch.zeros(K, 32),
        torch.zeros(tiny.LAYERS, K, 32, dtype=torch.bfloat16),
        torch.zeros(tiny.LAYERS, K, 32, device="meta"),
    ],
    ids=["none", "layers", "size", "dimensions", "dtype", "device"],
)
def test_memory_from_slots_refuses_slots_that_do_not_fit(model: MemoryModel, slots: Tensor) -> None:
    with pytest.raises(InvalidInputError, match="slots must be"):
        model.memory_from_slots(slots)


def test_memory_from_slots_holds_them(model: MemoryModel) -> None:
    slots = torch.randn(tiny.LAYERS, SLOTS, 32)
    memory = model.memory_from_slots(slots, seed=3)
    kept = slots.clone()
    strided = model.memory_from_slots(slots.transpose(1, 2).contiguous().transpose(1, 2), seed=3)
    slots.zero_()
    assert torch.equal(memory.pool.slots(), kept)
    assert memory.newest is not None and torch.equal(memory.newest, kept[:, -K:])
    for one in (memory, strided):
        model.write(one, ids(9))
    assert everything(memory, times=False) == everything(strided, times=False)
    with pytest.raises(InvalidInputError, match=f"takes {SLOTS} slots"):
        model.memory_from_slots(slots[:, :-1])


def test_new_memory_starts_with_the_pool_that_the_model_ships(model: MemoryModel) -> None:
    assert not model.new_memory().written
    model.shipped_pool = torch.randn(tiny.LAYERS, SLOTS, 32)
    first, second = model.new_memory(), model.new_memory()
    model.write(first, ids(9))
    assert torch.equal(second.pool.slots(), model.shipped_pool)
    assert not torch.equal(first.pool.slots(), model.shipped_pool)
    assert second.writes == [] and set(second.provenance().flatten().tolist()) == {-1}


def test_write_refuses_retrieval_keys_that_are_no_numbers() -> None:
    model = with_longterm()
    assert model.retriever is not None
    with torch.no_grad():
        next(model.retriever.key.parameters()).fill_(torch.nan)
    memory = model.new_memory()
    with pytest.raises(CorruptMemoryError, match="not finite"):
        model.write(memory, ids(40))
    assert not memory.written


def test_write_to_a_memory_of_the_pool_only_keeps_nothing_of_what_leaves() -> None:
    model = with_longterm()
    memory = told(model, longterm=False)
    assert memory.longterm is None and memory.pool.retrieval is None
    (evicted,) = model.write(memory, ids(9)).evicted
    assert evicted is not None


def test_encode_lets_gradients_through_to_the_slots_of_a_row_and_to_parameters(model: MemoryModel) -> None:
    newest = torch.randn(2, tiny.LAYERS, K, 32, requires_grad=True)
    texts = torch.stack([ids(9), torch.cat([torch.zeros(6, dtype=torch.long), ids(3)])])
    settings = {"slots_per_write": K, "bos": model.bos_embedding, "positional": model.new_memory_positional_emb}
    made = encode(model.backbone, texts, newest, lengths=[9, 3], **settings)  # type: ignore[arg-type]
    assert made.shape == (2, tiny.LAYERS, K, 32)
    made[0].square().sum().backward()
    assert newest.grad is not None and float(newest.grad[0].abs().max()) > 0 and not newest.grad[1].any()
    weight = model.backbone.layers[0].mlp.up_proj.weight
    for parameter in (model.bos_embedding, model.new_memory_positional_emb, weight):
        assert parameter is not None and parameter.grad is not None and float(parameter.grad.abs().max()) > 0
    alone = encode(model.backbone, texts[1:, -K:], newest[1:], lengths=[3], **settings)  # type: ignore[arg-type]
    torch.testing.assert_close(made[1:], alone, atol=1e-5, rtol=0.0)
