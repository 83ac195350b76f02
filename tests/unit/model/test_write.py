"""A write happens whole or not at all, in every memory it goes to, and costs what it writes, not what is there."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from remanence import Memory, MemoryModel
from remanence.errors import CorruptMemoryError, InvalidInputError
from remanence.memory import Pool, Receipt
from remanence.model import text
from tests.support import tiny
from tests.support.models import KINDS, everything, told
from tests.support.tiny import ids

CHUNK = 16
LONG = ids(5 * CHUNK, seed=50)  # five chunks
CLOSE = {"atol": 1e-5, "rtol": 0.0}

every_kind = pytest.mark.parametrize("kind", KINDS)
learned = pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "text"])


class Interruption(BaseException):
    """Stands for Ctrl-C and everything else that nobody catches."""


@pytest.fixture(autouse=True)
def several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text writer, too, encodes a long text in several passes."""
    monkeypatch.setattr(text, "_AT_ONCE", 2 * CHUNK)


@contextmanager
def interrupted(model: MemoryModel, at: int) -> Iterator[list[int]]:
    """The last layer raises at the end of the given pass; yields the passes so far."""
    passes: list[int] = []

    def hook(*_: Any) -> None:
        passes.append(len(passes) + 1)
        if len(passes) == at:
            raise Interruption

    handle = model.backbone.layers[-1].register_forward_hook(hook)
    try:
        yield passes
    finally:
        handle.remove()


def passes_of(kind: str, writes: int) -> list[int]:
    """The passes of a long write; of the many by which a text writer gets to know a model the first ones only."""
    model = KINDS[kind](chunk=CHUNK)
    memory = told(model, writes=writes)
    with interrupted(model, 0) as passes:
        model.write(memory, LONG)
    return passes if len(passes) <= 6 else passes[:2] + passes[-4:]


@every_kind
@pytest.mark.parametrize("writes", [0, 3])
def test_write_that_is_cut_short_at_any_pass_leaves_no_trace(kind: str, writes: int) -> None:
    right, cuts = None, passes_of(kind, writes)
    assert len(cuts) >= 3
    for cut in cuts:
        model = KINDS[kind](chunk=CHUNK)
        memory = told(model, writes=writes)
        before, fork = everything(memory), memory.fork()
        with pytest.raises(Interruption), interrupted(model, cut):
            model.write(memory, LONG)
        assert everything(memory) == before
        model.write(memory, LONG)
        model.write(fork, LONG)
        right = everything(fork, times=False) if right is None else right
        assert everything(memory, times=False) == right


@every_kind
@pytest.mark.parametrize("writes", [0, 3])
def test_write_whose_progress_report_raises_leaves_no_trace(kind: str, writes: int) -> None:
    model = KINDS[kind](chunk=CHUNK)
    memory = told(model, writes=writes)
    before, reports = everything(memory), list[int]()
    model.write(memory.fork(), LONG, progress=lambda done, of: reports.append(done))
    assert len(reports) >= 3
    for last in reports:

        def progress(done: int, of: int, last: int = last) -> None:
            if done == last:
                raise Interruption

        with pytest.raises(Interruption):
            model.write(memory, LONG, progress=progress)
        assert everything(memory) == before


@every_kind
def test_write_reports_progress_up_to_the_number_of_chunks(kind: str) -> None:
    model = KINDS[kind](chunk=CHUNK)
    reports: list[tuple[int, int]] = []
    model.write(model.new_memory(), LONG, progress=lambda *report: reports.append(report))
    done = [count for count, _ in reports]
    assert done == sorted(set(done)) and done[-1] == 5 and {of for _, of in reports} == {5}


@every_kind
@pytest.mark.parametrize("writes", [0, 3])
def test_write_is_undone_where_commit_raises(kind: str, writes: int) -> None:
    model = KINDS[kind](chunk=CHUNK)
    memory = told(model, writes=writes)
    before, seen = everything(memory), list[tuple[Receipt, int]]()

    def commit(receipt: Receipt) -> None:
        seen.append((receipt, memory.write_count))
        raise Interruption

    with pytest.raises(Interruption):
        model.write(memory, LONG, commit=commit)
    assert everything(memory) == before
    ((receipt, count),) = seen
    assert (receipt.id, receipt.tokens, receipt.chunks) == (writes, len(LONG), 5) and count == writes + 1


@every_kind
def test_write_hands_commit_what_it_returns(kind: str) -> None:
    model = KINDS[kind]()
    one, other = told(model, 0), told(model, 1)
    seen: list[Any] = []
    assert seen == [] and [model.write(one, ids(9), commit=seen.append)] == seen
    both = model.write([one, other], [ids(9), ids(3)], commit=seen.append)
    assert seen[1:] == [both] and len(both) == 2


@every_kind
def test_write_to_several_memories_is_undone_in_all_of_them(kind: str) -> None:
    model = KINDS[kind](chunk=CHUNK)
    memories = [told(model, seed, writes=seed) for seed in range(3)]
    before, texts = [everything(memory) for memory in memories], [ids(40), ids(7), LONG]
    with interrupted(model, 0) as passes:
        model.write([memory.fork() for memory in memories], texts)
    for cut in list(passes):
        with pytest.raises(Interruption), interrupted(model, cut):
            model.write(memories, texts)
        assert [everything(memory) for memory in memories] == before
    with pytest.raises(Interruption):
        model.write(memories, texts, commit=_interrupt)
    assert [everything(memory) for memory in memories] == before


def _interrupt(_: Any) -> None:
    raise Interruption


@learned
def test_write_to_several_memories_of_which_one_is_broken_changes_none(kind: str) -> None:
    model = KINDS[kind]()
    memories = [told(model, seed) for seed in range(3)]
    assert memories[2].newest is not None
    memories[2].newest.fill_(torch.nan)
    before = [everything(memory) for memory in memories]
    with pytest.raises(CorruptMemoryError):
        model.write(memories, [ids(9), ids(9), ids(9)])
    assert [everything(memory) for memory in memories] == before


class Largest(TorchDispatchMode):
    """How many bytes the largest tensor takes that is made in this scope."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes, self._there = 0, set[int]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        there = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and _storage(leaf) not in there:
                self.nbytes = max(self.nbytes, leaf.untyped_storage().nbytes())
        return out


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@learned
def test_write_copies_no_pool_however_long_the_text(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = KINDS[kind](chunk=CHUNK, slots=200 * tiny.K)
    memory = told(model)
    _ = memory.pool.order  # sorted once

    def clone(_: Pool) -> Pool:
        raise AssertionError("the pool was copied")

    monkeypatch.setattr(Pool, "clone", clone)
    with Largest() as whole:
        memory.pool.keys.clone()
    with Largest() as made:
        model.write(memory, LONG)
        with pytest.raises(Interruption):
            model.write(memory, LONG, commit=_interrupt)
    assert 0 < made.nbytes < whole.nbytes / 2


@every_kind
def test_write_refuses_one_memory_in_two_rows(kind: str) -> None:
    model = KINDS[kind]()
    memory = told(model)
    before = everything(memory)
    with pytest.raises(InvalidInputError, match="given twice"):
        model.write([memory, memory], [[3, 4], [5, 6]])
    assert everything(memory) == before


@every_kind
def test_write_takes_ids_that_count_up(kind: str) -> None:
    model = KINDS[kind]()
    memory = told(model)
    assert model.write(memory, ids(9), id=7).id == 7
    assert model.write(memory, ids(9)).id == 8
    assert [record.id for record in memory.writes] == [0, 1, 2, 7, 8]
    before = everything(memory)
    for taken in (0, 5, 8):
        with pytest.raises(InvalidInputError, match=f"id={taken} is taken: the next write of this memory is 9"):
            model.write(memory, ids(9), id=taken)
    assert everything(memory) == before


@every_kind
def test_write_keeps_source_and_metadata_with_its_record(kind: str) -> None:
    model = KINDS[kind]()
    memory = model.new_memory()
    receipt = model.write(memory, ids(9), source="notes.md", metadata={"topic": ["travel"]})
    (record,) = memory.writes
    assert (record.id, record.tokens, record.source, record.metadata) == (
        receipt.id,
        9,
        "notes.md",
        {"topic": ["travel"]},
    )
    assert record.time is not None and record.time.tzinfo is not None
    for wrong in ({"a": torch.nan}, {"a": object()}, ["topic"]):
        with pytest.raises(InvalidInputError, match="metadata is a JSON object"):
            model.write(memory, ids(9), metadata=wrong)  # type: ignore[arg-type]
    assert memory.writes == [record]


@every_kind
def test_write_of_the_same_from_the_same_seed_makes_the_same_memory_bit_for_bit(kind: str) -> None:
    model = KINDS[kind]()
    first, second, other = (told(model, seed, writes=8) for seed in (0, 0, 1))
    assert everything(first, times=False) == everything(second, times=False)
    assert everything(first, times=False) != everything(other, times=False)


def agree(one: Memory, other: Memory) -> None:
    """Raise where slots or the table of writes differ by more than rounding."""
    timeless = [[(record.id, record.tokens, record.slots) for record in memory.writes] for memory in (one, other)]
    assert timeless[0] == timeless[1]
    if one.chunks is not None and other.chunks is not None:
        assert [chunk.key for chunk in one.chunks] == [chunk.key for chunk in other.chunks]
        for mine, its in zip(one.chunks, other.chunks, strict=True):
            torch.testing.assert_close(mine.latent, its.latent, atol=1e-3, rtol=0.0)
    elif one.written or other.written:
        for name, tensor in one.pool.tensors.items():
            torch.testing.assert_close(tensor, other.pool.tensors[name], **CLOSE)


@every_kind
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_write_to_several_memories_does_to_each_what_it_does_alone(kind: str, attention: str) -> None:
    model = KINDS[kind](tiny.decoder(attention=attention), chunk=40)
    together = [told(model, seed, writes) for seed, writes in enumerate([0, 3, 0, 1, 2])]
    alone = [memory.fork() for memory in together]
    texts = [ids(length, seed=length) for length in (2, 30, 17, 3, 90)]
    receipts = model.write(together, texts)
    for row, (memory, text_of_row) in enumerate(zip(alone, texts, strict=True)):
        receipt = model.write(memory, text_of_row)
        assert (receipt.id, receipt.tokens, receipt.chunks) == (
            receipts[row].id,
            receipts[row].tokens,
            receipts[row].chunks,
        )
        agree(together[row], memory)
        torch.testing.assert_close(
            model.read(together[row], ids(6)).logits, model.read(memory, ids(6)).logits, atol=1e-4, rtol=0.0
        )


@every_kind
def test_write_does_not_hang_on_what_stands_beside_a_row(kind: str) -> None:
    model = KINDS[kind]()
    made: list[Sequence[Memory]] = []
    for beside in (ids(14, seed=5), ids(14, seed=6)):
        pair = [told(model, 0), told(model, 1)]
        model.write(pair, [ids(14), beside])
        made.append(pair)
    assert everything(made[0][0], times=False) == everything(made[1][0], times=False)
    assert everything(made[0][1], times=False) != everything(made[1][1], times=False)
