"""The seam between memories and what writes them, and the scope in which a write happens whole or not at all."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Protocol

from torch import Tensor

from remanence.config import integer
from remanence.errors import InvalidInputError
from remanence.memory.memory import Memory
from remanence.memory.undo import Undo
from remanence.memory.writes import Receipt

Piece = tuple[Tensor, str | None]  # ids `[n]` of one chunk, and what they say
Progress = Callable[[int, int], None]


class Writer(Protocol):
    """How a model writes."""

    def pieces(self, memory: Memory, content: Any, allow_special: bool) -> list[Piece]:
        """A text cut into chunks."""
        ...

    def put(
        self,
        memories: Sequence[Memory],
        texts: Sequence[Sequence[Piece]],
        undos: Sequence[Undo],
        evict: Tensor | None,
        progress: Progress | None,
    ) -> list[tuple[Tensor | None, ...]]:
        """Write the chunks of a text into each memory; per chunk, which ranks of a pool were evicted."""
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
        ordered = [undos[id(memory)] for memory in memories]
        if id_ is not None:
            id_ = integer("id", id_)
            for memory, undo in zip(memories, ordered, strict=True):
                if id_ < memory.next_id:
                    raise InvalidInputError(f"id={id_} is taken: the next write of this memory is {memory.next_id}")
                undo.set(memory, write_count=id_)
        firsts = [memory.next_serial for memory in memories]
        evicted = writer.put(memories, texts, ordered, evict, progress)
        receipts = []
        for row, (memory, undo) in enumerate(zip(memories, ordered, strict=True)):
            tokens = sum(len(ids) for ids, _ in texts[row])
            first = None if memory.chunks is not None else firsts[row]
            record = memory.record(undo, tokens, first, **about)
            if memory.chunks is not None:
                memory.evict(record.id, undo)
            receipts.append(Receipt(record.id, tokens, len(texts[row]), evicted[row]))
        if commit is not None:
            commit(receipts)
        return receipts
