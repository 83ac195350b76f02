"""Writing is atomic and isolated; bad input is named and changes nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from remanence import Memory, MemoryModel
from remanence.errors import CorruptMemoryError, InvalidInputError, MemoryMismatchError
from remanence.memory import LongTermRules
from tests.support import tiny
from tests.support.tiny import SLOTS, VOCABULARY, K, decoder, ids, with_memory

CLOSE = {"atol": 1e-5, "rtol": 0.0}
LONG = 512 + 512 + 40  # three chunks


@pytest.fixture
def model() -> MemoryModel:
    return with_memory(keep_hidden=True)


def written(model: MemoryModel, seed: int = 0, writes: int = 3) -> Memory:
    memory = model.new_memory(seed)
    for number in range(writes):
        model.write(memory, ids(9 + number, seed=100 * seed + number))
    return memory


def everything(memory: Memory) -> list[Any]:
    """Bytes of every tensor, the random state and the table of writes. Bytes, because NaN equals nothing."""
    tensors = {"newest": memory.newest} | (memory.pool.tensors | {"order": memory.pool.order} if memory.written else {})
    held = [(name, None if t is None else t.contiguous().view(torch.uint8).tolist()) for name, t in tensors.items()]
    return [held, memory._generator.get_state().tolist(), memory.write_count, memory.writes, memory._next_serial]


class Interruption(BaseException):
    """Stands for Ctrl-C and everything else that nobody catches."""


def interrupt(model: MemoryModel, passes: int) -> None:
    """Let the last layer raise at the end of the given pass."""
    count = 0

    def hook(*_: Any) -> None:
        nonlocal count
        count += 1
        if count == passes:
            raise Interruption

    model.backbone.layers[-1].register_forward_hook(hook)


@pytest.mark.parametrize("writes", [0, 3])
@pytest.mark.parametrize(("length", "passes"), [(20, 1), (2, 1), (LONG, 1), (LONG, 3)])
def test_a_write_that_is_interrupted_leaves_no_trace(model: MemoryModel, writes: int, length: int, passes: int) -> None:
    memory = written(model, writes=writes)
    before = everything(memory)
    interrupt(model, passes)
    with pytest.raises(Interruption):
        model.write(memory, ids(length))
    assert everything(memory) == before


@pytest.mark.parametrize("passes", [1, 3])
def test_an_interrupted_batch_leaves_no_trace_in_any_memory(model: MemoryModel, passes: int) -> None:
    memories = [written(model, seed, writes=seed) for seed in range(3)]
    before = [everything(memory) for memory in memories]
    interrupt(model, passes)
    with pytest.raises(Interruption):
        model.write(memories, [ids(600), ids(7), ids(LONG)])
    assert [everything(memory) for memory in memories] == before


def test_a_batch_with_one_broken_memory_changes_none(model: MemoryModel) -> None:
    memories = [written(model, seed) for seed in range(3)]
    assert memories[2].newest is not None
    memories[2].newest.fill_(float("nan"))
    before = [everything(memory) for memory in memories]
    with pytest.raises(CorruptMemoryError):
        model.write(memories, [ids(9), ids(9), ids(9)])
    assert [everything(memory) for memory in memories] == before


@pytest.mark.parametrize("length", [20, LONG])
def test_a_write_whose_progress_report_raises_leaves_no_trace(model: MemoryModel, length: int) -> None:
    memory = written(model)
    before = everything(memory)

    def progress(done: int, of: int) -> None:
        if done == of:
            raise Interruption

    with pytest.raises(Interruption):
        model.write(memory, ids(length), progress=progress)
    assert everything(memory) == before


def write(model: MemoryModel, memory: Any, content: Any) -> None:
    model.write(memory, content)


def read(model: MemoryModel, memory: Any, content: Any) -> None:
    model.read(memory, content)


def generate(model: MemoryModel, memory: Any, content: Any) -> None:
    model.generate(memory, content, max_new_tokens=2)


Operation = Callable[[MemoryModel, Any, Any], None]
every_operation = pytest.mark.parametrize("operation", [write, read, generate])

BAD_CONTENT = [
    pytest.param("", "no tokens", id="empty text"),
    pytest.param([], "no tokens", id="no ids"),
    pytest.param(torch.zeros(0, dtype=torch.long), "no tokens", id="no ids in a tensor"),
    pytest.param([3, VOCABULARY], f"0..{VOCABULARY - 1}.*another model's tokenizer", id="above the vocabulary"),
    pytest.param([3, -1], f"0..{VOCABULARY - 1}", id="below the vocabulary"),
    pytest.param([3.0, 4.0], "integer token ids", id="floats"),
    pytest.param(torch.ones(4), r"ids.long\(\)", id="float tensor"),
    pytest.param(torch.ones(4, dtype=torch.bool), "must be integers", id="bool tensor"),
    pytest.param(torch.ones(2, 3, dtype=torch.long), "one row of token ids", id="two rows for one memory"),
    pytest.param(torch.ones(1, 2, 3, dtype=torch.long), "one row of token ids", id="three dimensions"),
    pytest.param(torch.tensor(3), "one row of token ids", id="no dimension"),
    pytest.param(torch.ones(4, dtype=torch.long, device="meta"), "on meta, the model on cpu", id="other device"),
    pytest.param(None, "expected text", id="nothing"),
    pytest.param(7, "expected text", id="a number"),
    pytest.param(
        ["one text", "another"], r"one text or one row.*model\.write\(\[first, second\]", id="texts in a list"
    ),
    pytest.param([[3, 4], [5, 6]], "one text or one row of ids, got a list of them", id="rows in a list"),
]


@every_operation
@pytest.mark.parametrize(("content", "says"), BAD_CONTENT)
def test_bad_content_is_named_and_changes_nothing(operation: Operation, content: Any, says: str) -> None:
    model = with_memory(decoder(), tokenizer=lambda text, **_: {"input_ids": [ord(c) % VOCABULARY for c in text]})
    memory = written(model)
    before = everything(memory)
    with pytest.raises(InvalidInputError, match=says):
        operation(model, memory, content)
    assert everything(memory) == before


def test_text_needs_a_tokenizer(model: MemoryModel) -> None:
    with pytest.raises(InvalidInputError, match="no tokenizer"):
        model.write(model.new_memory(), "text")


@every_operation
@pytest.mark.parametrize(
    ("content", "says"),
    [
        ([[3, 4]], "2 memories take 2 texts or rows of ids, got 1"),
        (torch.ones(3, 4, dtype=torch.long), "got 3"),
        (torch.ones(4, dtype=torch.long), "got one"),
        ([[3, 4], []], "no tokens"),
        ([[3, 4], [VOCABULARY]], "must lie in"),
    ],
)
def test_a_batch_takes_one_good_row_for_each_memory(
    model: MemoryModel, operation: Operation, content: Any, says: str
) -> None:
    memories = [written(model, seed) for seed in range(2)]
    before = [everything(memory) for memory in memories]
    with pytest.raises(InvalidInputError, match=says):
        operation(model, memories, content)
    assert [everything(memory) for memory in memories] == before


@every_operation
def test_one_memory_cannot_be_two_rows(model: MemoryModel, operation: Operation) -> None:
    memory = written(model)
    before = everything(memory)
    with pytest.raises(InvalidInputError, match="given twice"):
        operation(model, [memory, memory], [[3, 4], [5, 6]])
    assert everything(memory) == before


@every_operation
@pytest.mark.parametrize("memory", ["a memory", None, []], ids=["text", "nothing", "no memories"])
def test_what_is_no_memory_is_refused(model: MemoryModel, operation: Operation, memory: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"expected a Memory|no memory was given"):
        operation(model, memory, [3, 4])


OTHERS = {
    "other weights": (lambda: with_memory(decoder(vocab_size=62)), "fingerprint"),
    "other pool": (lambda: with_memory(slots=2 * SLOTS), f"slots: the memory has {2 * SLOTS}, the model {SLOTS}"),
    "other dtype": (lambda: with_memory(decoder(dtype=torch.bfloat16)), "dtype: the memory has bfloat16, the model"),
    "other depth": (lambda: with_memory(decoder(num_hidden_layers=2)), "layers: the memory has 2, the model 3"),
    "other eviction": (lambda: with_memory(eviction="shared"), "shared_eviction: the memory has True"),
}


@every_operation
@pytest.mark.parametrize("other", sorted(OTHERS))
def test_another_models_memory_is_refused_and_says_what_differs(
    model: MemoryModel, operation: Operation, other: str
) -> None:
    make, says = OTHERS[other]
    memory = written(make())
    before = everything(memory)
    with pytest.raises(MemoryMismatchError, match=says):
        operation(model, memory, ids(5))
    assert everything(memory) == before


@every_operation
def test_a_changed_weight_makes_another_model(model: MemoryModel, operation: Operation) -> None:
    memory = written(model)
    with torch.no_grad():
        model.backbone.layers[1].mlp.up_proj.weight += 0.1
    with pytest.raises(MemoryMismatchError, match="fingerprint"):
        operation(model, memory, ids(5))


@every_operation
def test_a_replaced_weight_makes_another_model(model: MemoryModel, operation: Operation) -> None:
    memory = written(model)
    weight: Any = model.backbone.layers[1].mlp.up_proj.weight
    weight.data = weight.data + 0.1
    with pytest.raises(MemoryMismatchError, match="fingerprint"):
        operation(model, memory, ids(5))


@every_operation
def test_a_memory_on_another_device_is_refused(model: MemoryModel, operation: Operation) -> None:
    memory = written(model).to("meta")
    with pytest.raises(InvalidInputError, match=r"memory is on meta, the model on cpu; move it with"):
        operation(model, memory, ids(5))


@every_operation
@pytest.mark.parametrize("parts", [("keys", "values"), ("keys",), ("values",), ("keys", "values", "newest")])
def test_a_pool_full_of_nan_is_refused(model: MemoryModel, operation: Operation, parts: tuple[str, ...]) -> None:
    memory = written(model)
    for part in parts:
        (memory.newest if part == "newest" else memory.pool.tensors[part]).fill_(float("nan"))
    before = everything(memory)
    with pytest.raises(CorruptMemoryError, match="saved memory"):
        operation(model, memory, ids(20))
    assert everything(memory) == before


@pytest.mark.parametrize(("slots", "k", "says"), [(10, 4, "N=8 or N=12"), (4, 8, "between 1 and"), (8, 0, "between 1")])
def test_sizes_that_do_not_fit_are_refused_before_anything_is_hooked(slots: int, k: int, says: str) -> None:
    hf = decoder()
    with pytest.raises(InvalidInputError, match=says):
        MemoryModel.attach(hf, slots=slots, slots_per_write=k)
    assert not any(layer._forward_pre_hooks for layer in hf.base_model.layers)


@pytest.mark.parametrize("name", ["slots", "slots_per_write", "retrieval_size"])
def test_a_size_that_is_no_integer_is_named_before_anything_is_hooked(name: str) -> None:
    hf = decoder()
    for wrong in ("6", 6.0, True):
        sizes = {"slots": SLOTS, "slots_per_write": K, "longterm": LongTermRules(retrieved=4), name: wrong}
        with pytest.raises(InvalidInputError, match=f"^{name} must be an integer, got {wrong!r}"):
            MemoryModel.attach(hf, **sizes)
    assert not any(layer._forward_pre_hooks for layer in hf.base_model.layers)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"seed": "3"}, "seed must be an integer, got '3'"),
        ({"seed": True}, "seed must be an integer"),
        ({"capacity": 600.0}, "capacity must be an integer"),
        ({"storage": "disk"}, r"such as Storage\('disk'\), got 'disk'"),
    ],
)
def test_what_a_new_memory_cannot_be_made_with_is_named(settings: dict[str, Any], says: str) -> None:
    model = with_memory(longterm=LongTermRules(retrieved=4), retrieval_size=8)
    with pytest.raises(InvalidInputError, match=says):
        model.new_memory(**settings)


def test_an_unknown_way_to_evict_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="per_layer"):
        MemoryModel.attach(decoder(), slots=8, slots_per_write=4, eviction="oldest")


def test_eviction_is_drawn_for_each_layer_or_once(model: MemoryModel) -> None:
    shared = with_memory(eviction="shared")
    for one, rows in ((model, tiny.LAYERS), (shared, 1)):
        memory = written(one)
        evicted = one.write(memory, ids(9)).evicted[0]
        assert evicted is not None and len({tuple(row) for row in evicted.tolist()}) == rows


def test_a_replayed_write_evicts_what_the_recorded_one_did(model: MemoryModel) -> None:
    first, second = written(model, seed=1), written(model, seed=1)
    second.seed(99)
    for number in range(5):
        evicted = model.write(first, ids(4 * number + 2)).evicted[0]
        model.write(second, ids(4 * number + 2), evict=evicted)
    assert everything(first)[0] == everything(second)[0]


def test_a_replayed_write_keeps_the_other_slots_in_order(model: MemoryModel) -> None:
    memory = written(model)
    before = memory.pool.slots()
    evict = torch.stack([torch.arange(K) * 4, torch.arange(K), SLOTS - K + torch.arange(K)])
    made = model.encode(memory, ids(9))
    model.write(memory, ids(9), evict=evict)
    kept = torch.ones(tiny.LAYERS, SLOTS, dtype=torch.bool).scatter_(1, evict, False)
    assert torch.equal(memory.pool.slots(), torch.cat([before[kept].view(tiny.LAYERS, SLOTS - K, -1), made], dim=1))


@pytest.mark.parametrize("length", [9, LONG])
def test_a_draw_that_does_not_fit_is_refused(model: MemoryModel, length: int) -> None:
    memory = written(model)
    before = everything(memory)
    evict = torch.arange(K).repeat(tiny.LAYERS, 1) + (SLOTS if length == 9 else 0)
    with pytest.raises(InvalidInputError, match="outside" if length == 9 else "one write, but this call makes 3"):
        model.write(memory, ids(length), evict=evict)
    assert everything(memory) == before


def test_the_same_writes_from_the_same_seed_give_the_same_memory_bit_for_bit(model: MemoryModel) -> None:
    first, second, other = written(model, seed=0, writes=8), written(model, seed=0, writes=8), model.new_memory(seed=1)
    for number in range(8):
        model.write(other, ids(9 + number, seed=number))
    assert everything(first) == everything(second)
    assert everything(first)[0] != everything(other)[0]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_of_a_batch_never_touch_each_other(attention: str) -> None:
    model = with_memory(decoder(attention=attention), keep_hidden=True)
    together = [written(model, seed, writes) for seed, writes in enumerate([0, 3, 0, 1, 2])]
    alone = [memory.fork() for memory in together]
    texts = [ids(length, seed=length) for length in (2, 30, 17, 3, 700)]
    receipts = model.write(together, texts)
    for row, (memory, text) in enumerate(zip(alone, texts, strict=True)):
        receipt = model.write(memory, text)
        assert receipt.writes == receipts[row].writes and memory.writes == together[row].writes
        torch.testing.assert_close(together[row].pool.slots(), memory.pool.slots(), **CLOSE)
        for name in ("keys", "values", "serial"):
            torch.testing.assert_close(together[row].pool.tensors[name], memory.pool.tensors[name], **CLOSE)


def test_a_row_does_not_depend_on_what_stands_beside_it(model: MemoryModel) -> None:
    made = []
    for beside in (ids(14, seed=5), ids(14, seed=6)):
        pair = [written(model, 0), written(model, 1)]
        model.write(pair, [ids(14), beside])
        made.append(pair)
    assert everything(made[0][0]) == everything(made[1][0])
    assert everything(made[0][1])[0] != everything(made[1][1])[0]


@pytest.mark.parametrize(
    ("length", "chunks"),
    [(512, [512]), (527, [527]), (528, [512, 16]), (1024 + 3, [512, 515]), (LONG, [512, 512, 40])],
)
def test_long_text_is_cut_and_a_short_tail_joins_the_chunk_before_it(
    model: MemoryModel, length: int, chunks: list[int]
) -> None:
    memory, step_by_step = written(model), written(model)
    reports: list[tuple[int, int]] = []
    receipt = model.write(memory, ids(length), progress=lambda done, of: reports.append((done, of)))
    assert [record.tokens for record in receipt.writes] == chunks and receipt.tokens == length
    assert reports == [(done + 1, len(chunks)) for done in range(len(chunks))]
    for chunk in ids(length).split(chunks):
        model.write(step_by_step, chunk)
    assert everything(memory) == everything(step_by_step)


def test_a_receipt_and_the_table_of_writes_agree(model: MemoryModel) -> None:
    memory = model.new_memory()
    records = [record for length in (3, 600, 2) for record in model.write(memory, ids(length)).writes]
    assert memory.writes == records and [record.id for record in records] == [0, 1, 2, 3]
    assert set(memory.provenance()[:, -K:].flatten().tolist()) == {3}


@pytest.mark.parametrize("count", [1, K - 1, K, 2 * K])
def test_slots_that_were_encoded_earlier_are_put_into_the_pool_as_one_write(model: MemoryModel, count: int) -> None:
    memory = written(model)
    made = model.encode(memory, ids(30))
    made = torch.cat([made, model.encode(memory, ids(30), after=made)], dim=1)[:, -count:]
    model.update(memory, made, tokens=30)
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
def test_slots_that_do_not_fit_are_refused(model: MemoryModel, slots: Tensor) -> None:
    memory = written(model)
    before = everything(memory)
    for call in (lambda: model.update(memory, slots), lambda: model.memory_from_slots(slots)):
        with pytest.raises(InvalidInputError, match="slots"):
            call()
    assert everything(memory) == before


def test_a_memory_made_of_slots_holds_them(model: MemoryModel) -> None:
    slots = torch.randn(tiny.LAYERS, SLOTS, 32)
    memory = model.memory_from_slots(slots, seed=3)
    kept = slots.clone()
    strided = model.memory_from_slots(slots.transpose(1, 2).contiguous().transpose(1, 2), seed=3)
    slots.zero_()
    assert torch.equal(memory.pool.slots(), kept)
    assert memory.newest is not None and torch.equal(memory.newest, kept[:, -K:])
    for one in (memory, strided):
        model.write(one, ids(9))
    assert everything(memory) == everything(strided)
    with pytest.raises(InvalidInputError, match=f"takes {SLOTS} slots"):
        model.memory_from_slots(slots[:, :-1])


def test_a_change_of_the_bos_slot_or_of_its_projections_shows_at_the_next_read() -> None:
    model = with_memory()
    memory = model.new_memory()
    model.write(memory, ids(9))
    prompt = ids(5, seed=1)
    kept = model.spec.model
    for parameter in (model.bos_embedding, model.backbone.layers[0].self_attn.k_proj.weight):
        before = model.bos_slots()
        assert before is not None and model.bos_slots() is before
        with torch.no_grad():
            parameter.add_(0.5)
        after = model.bos_slots()
        assert after is not None and not torch.equal(after[0][0], before[0][0])
    assert model.spec.model != kept
    fresh = model.new_memory()
    model.write(fresh, ids(9))
    assert model.read(fresh, prompt).logits.isfinite().all()
