"""A whole store, copied while it is used; and files that appear whole or not at all."""

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from remanence.errors import InvalidInputError, StoreError
from remanence.store.database import PATIENCE, folder_for, url_of

if TYPE_CHECKING:
    from remanence.store.store import Store


@contextmanager
def new_file(target: Path) -> Iterator[Path]:
    """A file that appears whole or not at all, and takes nobody's place."""
    if target.exists():
        raise InvalidInputError(f"{target} is there already; name a new file")
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    except OSError as error:
        raise StoreError(f"cannot write {target}: {error.strerror or error}; nothing was written") from error
    finally:
        partial.unlink(missing_ok=True)


def backup(store: "Store", path: str | os.PathLike[str]) -> Path:
    """Copy a store on SQLite while it is used; the copy opens as a store. Snapshots are left out: they are a cache.

    Args:
        path: a new folder, or a new file that ends in .db.

    Raises:
        InvalidInputError: there is something already.
        StoreError: it cannot be written; or the store is on PostgreSQL, which has tools of its own.
    """
    engine = store.ledger.engine
    if engine.dialect.name != "sqlite":
        raise StoreError("a store on PostgreSQL is copied by pg_dump, and brought back by pg_restore")
    source, target = str(engine.url.database), Path(str(url_of(path).database))
    folder_for(target)
    with new_file(target) as partial:
        try:
            with closing(sqlite3.connect(source, timeout=PATIENCE)) as one, closing(sqlite3.connect(partial)) as other:
                one.backup(other)  # in one step: in several it would begin anew whenever somebody writes
                other.execute("DELETE FROM snapshots")
                other.commit()
        except sqlite3.Error as error:
            raise StoreError(f"{source} could not be copied: {error}") from error
    return target
