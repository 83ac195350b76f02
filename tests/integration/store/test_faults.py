"""A full disk, a store that can only be read, a database that goes away: a clear error, nothing half done."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from remanence import Store
from remanence.errors import StoreError
from tests.support.databases import postgres
from tests.support.stores import content, model_of, store_in


def test_a_full_disk_is_named_and_loses_nothing(tmp_path: Path) -> None:
    with store_in(tmp_path) as store:
        memory = store.memory("m", create=True)
        memory.tell("Ann lives in Oslo.")
        pages = store.ledger.engine.connect()
        raw = pages.connection.cursor()
        count = raw.execute("PRAGMA page_count").fetchone()[0]
        pages.close()

        def full(connection: object, _: object) -> None:
            connection.execute(f"PRAGMA max_page_count = {count}")  # type: ignore[attr-defined]

        from sqlalchemy import event

        event.listen(store.ledger.engine, "connect", full)
        store.ledger.engine.dispose()
        note = "So it goes on and on. " * 100
        with pytest.raises(StoreError, match="the disk is full"):
            [memory.tell(note) for _ in range(100)]
        there = memory.version
        assert [row.seq for row in memory.writes(limit=1000)] == list(range(1, there + 1))
        event.remove(store.ledger.engine, "connect", full)
        store.ledger.engine.dispose()
        assert memory.tell("There is room again.").seq == there + 1


def test_a_store_that_can_only_be_read_answers_and_refuses_writes(tmp_path: Path) -> None:
    with store_in(tmp_path) as store:
        store.memory("m", create=True).tell("Ann lives in Oslo.")
    if os.getuid() == 0:
        readable = f"sqlite:///file:{tmp_path / 'ledger.db'}?mode=ro&uri=true"
    else:
        (tmp_path / "ledger.db").chmod(0o400)
        readable = str(tmp_path)
    with Store.open(readable, model=model_of("text"), snapshots=tmp_path / "snapshots") as store:
        memory = store.memory("m")
        assert memory.writes()[0].text == "Ann lives in Oslo."
        memory.ask("Who lives in Oslo?", max_new_tokens=1)
        with pytest.raises(StoreError, match="only be read"):
            memory.tell("Bo lives in Rome.")


@pytest.mark.slow
def test_a_database_that_goes_away_is_named_and_used_again_when_it_is_back(tmp_path: Path) -> None:
    with postgres(tmp_path) as cluster:
        with Store.open(cluster.url("away"), model=model_of("text"), snapshots=tmp_path) as store:
            memory = store.memory("m", create=True)
            memory.tell("Ann lives in Oslo.")
            cluster.stop()
            with pytest.raises(StoreError, match="when the database is there"):
                memory.tell("Bo lives in Rome.")
            cluster.start()
            assert memory.tell("Cy lives in Lima.").seq == 2
            with memory.opened() as one:
                found = content(one)
        fresh = Store.open(cluster.url("away"), model=model_of("text"), snapshots=tmp_path / "none")
        with fresh.memory("m").opened() as one:
            assert content(one) == found
        fresh.close()


@pytest.mark.slow
def test_kills_on_postgresql(tmp_path: Path) -> None:
    with postgres(tmp_path) as cluster:
        words = ["text", cluster.url("kills"), str(tmp_path / "snapshots"), "20", "3"]
        command = [sys.executable, "-W", "ignore", "-m", "tests.support.crashing", *words]
        done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        assert done.returncode == 0 and "verified 20" in done.stdout, done.stderr


@pytest.mark.slow
def test_a_snapshot_that_cannot_be_written_costs_no_answer(tmp_path: Path) -> None:
    with store_in(tmp_path / "s", snapshots=tmp_path / "snapshots", snapshot_every=1) as store:
        memory = store.memory("m", create=True)
        memory.tell("Ann lives in Oslo.")
        (tmp_path / "snapshots").write_text("a file stands where the folder should be")
        with pytest.warns(UserWarning, match="snapshot"):
            memory.ask("Who lives in Oslo?", max_new_tokens=1)
        (tmp_path / "snapshots").unlink()
        memory.tell("Bo lives in Rome.")
