"""One memory of a store: what its owner can do with it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol

from remanence.errors import ConflictError, StoreError
from remanence.store.database import waits
from remanence.store.inputs import about_of
from remanence.store.ledger import PAGE, Ledger
from remanence.store.queries import now
from remanence.store.rows import Content, Found, Row, Told

if TYPE_CHECKING:
    from remanence.memory import Memory
    from remanence.model.model import MemoryModel
    from remanence.model.read import Answer
    from remanence.store.cutting import Cutter
    from remanence.store.residents import Residents


class Home(Protocol):
    """What a memory needs of its store."""

    ledger: Ledger
    residents: "Residents"

    def cutter(self, found: Found) -> "Cutter": ...
    def model_of(self, found: Found) -> "MemoryModel": ...
    def erase(
        self,
        memory: "StoredMemory",
        seqs: list[int] | None = None,
        *,
        cascade: bool = False,
        dry_run: bool = False,
        actor: str | None = None,
    ) -> dict[str, Any]: ...


class StoredMemory:
    """A memory by its name. Handles are cheap: the memory itself is opened when something is asked.

    Attributes:
        found: the memory as it was when this was made.
    """

    def __init__(self, store: Home, found: Found) -> None:
        self._store, self.found = store, found

    @property
    def name(self) -> str:
        return self.found.name

    @property
    def owner(self) -> str:
        return self.found.owner

    @property
    def version(self) -> int:
        """The number of its newest row, now."""
        return self._store.ledger.version(self.found)

    def tell(
        self,
        told: Any,
        *,
        source: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expires_at: datetime | None = None,
        idempotency_key: str | None = None,
        supersedes: int | None = None,
        version: int | None = None,
        actor: str | None = None,
    ) -> Row:
        """Write text, messages or ids. When this returns, the write is on disk, and any answer from now on may read it.

        A text memory takes the tokenizer only: its chunks are encoded when something is asked.

        Args:
            source, metadata: kept with the write.
            expires_at: when it is forgotten.
            idempotency_key: telling again with the same key changes nothing; "auto": nor does the same text within ten
                minutes.
            supersedes: a write that this one takes the place of.
            version: refuse if the memory has another version by now.
            actor: who says so, for the record.

        Raises:
            InvalidInputError: nothing to write, or no text, messages or ids.
            ConflictError, NotFoundError, QuotaError: as `Ledger.tell`.
        """
        about = about_of(source, metadata, actor, idempotency_key, expires_at)
        content = self._store.cutter(self.found).cut(told, self.found.settings)
        about |= {"idempotency_key": idempotency_key, "supersedes": supersedes}
        if self.found.settings["writer"] == "text" or supersedes is not None:
            return self._store.ledger.tell(self.found, content, version=version, **about)
        for _ in waits():
            try:
                return self._encoded(content, version, about)
            except ConflictError:
                if version is not None:
                    raise
        raise StoreError(f"others write to {self.name!r} all the time; nothing was written; do it again")

    def _encoded(self, content: Content, version: int | None, about: dict[str, Any]) -> Row:
        """A learned write starts from the newest slots, so it is computed at the head, and committed if it still is."""
        from remanence.store.replay import encode, stamp

        store, time, made = self._store, now(), list[Row]()
        model = store.model_of(self.found)
        with store.residents.at_head(self.found, model, alone=True) as (current, held):

            def commit(_: Any) -> None:
                at = current.version if version is None else version
                row = store.ledger.tell(current, content, version=at, created=time, stamp=stamp(model), **about)
                made.append(row)
                if row.deduplicated:
                    raise _ThereAlready

            coming = Told(current.version + 1, content, about["source"], about["metadata"], time)
            try:
                encode(model, held.memory, coming, commit)
            except _ThereAlready:
                return made[0]
            store.residents.committed(current, made[0].seq)
            return made[0]

    @contextmanager
    def opened(self) -> "Iterator[Memory]":
        """The memory as it is now, for `MemoryModel`. Do not write to it: `tell` does."""
        model = self._store.model_of(self.found)
        with self._store.residents.at_head(self.found, model) as (_, held):
            yield held.memory

    def ask(self, question: Any, *, max_new_tokens: int = 64, **kwargs: Any) -> "Answer":
        """As `MemoryModel.ask`; sources are numbers of writes."""
        with self.opened() as memory:
            return self._store.model_of(self.found).ask(memory, question, max_new_tokens=max_new_tokens, **kwargs)

    def recall(self, question: Any, k: int = 5) -> list[tuple[Row, float]]:
        """The k writes that the model finds best for a question, with their scores."""
        with self.opened() as memory:
            scored = self._store.model_of(self.found).search(memory, question, k)
        return [(self.write(seq), score) for seq, score in scored]

    def writes(self, *, limit: int = PAGE, after: int = 0, newest_first: bool = False) -> list[Row]:
        """Writes on record, forgotten ones too, those behind number `after`; their `state` says which are held."""
        return self._store.ledger.rows(self.found, limit=limit, after=after, newest_first=newest_first)

    def write(self, seq: int) -> Row:
        """One write. Raises NotFoundError: there is none of this number."""
        return self._store.ledger.row(self.found, seq)

    def history(self, seq: int) -> list[Row]:
        """A write and everything that was done about it."""
        self.write(seq)
        return self._store.ledger.rows(self.found, target=seq)

    def search(self, query: str, *, limit: int = 20) -> list[Row]:
        """Writes that are held and have all words of the query, best first. No model is needed."""
        return self._store.ledger.search(self.found, query, limit=limit)

    def forget(self, seq: int, *, version: int | None = None, actor: str | None = None) -> Row:
        """Take a write out: the memory is then as if it had never been told, and the record says that it was."""
        return self._store.ledger.forget(self.found, seq, version=version, actor=actor)

    def forget_all(
        self,
        *,
        source: str | None = None,
        before: datetime | None = None,
        dry_run: bool = False,
        actor: str | None = None,
    ) -> list[Row]:
        """Forget all writes of a source, or older than a time, or simply all; returns them.

        Args:
            dry_run: only say which.
        """
        held = [row for row in self.all() if row.state == "held"]
        wanted = [
            row for row in held if (source is None or row.source == source) and (before is None or row.created < before)
        ]
        if not dry_run:
            self._store.ledger.forget_many(self.found, [row.seq for row in wanted], actor=actor)
        return wanted

    def all(self) -> Iterator[Row]:
        """All that `writes` lists, page by page."""
        after = 0
        while page := self.writes(limit=1000, after=after):
            yield from page
            after = page[-1].seq

    def undo(self, seq: int | None = None, *, version: int | None = None, actor: str | None = None) -> Row:
        """Take back what a row did: a write, a forget, or an undo. None: the newest write or forget that still acts."""
        return self._store.ledger.undo(self.found, seq, version=version, actor=actor)

    def fork(self, name: str, *, actor: str | None = None) -> "StoredMemory":
        """Another memory of the same owner that begins as this one is now; neither changes the other from then on."""
        return StoredMemory(self._store, self._store.ledger.fork(self.found, name, actor=actor))

    def redact(self, seq: int, *, cascade: bool = False, actor: str | None = None) -> dict[str, Any]:
        """Take a write out together with what it said, for good; see `Store.erase`. Returns the receipt."""
        return self._store.erase(self, [seq], cascade=cascade, actor=actor)

    def rename(self, name: str, *, actor: str | None = None) -> None:
        self.found = self._store.ledger.rename(self.found, name, actor=actor)

    def __repr__(self) -> str:
        return f"StoredMemory({self.owner}/{self.name})"


class _ThereAlready(Exception):
    """Ends a write whose key is on record; nothing of it stays."""
