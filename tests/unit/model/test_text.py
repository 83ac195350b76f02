"""Text slots: reading chunks equals having their text in the context, whatever the family, the batch or the tier."""

import gc
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from remanence import Memory, MemoryConfig, MemoryModel
from remanence.config import RetrievalConfig, StorageConfig
from remanence.errors import InvalidInputError, MemoryMismatchError
from remanence.model import reference
from remanence.model.text import text_prefix
from tests.support.tiny import FAMILIES, attentions, decoder, ids

HEAD = torch.tensor([1])  # of a model without a tokenizer: its bos_token_id
CASES = [
    (family, attention, dtype)
    for family in FAMILIES
    for attention in attentions(family)
    for dtype in (torch.float64, torch.float32)
]
BOUND = {torch.float64: 1e-9, torch.float32: 1e-5}  # of the largest logit
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None}


def attached(hf: PreTrainedModel | None = None, **settings: Any) -> MemoryModel:
    """A model that reads chunks whatever they score."""
    return MemoryModel.attach(decoder() if hf is None else hf, None, **{"min_score": None, **settings})


def told(model: MemoryModel, *texts: Tensor, **options: Any) -> Memory:
    memory = model.new_memory(**options)
    for text in texts:
        model.write(memory, text)
    return memory


@torch.no_grad()
def stock(hf: PreTrainedModel, *parts: Tensor) -> Tensor:  # [T, V]
    """Logits of a text that has it all."""
    logits: Tensor = hf(input_ids=torch.cat(parts)[None]).logits[0]
    return logits


def require_close(got: Tensor, expected: Tensor) -> None:
    bound = BOUND[got.dtype] * float(expected.abs().max())
    torch.testing.assert_close(got, expected, atol=bound, rtol=0)


@pytest.mark.parametrize(("family", "attention", "dtype"), CASES)
def test_read_one_chunk_equals_its_text_in_the_context(family: str, attention: str, dtype: torch.dtype) -> None:
    """Rows padded on the left, chunks of several lengths, windows shorter than any of them."""
    hf = decoder(family, attention=attention, dtype=dtype)
    model, count = attached(hf), 4
    chunks = [ids(20 + 9 * row, seed=row) for row in range(count)]
    rests = [ids(3 + 5 * (2 * row % count), seed=50 + row) for row in range(count)]
    memories = [model.new_memory(seed=row) for row in range(count)]
    model.write(memories, chunks)
    for rows in ([0], [1, 3], range(count)):
        logits = model.read([memories[row] for row in rows], [rests[row] for row in rows]).logits
        for got, row in zip(logits, rows, strict=True):
            expected = stock(hf, HEAD, chunks[row], rests[row])[-len(rests[row]) :]
            require_close(got[-len(rests[row]) :], expected)


@pytest.mark.parametrize(("family", "attention"), [(f, a) for f in FAMILIES for a in attentions(f)])
def test_generate_behind_one_chunk_equals_its_text_in_the_context(family: str, attention: str) -> None:
    hf = decoder(family, attention=attention, dtype=torch.float64)
    model, chunks = attached(hf), [ids(30, seed=1), ids(21, seed=2)]
    rests = [ids(4, seed=3), ids(9, seed=4)]
    memories = [told(model, chunk) for chunk in chunks]
    made = model.generate(memories, rests, max_new_tokens=14, **GREEDY)[:, -14:]
    for row, (chunk, rest) in enumerate(zip(chunks, rests, strict=True)):
        whole = torch.cat([HEAD, chunk, rest])[None]
        assert made[row].tolist() == hf.generate(whole, max_new_tokens=14, **GREEDY)[0, -14:].tolist()


def test_read_in_batches_up_to_eight() -> None:
    hf = decoder(dtype=torch.float64)
    model = attached(hf)
    chunks = [ids(5 + 6 * row, seed=row) for row in range(8)]
    rests = [ids(2 + row % 3, seed=50 + row) for row in range(8)]
    memories = [told(model, chunk) for chunk in chunks]
    for count in range(1, 9):
        logits = model.read(memories[:count], rests[:count]).logits
        for got, chunk, rest in zip(logits, chunks, rests, strict=False):
            require_close(got[-len(rest) :], stock(hf, HEAD, chunk, rest)[-len(rest) :])


@pytest.mark.parametrize("dtype", BOUND)
def test_read_several_chunks_and_memories_equals_the_block_masked_pass(dtype: torch.dtype) -> None:
    hf = decoder(dtype=dtype)
    model, chunks = attached(hf), [ids(20, seed=1), ids(31, seed=2), ids(7, seed=3)]
    rests = [ids(9, seed=4), ids(15, seed=5), ids(4, seed=6)]
    own, team, empty = told(model, chunks[0]), told(model, *chunks[1:]), model.new_memory()
    logits = model.read([[own, team], team, empty], rests).logits
    expected = [
        reference.read_text(hf, HEAD, chunks, rests[0]),
        reference.read_text(hf, HEAD, chunks[1:], rests[1]),
        stock(hf, rests[2]),
    ]
    for got, right in zip(logits, expected, strict=True):
        require_close(got[-len(right) :], right)
    turned = model.read([[team, own]], [rests[0]]).logits[0]
    require_close(turned, reference.read_text(hf, HEAD, [*chunks[1:], chunks[0]], rests[0]))


@pytest.mark.parametrize(("family", "attention"), [(f, a) for f in FAMILIES for a in attentions(f)])
def test_read_several_chunks_of_every_family_equals_a_block_mask(family: str, attention: str) -> None:
    """Without a head, a chunk's positions do not matter to itself: one stock pass with a mask of blocks, whose angles
    transformers rounds to float32."""
    hf = decoder(family, attention=attention, dtype=torch.float64)
    model, chunks, rest = attached(hf), [ids(20, seed=1), ids(31, seed=2)], ids(9, seed=4)
    memory = told(model, *chunks, head=())
    text = torch.cat([*chunks, rest])
    block = torch.cat([torch.full((len(part),), number) for number, part in enumerate([*chunks, rest])])
    place = torch.arange(len(text))

    def seen(window: int | None) -> Tensor:  # [1, 1, T, T]
        inside = (block[:, None] == block) | (block[:, None] == 2)
        near = place[:, None] - place < (window or len(text))
        return (inside & near & (place <= place[:, None]))[None, None]

    with torch.no_grad():
        out = hf(input_ids=text[None], attention_mask=model.backbone.masks_of(seen), position_ids=place[None])
    expected = out.logits[0, -len(rest) :]
    got = model.read(memory, rest).logits[0]
    torch.testing.assert_close(got, expected, atol=2e-6 * float(expected.abs().max()), rtol=0)


@pytest.mark.parametrize("kind", ["dynamic", "longrope", "yarn", "llama3", "linear"])
@pytest.mark.parametrize("tokens", [10, 40])
def test_read_turns_keys_as_the_prompt_is_turned(kind: str, tokens: int) -> None:
    """Within the length that the model was trained for the context is equalled; beyond, keys turn as the prompt's."""
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": 1e4, "factor": 4.0}
    if kind == "longrope":
        rope |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    if kind in ("longrope", "yarn", "llama3"):
        rope |= {"original_max_position_embeddings": 48}
    if kind == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    hf = decoder(dtype=torch.float64, max_position_embeddings=48, rope_parameters=rope)
    model, chunk, rest = attached(hf), ids(20, seed=1), ids(tokens, seed=2)
    memory = told(model, chunk)
    got = model.read(memory, rest).logits[0]
    if 1 + len(chunk) + tokens <= 48 or not model.backbone.length_dependent:
        require_close(got, stock(hf, HEAD, chunk, rest)[-tokens:])
    ahead = model.generate(memory, rest, max_new_tokens=1, return_dict_in_generate=True, output_logits=True, **GREEDY)
    torch.testing.assert_close(ahead.logits[0][0].double(), got[-1], atol=1e-6, rtol=0)


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_generate_with_beams_equals_those_of_the_whole_text(options: dict[str, Any]) -> None:
    hf = decoder(dtype=torch.float64)
    model, chunk, rest = attached(hf), ids(30, seed=1), ids(5, seed=2)
    memory = told(model, chunk)
    made = model.generate(memory, rest, max_new_tokens=6, **GREEDY, **options)[:, -6:]
    whole = torch.cat([HEAD, chunk, rest])[None]
    assert made.tolist() == hf.generate(whole, max_new_tokens=6, **GREEDY, **options)[:, -6:].tolist()


def test_generate_looks_up_and_assists_as_with_the_whole_text() -> None:
    hf = decoder(dtype=torch.float64)
    model, chunk, rest = attached(hf), ids(30, seed=1), ids(12, seed=2)
    memory = told(model, chunk)
    plain = model.generate(memory, rest, max_new_tokens=8, **GREEDY)
    assert torch.equal(model.generate(memory, rest, max_new_tokens=8, prompt_lookup_num_tokens=3, **GREEDY), plain)
    drafts = decoder(dtype=torch.float64)
    assert torch.equal(model.generate(memory, rest, max_new_tokens=8, assistant_model=drafts, **GREEDY), plain)


@pytest.mark.parametrize(
    "storage",
    [StorageConfig("text"), StorageConfig("host"), StorageConfig("disk"), StorageConfig("device")],
    ids=lambda storage: storage.tier,
)
def test_tiers_read_alike(storage: StorageConfig, tmp_path: Any) -> None:
    hf = decoder(dtype=torch.float64)
    model, chunks, rest = attached(hf), [ids(20, seed=1), ids(31, seed=2)], ids(9, seed=4)
    memory = told(model, *chunks, storage=storage)
    memory.save(tmp_path / "m")
    for held in (memory, memory.fork(), Memory.load(tmp_path / "m")):
        model.writer.cache.__init__(2**30)  # type: ignore[misc, union-attr]
        require_close(model.read(held, rest).logits[0], reference.read_text(hf, HEAD, chunks, rest))
        assert held.nbytes.get(storage.tier, 0) > 0


def test_int8_slots_read_nearly_the_same() -> None:
    hf = decoder()
    model, chunk, rest = attached(hf), ids(30, seed=1), ids(9, seed=4)
    exact = stock(hf, HEAD, chunk, rest)[-len(rest) :]
    memory = told(model, chunk, storage=StorageConfig("host", int8=True))
    off = (model.read(memory, rest).logits[0] - exact).abs().max() / exact.abs().max()
    assert 0 < float(off) < 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_read_where_no_row_reads_is_the_stock_call(family: str) -> None:
    hf = decoder(family)
    model, rests = attached(hf, min_score=1.0), [ids(9, seed=1), ids(4, seed=2)]
    memories = [told(model, ids(30, seed=3)), model.new_memory()]
    mask = torch.tensor([[1] * 9, [0] * 5 + [1] * 4])
    padded = torch.stack([rests[0], torch.cat([torch.zeros(5, dtype=torch.long), rests[1]])])
    calls: list[Any] = []
    handle = hf.register_forward_pre_hook(lambda _, args, kwargs: calls.append(kwargs), with_kwargs=True)
    logits = model.read(memories, rests).logits
    handle.remove()
    assert calls[0].keys() <= {"input_ids", "attention_mask"}
    with torch.no_grad():
        assert torch.equal(logits, hf(input_ids=padded, attention_mask=mask).logits)
        assert torch.equal(model.read(memories[0], rests[0]).logits, hf(input_ids=rests[0][None]).logits)
    got = model.generate(memories, rests, max_new_tokens=8, **GREEDY)
    assert torch.equal(got, hf.generate(padded, attention_mask=mask, max_new_tokens=8, **GREEDY))


def test_forget_leaves_what_a_memory_told_only_the_rest_has(tmp_path: Any) -> None:
    model = attached(decoder(dtype=torch.float64))
    texts, rest = [ids(20 + number, seed=number) for number in range(4)], ids(9, seed=9)
    memory, never = told(model, *texts), model.new_memory()
    for number in (0, 2, 3):
        model.write(never, texts[number], id=number)
    receipt = model.forget(memory, 1)
    assert (receipt.id, receipt.chunks, receipt.exact) == (1, 1, True)
    memory.save(tmp_path / "m")
    for held in (memory, Memory.load(tmp_path / "m")):
        assert [record.id for record in held.writes] == [0, 2, 3]
        assert torch.equal(model.read(held, rest).logits, model.read(never, rest).logits)
        assert model.search(held, rest) == model.search(never, rest)
    with pytest.raises(InvalidInputError, match="no write 1"):
        model.forget(memory, 1)


def test_forget_is_not_exact_where_something_was_dropped_after_the_write() -> None:
    model = attached(slots=64, chunk=32)
    memory = told(model, ids(30, seed=1), ids(30, seed=2))
    assert model.forget(memory.fork(), 1).exact
    model.write(memory, ids(30, seed=3))
    assert [record.id for record in memory.writes] == [1, 2]
    assert not model.forget(memory.fork(), 1).exact
    assert not model.forget(memory.fork(), 2).exact


def test_write_beyond_the_capacity_drops_whole_chunks() -> None:
    model = attached(slots=100, chunk=32)
    memory = told(model, ids(90, seed=1))
    assert [chunk.tokens for chunk in memory.chunks or ()] == [32, 32, 26]
    model.write(memory, ids(20, seed=2))
    assert [(chunk.write, chunk.tokens) for chunk in memory.chunks or ()] == [(0, 32), (0, 26), (1, 20)]


@pytest.mark.parametrize("slots", [40, 25])
def test_read_takes_the_best_chunks_that_fit_oldest_first(slots: int) -> None:
    hf = decoder(dtype=torch.float64)
    texts = [ids(20, seed=1), ids(25, seed=2), ids(18, seed=3)]
    model = attached(hf, retrieval=RetrievalConfig(slots=slots, min_score=None))
    memory = told(model, *texts)
    rest = torch.cat([texts[2][:4], texts[0][4:7]])  # asks about the third, then the first
    ranked = [write for write, _ in model.search(memory, rest, k=3)]
    picked, left = [], slots
    for write in ranked:
        if len(texts[write]) <= left:
            picked.append(write)
            left -= len(texts[write])
    expected = reference.read_text(hf, HEAD, [texts[write] for write in sorted(picked)], rest)
    require_close(model.read(memory, rest).logits[0], expected)


def test_read_shrinks_what_it_reads_to_the_positions_that_are_left() -> None:
    hf = decoder(dtype=torch.float64, max_position_embeddings=64)
    model, texts = attached(hf), [ids(30, seed=1), ids(40, seed=2)]
    memory, rest = told(model, *texts), ids(20, seed=3)
    best = next(write for write, _ in model.search(memory, rest, k=2) if len(texts[write]) <= 64 - 1 - 20)
    require_close(model.read(memory, rest).logits[0], reference.read_text(hf, HEAD, [texts[best]], rest))
    assert torch.equal(model.read(memory, ids(64)).logits, hf(input_ids=ids(64)[None]).logits)
    with pytest.raises(InvalidInputError, match=r"65 tokens.* reads 64"):
        model.read(memory, ids(65))


def test_write_that_fails_leaves_the_memory_as_it_was() -> None:
    model = attached(chunk=16)
    memory = told(model, ids(30, seed=1))
    before = memory.state().header

    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    for options in ({"commit": fail}, {"progress": fail}):
        with pytest.raises(KeyboardInterrupt):
            model.write(memory, ids(60, seed=2), **options)  # type: ignore[arg-type]
        assert memory.state().header == before
    receipts: list[Any] = []
    receipt = model.write(memory, ids(60, seed=2), commit=receipts.append)
    assert receipts == [receipt] and receipt.chunks == 4


def test_read_needs_the_model_that_wrote() -> None:
    model, other = attached(), attached(decoder(initializer_range=0.1))
    memory = told(model, ids(20))
    with pytest.raises(MemoryMismatchError, match="weights fingerprint"):
        other.read(memory, ids(5))
    learned = MemoryModel.attach(decoder(), None, slots=24, slots_per_write=6)
    with pytest.raises(MemoryMismatchError, match="writer"):
        learned.read(memory, ids(5))


@pytest.mark.parametrize(
    ("given", "read"),
    [(torch.cat([HEAD, ids(9)]), ids(9)), (ids(9), ids(9))],
    ids=["with its head", "without"],
)
def test_read_ids_with_or_without_their_head(given: Tensor, read: Tensor) -> None:
    hf = decoder(dtype=torch.float64)
    model, chunk = attached(hf), ids(20, seed=1)
    memory = told(model, chunk)
    out = model.read(memory, given)
    assert out.logits.shape[1] == len(given)
    require_close(out.logits[0, -len(read) :], stock(hf, HEAD, chunk, read)[-len(read) :])
    made = model.generate(memory, given, max_new_tokens=3, **GREEDY)
    assert made.shape == (1, len(given) + 3) and torch.equal(made[0, : len(given)], given)


def test_config_without_text_keeps_slots_and_finds_by_the_latent_score() -> None:
    hf = decoder(dtype=torch.float64)
    model = attached(hf, keep_text=False)
    memory, rest = told(model, ids(20, seed=1), ids(31, seed=2)), ids(9, seed=4)
    assert memory.chunks is not None and memory.chunks.storage.tier == "host"
    assert all(chunk.ids is None and chunk.text is None and not chunk.words for chunk in memory.chunks)
    require_close(
        model.read(memory, rest).logits[0], reference.read_text(hf, HEAD, [ids(20, seed=1), ids(31, seed=2)], rest)
    )
    with pytest.raises(InvalidInputError, match="keep_text"):
        model.new_memory(storage=StorageConfig("text"))


def test_scores_lie_between_0_and_1_and_do_not_depend_on_other_chunks_much() -> None:
    model = attached()
    memory, rest = told(model, ids(40, seed=1)), ids(40, seed=1)[5:15]
    alone = dict(model.search(memory, rest))[0]
    for number in range(2, 30):
        model.write(memory, ids(40, seed=number))
    scores = dict(model.search(memory, rest, k=100))
    assert len(scores) == 29 and all(0 <= score <= 1 for score in scores.values())
    assert max(scores, key=scores.__getitem__) == 0 and abs(scores[0] - alone) < 0.2


def test_attach_writes_text_slots_unless_it_is_told_otherwise() -> None:
    assert MemoryModel.attach(decoder()).config == MemoryConfig()
    assert MemoryModel.attach(decoder(), slots=24, slots_per_write=6).config.writer == "learned"


def rows_of(memory: Memory) -> Sequence[int]:
    return [chunk.tokens for chunk in memory.chunks or ()]


def test_write_a_batch_leaves_what_single_writes_leave() -> None:
    model = attached(chunk=16)
    texts = [ids(40, seed=1), ids(7, seed=2), ids(16, seed=3)]
    memories = [model.new_memory() for _ in texts]
    receipts = model.write(memories, texts, source="a file", metadata={"topic": "cats"})
    assert [receipt.chunks for receipt in receipts] == [3, 1, 1]
    assert [rows_of(memory) for memory in memories] == [rows_of(told(model, text)) for text in texts]
    assert memories[0].writes[0].source == "a file" and memories[0].writes[0].metadata == {"topic": "cats"}
    with pytest.raises(InvalidInputError, match="twice"):
        model.write([memories[0], memories[0]], texts[:2])


def test_a_read_lets_its_slots_go_without_the_garbage_collector() -> None:
    model = MemoryModel.attach(decoder(), min_score=None)
    [chunk] = model.writer.encode([((1,), ids(7))])
    gc.collect()
    gc.disable()
    try:
        cache = text_prefix(model.backbone, [[chunk.slots]], [0], torch.ones(1, 3, dtype=torch.bool))
        held = weakref.ref(cache)
        del cache
        assert held() is None
    finally:
        gc.enable()
