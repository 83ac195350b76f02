"""The seam between memories and what writes them, and the scope in which a write happens whole or not at all."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple, Protocol, TypedDict

from torch import Tensor

from remanence.config import integer
from remanence.errors import InvalidInputError
from remanence.memory.memory import Memory
from remanence.memory.undo import Undo
from remanence.memory.writes import Receipt

Piece = tuple[Tensor, str | None]  # ids `[n]` of one chunk, and what they say
Evicted = tuple[Tensor | None, ...]  # per chunk, which ranks of a pool were evicted
Progress = Callable[[int, int], None]


class WriteOptions(TypedDict, total=False):
    """The keywords of `MemoryModel.write`."""

    source: str | None
    metadata: Mapping[str, Any] | None
    id: int | None
    allow_special: bool
    commit: Callable[[Any], object] | None
    progress: Progress | None
    evict: Tensor | None


class Row(NamedTuple):
    """A text on its way into a memory."""

    memory: Memory
    pieces: Sequence[Piece]
    undo: Undo


class Writer(Protocol):
    """How a model writes."""

    def pieces(self, memory: Memory, content: Any, allow_special: bool) -> list[Piece]:
        """A text cut into chunks."""
        ...

    def put(self, rows: Sequence[Row], evict: Tensor | None, progress: Progress | None) -> list[Evicted]:
        """Write the chunks of each row into its memory; returns what each row evicted."""
        ...


def write(
    writer: Writer,
    memories: Sequence[Memory],
    texts: Sequence[Sequence[Piece]],
    about: Mapping[str, Any],
    *,
    id_: int | None = None,
    evict: Tensor | None = None,
    progress: Progress | None = None,
    commit: Callable[[list[Receipt]], object] | None = None,
) -> list[Receipt]:
    """Write a text into each memory: all of it, or nothing if anything raises, `commit` included.

    Args:
        about: what the record of each write says besides: `source`, `metadata`.
        id_: of each write; None: the next of its memory.
    """
    if len({id(memory) for memory in memories}) < len(memories):
        raise InvalidInputError("the same memory was given twice; give each row its own, or a fork")
    if evict is not None and sum(map(len, texts)) > 1:
        raise InvalidInputError(f"evict= replays one write, but this call makes {sum(map(len, texts))}")
    with ExitStack() as scopes:
        undos = {id(m): scopes.enter_context(m.changing()) for m in sorted(memories, key=id)}
        rows = [Row(memory, pieces, undos[id(memory)]) for memory, pieces in zip(memories, texts, strict=True)]
        if id_ is not None:
            id_ = integer("id", id_)
            for memory, _, undo in rows:
                if id_ < memory.next_id:
                    raise InvalidInputError(f"id={id_} is taken: the next write of this memory is {memory.next_id}")
                undo.set(memory, write_count=id_)
        firsts = [memory.next_serial for memory in memories]
        evicted = writer.put(rows, evict, progress)
        receipts = []
        for (memory, pieces, undo), first, ranks in zip(rows, firsts, evicted, strict=True):
            tokens = sum(len(ids) for ids, _ in pieces)
            record = memory.record(undo, tokens, None if memory.chunks is not None else first, **about)
            if memory.chunks is not None:
                memory.evict(record.id, undo)
            receipts.append(Receipt(record.id, tokens, len(pieces), ranks))
        if commit is not None:
            commit(receipts)
        return receipts
