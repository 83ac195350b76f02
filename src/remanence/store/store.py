"""The store: many named memories, a ledger that never loses a write, and a model that is loaded when it is asked."""

import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from remanence.environment import cache_folder
from remanence.errors import ConflictError, InvalidInputError, NotFoundError
from remanence.store import database, erasure
from remanence.store.handle import StoredMemory
from remanence.store.ledger import PAGE, Ledger
from remanence.store.residents import Residents
from remanence.store.rows import Found
from remanence.store.snapshots import Snapshots

if TYPE_CHECKING:
    from remanence.model.model import MemoryModel
    from remanence.store.cutting import Cutter

LOCAL = "local"  # who owns memories where nobody else is named


class Store:
    """Named memories of many owners.

    Attributes:
        ledger: what is on record; residents: memories in RAM; snapshots: memories as files.
    """

    def __init__(
        self,
        ledger: Ledger,
        folder: Path,
        model: "MemoryModel | str | None",
        budget: int,
        snapshot_every: int,
        load: "Callable[[str], MemoryModel] | None" = None,
    ) -> None:
        self.ledger, self.snapshots = ledger, Snapshots(ledger, folder)
        self.residents = Residents(ledger, self.snapshots, budget, snapshot_every)
        self._given, self._load = model, load
        self._models: dict[str, MemoryModel] = {}
        self._cutters: dict[str, Cutter] = {}
        self._lock = threading.RLock()
        self._loading: dict[str, threading.Lock] = {}
        if model is not None and not isinstance(model, str):
            self._models[model.name] = model

    @classmethod
    def open(
        cls,
        place: str | os.PathLike[str],
        *,
        model: "MemoryModel | str | None" = None,
        snapshots: str | os.PathLike[str] | None = None,
        budget: int = 2**30,
        snapshot_every: int = 32,
        load: "Callable[[str], MemoryModel] | None" = None,
    ) -> Self:
        """Open a store, or make it.

        Args:
            place: a folder, or a URL such as `sqlite:///memories.db`, `postgresql+psycopg://user@host/database`.
            model: for new memories, and for all that were made with one of this name; loaded when something is asked.
                None: "smollm2"; memories that are there know theirs.
            snapshots: folder of snapshots; None: beside the database, or in the user's cache for PostgreSQL.
            budget: bytes of memories that stay in RAM while nobody uses them.
            snapshot_every: writes after which a memory that is open is kept as a file, so that they are not replayed.
            load: how a model is loaded by its name; None: `MemoryModel.from_pretrained`.

        Raises:
            StoreError: the database cannot be opened, or is of a newer version.
        """
        url = database.url_of(place)
        if snapshots is not None:
            folder = Path(snapshots)
        elif url.get_backend_name() == "sqlite" and url.database:
            file = Path(url.database).absolute()  # others may lie beside it
            folder = file.with_name("snapshots" if file.name == database.LEDGER else f"{file.stem}.snapshots")
        else:
            server = f"{url.host or url.query.get('host', '')}-{url.port or ''}-{url.database}"
            folder = cache_folder() / "snapshots" / re.sub(r"[^\w.-]", "_", server)
        if url.get_backend_name() == "sqlite" and url.database:
            database.folder_for(Path(url.database))
        engine = database.connect(url)
        database.migrate(engine)
        return cls(Ledger(engine), folder, model, budget, snapshot_every, load)

    def memory(
        self,
        name: str,
        *,
        owner: str = LOCAL,
        create: bool = False,
        seed: int = 0,
        metadata: dict[str, Any] | None = None,
        actor: str | None = None,
    ) -> StoredMemory:
        """A memory of an owner by its name.

        Args:
            create: make it, if it is not there; `seed` and `metadata` are of a new one.

        Raises:
            NotFoundError: the owner has none of this name.
        """
        try:
            return StoredMemory(self, self.ledger.find(owner, name))
        except NotFoundError:
            if not create:
                raise
        settings = self.cutter_of(self.model_name).settings(seed)
        try:
            return StoredMemory(self, self.ledger.create(owner, name, settings, metadata=metadata, actor=actor))
        except ConflictError:  # another was faster
            return StoredMemory(self, self.ledger.find(owner, name))

    def memories(self, *, owner: str = LOCAL, limit: int = PAGE, after: str = "") -> list[StoredMemory]:
        """An owner's memories by name, those behind `after`."""
        return [StoredMemory(self, found) for found in self.ledger.list_memories(owner, limit=limit, after=after)]

    def sweep(self) -> int:
        """Forget what is past its time; returns how many writes."""
        past = self.ledger.expired()
        for found, seq in past:
            try:
                self.ledger.forget(found, seq, kind="expire")
            except NotFoundError:  # forgotten meanwhile
                continue
        return len(past)

    def erase(
        self,
        memory: StoredMemory,
        seqs: list[int] | None = None,
        *,
        cascade: bool = False,
        dry_run: bool = False,
        actor: str | None = None,
    ) -> dict[str, Any]:
        """Leave nothing of some writes, or of a whole memory: no text, ids, hash, snapshot, index or cache.

        Args:
            seqs: numbers of writes; None: the memory itself.
            cascade: in its forks too; without, a fork that has one of them is a reason to refuse.
            dry_run: only say what would be erased.

        Returns:
            A receipt: what was erased, and what is out of reach.

        Raises:
            NotFoundError: there is no such write. ConflictError: forks have it; they are named.
        """
        receipt = erasure.erase(self.ledger, self.snapshots, memory.found, seqs, cascade, dry_run, actor)
        if not dry_run:
            self.residents.drop(receipt["memories"])
            for model in self._models.values():
                from remanence.model.text import TextWriter  # torch is there already

                model.prefixes.clear()
                if isinstance(model.writer, TextWriter):
                    model.writer.cache.clear()
        return receipt

    def compact(self) -> dict[str, int]:
        """Write the database anew, without what was deleted, and keep only the newest snapshot of each memory.

        Returns:
            How many `snapshots` went.
        """
        dropped = self.snapshots.thin_all()
        database.vacuum(self.ledger.engine)
        return {"snapshots": dropped}

    def model_of(self, found: Found) -> "MemoryModel":
        """The model of a memory, loaded the first time."""
        from remanence.model.model import MemoryModel

        name = found.settings["model"]
        with self._lock:
            loading = self._loading.setdefault(name, threading.Lock())
        with loading:  # of this model only: who tells meanwhile does not wait
            if name not in self._models:
                self._models[name] = (self._load or MemoryModel.from_pretrained)(name)
            return self._models[name]

    @property
    def model_name(self) -> str:
        """The model of new memories."""
        given = self._given or "smollm2"
        return given if isinstance(given, str) else given.name

    def known(self, name: str) -> "MemoryModel | None":
        """The model of this name, if it is loaded."""
        return self._models.get(name)

    def cutter(self, found: Found) -> "Cutter":
        return self.cutter_of(found.settings["model"])

    def cutter_of(self, name: str) -> "Cutter":
        """What cuts texts as the model of this name does."""
        from remanence.store.cutting import Cutter

        with self._lock:
            if name not in self._cutters:
                made = Cutter.of(self._models.get(name, name))
                if made is None:
                    raise InvalidInputError(
                        f"{name} is no model with memory; give the store one: Store.open(model=...)"
                    )
                self._cutters[name] = made
            return self._cutters[name]

    def close(self) -> None:
        """Keep what snapshots lack, and close the database."""
        self.residents.close()
        self.ledger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
