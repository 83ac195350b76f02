"""Connections to the ledger's database: SQLite, the default, or PostgreSQL; and its schema, kept up to date."""

import os
import random
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import DBAPIError

from remanence.errors import StoreError

PATIENCE = 30.0  # seconds that a call waits for others before it gives up
LEDGER = "ledger.db"  # in the folder of a store
_MIGRATIONS = Path(__file__).with_name("migrations")
_WAL_IS_SAFE = (3, 51, 3)  # before, two connections that reset a write-ahead log can damage the file


def url_of(place: str | os.PathLike[str]) -> URL:
    """The database of a folder, of a file that ends in .db, or of a URL."""
    text = os.fspath(place)
    if "://" in text:
        url = make_url(text)
        if url.get_backend_name() == "postgresql" and "+" not in url.drivername:
            url = url.set(drivername="postgresql+psycopg")
        if url.get_backend_name() not in ("sqlite", "postgresql"):
            raise StoreError(f"a store is a folder, or a URL of SQLite or PostgreSQL, not {url.drivername}")
        return url
    path = Path(text)
    return URL.create("sqlite", database=str((path if path.suffix == ".db" else path / LEDGER).absolute()))


def connect(url: URL) -> Engine:
    """An engine whose transactions hold what they say: each begins as a writer where it is to write.

    Raises:
        StoreError: the database is not there, or cannot be reached.
    """
    try:
        if url.get_backend_name() == "sqlite":
            return _sqlite(url)
        return create_engine(url, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise StoreError('a store on PostgreSQL needs: pip install "remanence[postgres]"') from error


def _sqlite(url: URL) -> Engine:
    engine = create_engine(url, connect_args={"timeout": PATIENCE, "check_same_thread": False})
    wal = sqlite3.sqlite_version_info >= _WAL_IS_SAFE

    @event.listens_for(engine, "connect")
    def prepared(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # BEGIN is ours, below
        settings = {
            "journal_mode": "WAL" if wal else "PERSIST",
            "synchronous": "FULL" if wal else "EXTRA",
            "foreign_keys": "ON",
            "secure_delete": "ON",
            "temp_store": "MEMORY",
        }
        for name, value in settings.items():
            connection.execute(f"PRAGMA {name} = {value}")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        reads = connection.get_execution_options().get("reads", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that changes nothing: what it reads belongs together."""
    with _clear(engine), engine.connect().execution_options(reads=True) as connection:
        if engine.dialect.name == "postgresql":
            connection = connection.execution_options(isolation_level="REPEATABLE READ")
        with connection.begin():
            yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that is committed when the body ends, and undone if it raises."""
    with _clear(engine), engine.begin() as connection:
        yield connection


@contextmanager
def _clear(engine: Engine) -> Iterator[None]:
    """Say what happened to the database in one line."""
    try:
        yield
    except DBAPIError as error:
        cause = str(error.orig).strip().partition("\n")[0]
        where = engine.url.render_as_string(hide_password=True)
        if "readonly" in cause or "read-only" in cause:
            remedy = "it can only be read; check the rights of the file and its folder"
        elif "full" in cause or "No space" in cause:
            remedy = "the disk is full; make room, and do it again"
        elif "locked" in cause:
            remedy = f"others kept it for more than {PATIENCE:g} seconds; do it again"
        else:
            remedy = "nothing of this was done; do it again when the database is there"
        raise StoreError(f"{where}: {cause}: {remedy}") from error


def waits() -> Iterator[None]:
    """Tries of something that others may win, with growing pauses, for as long as a call waits."""
    end, pause = time.monotonic() + PATIENCE, 0.002
    while True:
        yield
        if time.monotonic() > end:
            return
        time.sleep(pause * random.uniform(0.5, 1.5))
        pause = min(0.5, 2 * pause)


def migrate(engine: Engine, to: str = "head") -> None:
    """Make the tables, or bring older ones to a schema, today's if none is named: all of it, or nothing.

    Raises:
        StoreError: a newer version of Remanence made them.
    """
    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS))
    with reading(engine) as connection:
        there = MigrationContext.configure(connection).get_current_revision()
    newest = ScriptDirectory.from_config(config).get_current_head()
    if there == newest:
        return
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if there is not None and there not in known:
        raise StoreError(f"this store has schema {there}, of a newer version of Remanence; update with pip")
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7236911)")  # one process at a time
        config.attributes["connection"] = connection
        command.upgrade(config, to)


def vacuum(engine: Engine) -> None:
    """Write the database anew without what was deleted, and leave nothing of it in the journal either."""
    with _clear(engine), engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        raw = connection.connection
        if engine.dialect.name == "postgresql":
            for table in ("writes", "memories", "snapshots"):
                connection.exec_driver_sql(f"VACUUM FULL {table}")
            return
        cursor = raw.cursor()
        cursor.execute("VACUUM")
        if cursor.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        else:
            for mode in ("DELETE", "PERSIST"):  # the first deletes the journal's file
                cursor.execute(f"PRAGMA journal_mode = {mode}").fetchone()


def folder_for(file: Path) -> None:
    """Make the folder of a database file.

    Raises:
        StoreError: it cannot be made, or the file is none that could be a database.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise StoreError(f"{file} is a folder; a store in a folder is named by the folder that it lies in")
        if file.is_file() and file.stat().st_size and not _head(file).startswith(b"SQLite format 3"):
            raise StoreError(f"{file} is no SQLite database")
    except OSError as error:
        raise StoreError(f"{file.parent} cannot hold a store: {error.strerror or error}") from error


def _head(file: Path) -> bytes:
    with open(file, "rb") as opened:
        return opened.read(16)
