"""Memories on their way out of a store and in again: exported files, files of `remanence write`, another model."""

import json
import os
import secrets
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from remanence.bases import BASES
from remanence.checkpoints import name_of, names
from remanence.errors import InvalidInputError, MemoryFileError, MemoryMismatchError, RemanenceError, StoreError
from remanence.memory.envelope import folder_of, read_envelope
from remanence.store import queries
from remanence.store.archive import BESIDE, FORMAT, LEDGER, MANIFEST, SNAPSHOT, Archive, Kept, opened
from remanence.store.bulk import COPIED, TIMES, enter, rows_of, size_of, text_of
from remanence.store.copying import new_file
from remanence.store.cutting import content_of
from remanence.store.database import writing
from remanence.store.handle import StoredMemory
from remanence.store.history import holding, numbers
from remanence.store.rows import Content, Found

if TYPE_CHECKING:
    from remanence.memory import Memory
    from remanence.store.store import Store

MOST_BYTES = 2**33  # of a file that is imported, unpacked


class _Entry(NamedTuple):
    """A row, without what it says: there may be millions."""

    seq: int
    kind: str
    target: int | None


def export_memory(
    store: "Store", memory: StoredMemory, path: str | os.PathLike[str], *, actor: str | None = None
) -> dict[str, Any]:
    """Write a memory to a zip: what it is, every row of its ledger, and its newest snapshot, if it has one.

    Of a fork, the rows that it shares with its parent are in it too.

    Returns:
        What was written: `rows`, `snapshot` (its row, or None), `bytes`.

    Raises:
        InvalidInputError: there is something at `path` already.
        StoreError: the memory was erased meanwhile.
    """
    target = Path(path)
    found, held = store.ledger.holding(memory.found)
    kept = _snapshot_of(store, found, held)
    manifest: dict[str, Any] = {"format": FORMAT, "name": found.name, "settings": dict(found.settings)}
    manifest |= {"fingerprint": found.fingerprint, "metadata": dict(found.metadata)}
    manifest |= {"created": found.created.isoformat(), "expires_at": text_of(found.expires_at)}
    with new_file(target) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as file:
        rows = 0
        with file.open(LEDGER, "w", force_zip64=True) as packed:
            for row in rows_of(store.ledger, found):
                packed.write(json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n")
                rows += 1
        if rows != found.version:
            raise StoreError(f"{found.name!r} was erased while it was exported; nothing was written")
        if kept is not None and not _pack(file, kept[0]):
            kept = None
        manifest |= {"rows": rows, "snapshot": None if kept is None else {"seq": kept[1], "holds": kept[2]}}
        file.writestr(MANIFEST, json.dumps(manifest, ensure_ascii=False, indent=1))
    with suppress(StoreError), writing(store.ledger.engine) as connection:  # of a store that can only be read, too
        queries.note(connection, found.owner, found.id, "export", actor, rows=rows)
    return {"rows": rows, "snapshot": None if kept is None else kept[1], "bytes": target.stat().st_size}


def _snapshot_of(store: "Store", found: Found, held: list[int]) -> tuple[Path, int, str] | None:
    """The newest snapshot whose writes begin those that are held: its file, its row, and what it holds."""
    for row in sorted(store.snapshots.of(found), key=lambda each: each.seq, reverse=True):
        holds, path = numbers(row.holds), store.snapshots.folder / row.memory / row.uri
        with suppress(RemanenceError, OSError):
            if holds and holds == held[: len(holds)] and read_envelope(path).header.spec.model == found.fingerprint:
                return path, row.seq, row.holds
    return None


def _pack(file: zipfile.ZipFile, snapshot: Path) -> bool:
    """False: it was thinned out meanwhile, which harms nothing."""
    try:
        parts = {SNAPSHOT: snapshot.read_bytes()}  # whole before any of it is in the zip
        for block in read_envelope(snapshot).blocks.values():
            parts[BESIDE + block.file] = (folder_of(snapshot) / block.file).read_bytes()
    except (RemanenceError, OSError):
        return False
    for name, content in parts.items():
        file.writestr(name, content, zipfile.ZIP_STORED)
    return True


def import_memory(
    store: "Store",
    path: str | os.PathLike[str],
    owner: str,
    name: str,
    *,
    snapshot: bool = True,
    most_bytes: int = MOST_BYTES,
    actor: str | None = None,
) -> StoredMemory:
    """Make a memory from a file that `export_memory` wrote: whole, or not at all.

    Nothing in the file says whose it becomes, or what it is called. Its model has to be one that comes with this
    package, or the one that the store was opened with.

    Args:
        snapshot: take the snapshot in the file too. False where the file is a stranger's: what is in it besides the
            ledger cannot be read.
        most_bytes: of the file, unpacked.

    Raises:
        FileNotFoundError: there is no file.
        MemoryFileError: it is cut, damaged, or of another kind or a newer version.
        MemoryMismatchError: it is of a model that was not named, or has changed since.
        ConflictError, QuotaError: the name is taken; there is no room.
    """
    path = Path(path)
    with opened(path, most_bytes) as archive:
        manifest = archive.manifest
        settings = manifest.settings.model_dump(exclude_none=True)
        fingerprint = _require_model(store, path, settings, manifest.fingerprint)
        kept, id = manifest.snapshot if snapshot else None, secrets.token_hex(16)
        place = store.snapshots.folder / id / f"{secrets.token_hex(8)}.safetensors"
        with _gone_if_it_fails(place):
            if kept is not None:
                archive.extract_snapshot(place)
            size = _check_lines(store, path, archive, settings, _loaded(path, place, kept, manifest.fingerprint))
            more: dict[str, Any] = {
                "metadata": manifest.metadata,
                "expires_at": manifest.expires_at,
                "created": manifest.created,
            }
            lines = ((line.model_dump(exclude={"ids"}), content) for line, content in archive.lines())
            row: dict[str, Any] = {}
            if kept is not None:
                row = {"memory": id, "seq": kept.seq, "uri": place.name, "holds": kept.holds}
                row |= {"bytes": place.stat().st_size, "created": queries.now()}
            more |= {"id": id, "fingerprint": fingerprint}
            found = enter(store.ledger, owner, name, settings, lines, size, actor, snapshot=row, **more)
    return StoredMemory(store, found)


def _require_model(store: "Store", path: Path, settings: Mapping[str, Any], fingerprint: str | None) -> str | None:
    """The fingerprint of the weights that a memory is of; raises MemoryMismatchError where they may not be used."""
    name = settings["model"]
    if name != store.model_name and name not in names() and name not in BASES:
        raise MemoryMismatchError(
            f"{path} is of the model {name!r}, which does not come with this package; if you trust it, name it: "
            f"--model {name}"
        )
    if store.cutter_of(name).writer != settings["writer"]:
        raise MemoryMismatchError(f"{path} was not made by this {name}: it is of a {settings['writer']} writer")
    known = store.known(name)
    if known is not None and fingerprint not in (None, known.fingerprint()):
        raise MemoryMismatchError(f"{path} was encoded with other weights than this {name!r}; load the model of then")
    return fingerprint


@contextmanager
def _gone_if_it_fails(place: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        shutil.rmtree(place.parent, ignore_errors=True)
        raise


def _loaded(path: Path, place: Path, kept: Kept | None, fingerprint: str | None) -> "Memory | None":
    """The snapshot of a file, if it has one."""
    from remanence.memory import Memory

    if kept is None:
        return None
    try:
        memory = Memory.load(place)
    except (RemanenceError, OSError) as error:
        raise MemoryFileError(f"the snapshot in {path} is damaged: {error}") from error
    if memory.spec.model != fingerprint:
        raise MemoryFileError(f"the snapshot in {path} is of other weights than the file says")
    return memory


def _check_lines(
    store: "Store", path: Path, archive: Archive, settings: Mapping[str, Any], snapshot: "Memory | None"
) -> tuple[int, int]:
    """Look through all rows, before the database is kept from others; returns bytes and writes, for the quota.

    Raises:
        MemoryFileError: rows do not fit each other, the model, or the snapshot.
    """
    vocabulary = store.cutter_of(settings["model"]).vocabulary
    said = dict[int, bytes]() if snapshot is None else _ids_in(snapshot)
    text, highest, rows, size = settings["writer"] == "text", max(settings.get("head") or [0]), list[_Entry](), 0
    for line, content in archive.lines():
        rows.append(_Entry(line.seq, line.kind if line.redacted_at is None else "redacted", line.target))
        if content is not None:
            # As unsigned numbers, negative ones are high.
            highest, size = max(highest, int(np.frombuffer(content.ids, "<u4").max())), size + content.nbytes
            if text and said.get(line.seq, content.ids) != content.ids:
                raise MemoryFileError(f"{path} is damaged: row {line.seq} has other token ids than its snapshot")
    if highest >= vocabulary:
        raise MemoryFileError(f"{path} has token id {highest}, and {settings['model']} knows {vocabulary}")
    kept = archive.manifest.snapshot
    if kept is not None and snapshot is not None:
        holds, held = numbers(kept.holds), holding([row for row in rows if row.seq <= kept.seq])
        if holds != held or kept.seq > len(rows) or (text and not said.keys() <= set(holds)):
            raise MemoryFileError(f"{path} is damaged: its snapshot holds other writes than its ledger")
    return size, sum(row.kind in ("write", "redacted") for row in rows)


def _ids_in(memory: "Memory") -> dict[int, bytes]:
    """Token ids of each write of a text memory."""
    found: dict[int, bytes] = {}
    for chunk in memory.chunks or ():
        if chunk.ids is not None:
            found[chunk.write] = found.get(chunk.write, b"") + chunk.ids.numpy().astype("<i4").tobytes()
    return found


def import_file(
    store: "Store", path: str | os.PathLike[str], owner: str, name: str, *, actor: str | None = None
) -> StoredMemory:
    """Make a memory of a text memory's file, as `remanence write` makes it: each of its writes is told.

    Raises:
        FileNotFoundError, MemoryFileError: there is none; it is no memory, or damaged.
        InvalidInputError: its slots do not say what it was told.
        MemoryMismatchError: it is of a model that was not named, or has changed since.
        ConflictError, QuotaError: the name is taken; there is no room.
    """
    from remanence.memory import Memory

    path = Path(path)
    memory = Memory.load(path)
    if memory.chunks is None or not memory.chunks.keep_text:
        raise InvalidInputError(f"{path} keeps slots only, not what it was told; tell its texts again")
    model, chunks = name_of(memory.model_name) or memory.model_name or store.model_name, memory.chunks
    fingerprint = _require_model(store, path, {"model": model, "writer": "text"}, memory.spec.model)
    settings = store.cutter_of(model).settings(chunks.seed, chunks.date)
    settings |= {} if chunks.head is None else {"head": list(chunks.head)}
    made = list[tuple[dict[str, Any], Content | None]]()
    for seq, record in enumerate(memory.writes, 1):
        content = content_of([(one.ids, one.text) for one in chunks.of(record.id) if one.ids is not None])
        row: dict[str, Any] = dict.fromkeys((*COPIED, *TIMES)) | {"seq": seq, "kind": "write", "actor": actor}
        row |= {"source": record.source, "metadata": dict(record.metadata), "created": record.time or queries.now()}
        row |= {"text": content.text, "cuts": content.cuts, "sha256": content.digest, "stamp": None}
        made.append((row, content))
    found = enter(store.ledger, owner, name, settings, made, size_of(made), actor, fingerprint=fingerprint)
    return StoredMemory(store, found)


def reencode(store: "Store", memory: StoredMemory, name: str, *, actor: str | None = None) -> StoredMemory:
    """Another memory of the same owner, with the same rows, their texts cut by the model that the store is opened with.

    Raises:
        InvalidInputError: a write was told as token ids, so there is no text to cut.
        ConflictError, QuotaError: the name is taken; there is no room.
    """
    found = store.ledger.find(memory.owner, memory.name)
    cutter = store.cutter_of(store.model_name)
    settings = cutter.settings(found.settings["seed"], found.settings.get("date"))

    made = list[tuple[dict[str, Any], Content | None]]()  # all, before the database is kept from others
    for row in rows_of(store.ledger, found):
        content, ids = None, row.pop("ids")
        row |= {name: None if row[name] is None else datetime.fromisoformat(row[name]) for name in TIMES}
        if ids is not None:
            if row["text"] is None:
                raise InvalidInputError(f"write {row['seq']} of {found.name!r} was told as token ids, without text")
            content = cutter.cut(row["text"], settings)
            row |= {"text": content.text, "cuts": content.cuts, "sha256": content.digest, "stamp": None}
        made.append((row, content))
    about: dict[str, Any] = {"metadata": dict(found.metadata), "expires_at": found.expires_at}
    return StoredMemory(store, enter(store.ledger, found.owner, name, settings, made, size_of(made), actor, **about))
