"""What a store's calls cost in an empty store and in one with a million writes, and what opening a memory costs.

The full store is entered in bulk, so that no model is needed. A write is on disk when its call returns: most of what it
takes is the disk's. The memory that is opened holds text slots of the bundled checkpoint's decoder, and lies as a
snapshot; its model is there already.
"""

import secrets
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from rich.progress import track
from sqlalchemy import func, insert, select

from remanence import MemoryModel, Store
from remanence.checkpoints import bundled
from remanence.store import fulltext
from remanence.store.database import reading, writing
from remanence.store.handle import StoredMemory
from remanence.store.queries import now
from remanence.store.schema import memories, owners, writes
from tables import Figures, Rows
from timing import Cases, Part, Parts, ratio, require

EMPTY, FULL = "in an empty store", "in a full one"  # columns
NOTE = (
    "SQLite, {memories:,} memories of {owners} owners with {writes} writes each. A memory of {held:,} writes is opened "
    "from its snapshot."
)


@dataclass(frozen=True)
class Settings:
    memories: int = 10_000
    owners: int = 100
    writes: int = field(default=100, metadata={"help": "in each memory"})
    held: int = field(default=1_000, metadata={"help": "writes in the memory that is opened"})
    repeats: int = 40
    threads: int = 1


def parts(on: Settings) -> Parts:
    return {"calls": partial(calls, on), "opening": partial(opening, on)}


def finish(on: Settings, rows: Rows) -> None:
    for cells in rows.values():
        if EMPTY in cells and FULL in cells:
            cells["full / empty"] = ratio(cells[FULL]["median"], cells[EMPTY]["median"])


def text_model() -> MemoryModel:
    base = MemoryModel.from_pretrained(bundled("tiny"))
    return MemoryModel.attach(base.detach(), base.tokenizer, min_score=None)


def opened(folder: Path, model: MemoryModel) -> Store:
    shutil.rmtree(folder, ignore_errors=True)
    return Store.open(folder, model=model)


def calls(on: Settings) -> Part:
    model, folder = text_model(), Path(tempfile.mkdtemp())
    empty, full = (opened(folder / name, model) for name in ("empty", "full"))
    fill(full, on)
    cases: Cases = {}
    for column, store in ((EMPTY, empty), (FULL, full)):
        memory = store.memory("notes", create=True)
        for number in range(on.writes):
            memory.tell(note(number))
        for name, call in acts(store, memory).items():
            cases[(name,), column] = call

    def gate() -> Figures:
        with reading(full.ledger.engine) as connection:
            there = connection.execute(select(func.count()).select_from(writes)).scalar_one()
        require(there >= on.memories * on.writes, f"there are {there:,} writes on record")
        return {"writes_on_record": there}

    return Part(cases, on.repeats, gate)


def acts(store: Store, memory: StoredMemory) -> dict[str, Callable[[], object]]:
    """Each is called again and again."""
    return {
        "create a memory": lambda: store.memory(secrets.token_hex(8), create=True),
        "tell": lambda: memory.tell(note(0)),
        "list 20 memories": lambda: store.memories(limit=20),
        "list 20 writes": lambda: memory.writes(limit=20, newest_first=True),
        "search": lambda: memory.search("surveyor note 7"),
        "forget": lambda: memory.forget(store.ledger.holding(memory.found)[1][0]),
    }


def note(number: int) -> str:
    return f"Note {number}: Alice Brown was born in Oslo, and works as a surveyor in town {number % 97}."


def fill(store: Store, on: Settings) -> None:
    """Memories of others, with the same words in them."""
    each = on.memories // on.owners
    with writing(store.ledger.engine) as connection:
        for owner in track(range(on.owners), "entering memories"):
            connection.execute(insert(owners).values(id=f"owner-{owner}", created=now()))
            for number in range(each):
                id = secrets.token_hex(16)
                about = {
                    "id": id,
                    "owner": f"owner-{owner}",
                    "name": f"memory-{number}",
                    "settings": {},
                    "metadata": {},
                }
                connection.execute(insert(memories).values(**about, head=on.writes, created=now()))
                row = {"memory": id, "kind": "write", "ids": bytes(80), "cuts": [[20, 20]], "tokens": 20, "bytes": 160}
                row |= {"metadata": {}, "created": now()}
                several = [
                    {**row, "seq": seq, "text": note(seq), "sha256": secrets.token_hex(32)}
                    for seq in range(1, on.writes + 1)
                ]
                connection.execute(insert(writes), several)
        fulltext.rebuild(connection)


def opening(on: Settings) -> Part:
    model, folder = text_model(), Path(tempfile.mkdtemp()) / "store"
    with opened(folder, model) as store:
        memory = store.memory("notes", create=True)
        for number in track(range(on.held), "telling"):
            memory.tell(note(number))
        with memory.opened():
            pass

    def open_cold() -> int:
        with Store.open(folder, model=model) as store, store.memory("notes").opened() as memory:
            return len(memory.writes)

    def gate() -> Figures:
        require(open_cold() == on.held, "the memory that was opened holds other writes")
        return {}

    return Part({((f"open a memory of {on.held:,} writes",), "time"): open_cold}, 10, gate)
