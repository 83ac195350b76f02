"""What is on record: each call is one transaction, and whatever names a memory names its owner."""

import random
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from sqlalchemy import inspect

from remanence.errors import ConflictError, InvalidInputError, NotFoundError, QuotaError, StoreError
from remanence.store import queries
from remanence.store.database import connect, migrate, url_of
from remanence.store.ledger import Ledger
from remanence.store.queries import now
from remanence.store.rows import Content, Found
from tests.support.databases import postgres


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def ledger(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    folder = tmp_path_factory.mktemp("ledger")
    if request.param == "sqlite":
        yield opened(str(folder))
        return
    with postgres(folder) as cluster:
        made = opened(cluster.url("ledger"))
        yield made
        made.engine.dispose()


@pytest.fixture
def memory(ledger: Ledger, request: pytest.FixtureRequest) -> Found:
    return ledger.create(request.node.name[:100], "m", {"writer": "text"})


def opened(place: str) -> Ledger:
    engine = connect(url_of(place))
    migrate(engine)
    return Ledger(engine)


def said(text: str) -> Content:
    ids = b"".join(ord(letter).to_bytes(4, "little") for letter in text)
    return Content(text, ids, ((len(text), len(text)),))


def test_a_write_is_there_when_it_is_acknowledged(ledger: Ledger, memory: Found) -> None:
    row = ledger.tell(memory, said("Ann lives in Oslo."), source="a.txt", metadata={"by": "Bo"}, actor="me")
    assert (row.seq, row.state, row.source, row.metadata, row.actor) == (1, "held", "a.txt", {"by": "Bo"}, "me")
    again = opened_again(ledger).row(memory, 1)
    assert again == row
    (told,) = ledger.told(memory, [1])
    assert told.content == said("Ann lives in Oslo.") and told.created == row.created


def opened_again(ledger: Ledger) -> Ledger:
    return Ledger(connect(ledger.engine.url))


def test_the_same_key_is_the_same_write(ledger: Ledger, memory: Found) -> None:
    first = ledger.tell(memory, said("one"), idempotency_key="k")
    again = ledger.tell(memory, said("one"), idempotency_key="k")
    assert again.seq == first.seq and again.deduplicated and not first.deduplicated
    with pytest.raises(ConflictError, match="another text"):
        ledger.tell(memory, said("two"), idempotency_key="k")
    assert ledger.version(memory) == 1


def test_the_same_text_within_ten_minutes_is_the_same_write_if_so_asked(
    ledger: Ledger, memory: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ledger.tell(memory, said("one"), idempotency_key="auto").seq == 1
    assert ledger.tell(memory, said("one"), idempotency_key="auto").deduplicated
    assert ledger.tell(memory, said("one")).seq == 2
    later = now() + timedelta(minutes=11)
    monkeypatch.setattr(queries, "now", lambda: later)
    assert ledger.tell(memory, said("one"), idempotency_key="auto").seq == 3
    ledger.forget(memory, 3)
    assert ledger.tell(memory, said("one"), idempotency_key="auto").seq == 5, "what was forgotten is told again"


def test_a_fork_knows_the_keys_of_before(ledger: Ledger, memory: Found) -> None:
    ledger.tell(memory, said("one"), idempotency_key="k")
    fork = ledger.fork(memory, "fork")
    assert ledger.tell(fork, said("one"), idempotency_key="k").deduplicated
    ledger.tell(memory, said("two"), idempotency_key="later")
    assert not ledger.tell(fork, said("two"), idempotency_key="later").deduplicated


def test_another_version_than_the_callers_is_a_conflict(ledger: Ledger, memory: Found) -> None:
    ledger.tell(memory, said("one"), version=0)
    for call in (
        lambda: ledger.tell(memory, said("two"), version=0),
        lambda: ledger.forget(memory, 1, version=0),
        lambda: ledger.undo(memory, version=0),
    ):
        with pytest.raises(ConflictError, match="at version 1, not 0"):
            call()
    assert ledger.version(memory) == 1


def test_a_quota_counts_bytes_and_writes(ledger: Ledger, memory: Found) -> None:
    ledger.set_quota(memory.owner, max_writes=2)
    ledger.tell(memory, said("one"))
    ledger.tell(memory, said("two"))
    with pytest.raises(QuotaError, match="may keep 2 writes, and has 2"):
        ledger.tell(memory, said("three"))
    ledger.set_quota(memory.owner, max_bytes=31)
    with pytest.raises(QuotaError, match="bytes"):
        ledger.tell(memory, said("one more"))
    assert ledger.used(memory.owner) == {"writes": 2, "bytes": 30}
    ledger.set_quota(memory.owner)
    ledger.tell(memory, said("three"))


def test_lists_are_paged(ledger: Ledger, memory: Found) -> None:
    for number in range(7):
        ledger.tell(memory, said(f"note {number}"))
        ledger.create(memory.owner, f"n{number}", {})
    pages, after = list[list[int]](), 0
    while page := [row.seq for row in ledger.rows(memory, limit=3, after=after)]:
        pages.append(page)
        after = page[-1]
    assert pages == [[1, 2, 3], [4, 5, 6], [7]]
    assert [row.seq for row in ledger.rows(memory, limit=2, newest_first=True)] == [7, 6]
    assert [row.seq for row in ledger.rows(memory, limit=2, after=6, newest_first=True)] == [5, 4]
    assert [one.name for one in ledger.list_memories(memory.owner, limit=2, after="n4")] == ["n5", "n6"]


def test_search_finds_all_words_in_what_is_held(ledger: Ledger, memory: Found) -> None:
    texts = [
        "Ann lives in Oslo.",
        "Bo lives in Rome, by the sea.",
        "Ann's boat lies in Rome.",
        'He said "sea" AND left',
    ]
    for text in texts:
        ledger.tell(memory, said(text))
    found = lambda query: [row.seq for row in ledger.search(memory, query)]  # noqa: E731
    assert sorted(found("ROME")) == [2, 3]
    assert found("ann rome") == [3] and found("lima") == [] and found("?!") == []
    assert found('"sea" AND') == [4], "what a query language means by words is text here"
    ledger.forget(memory, 3)
    assert found("rome") == [2]
    other = ledger.create(memory.owner, "other", {})
    assert ledger.search(other, "rome") == []


def test_a_write_may_take_the_place_of_another(ledger: Ledger, memory: Found) -> None:
    ledger.tell(memory, said("Ann lives in Oslo."))
    row = ledger.tell(memory, said("Ann lives in Rome."), supersedes=1)
    assert ledger.holding(memory)[1] == [2] and row.target == 1
    assert ledger.row(memory, 1).state == "superseded"
    assert [one.kind for one in ledger.rows(memory, target=1)] == ["write", "write"]
    with pytest.raises(NotFoundError, match="holds no write 1"):
        ledger.tell(memory, said("x"), supersedes=1)
    assert ledger.version(memory) == 2


def test_what_expires_is_listed_when_its_time_has_come(ledger: Ledger, memory: Found) -> None:
    ledger.tell(memory, said("soon"), expires_at=now() + timedelta(hours=1))
    ledger.tell(memory, said("never"))
    fork = ledger.fork(ledger.find(memory.owner, "m"), "fork")
    own = lambda at: {(one.name, seq) for one, seq in ledger.expired(at=at) if one.owner == memory.owner}  # noqa: E731
    assert own(now()) == set()
    assert own(now() + timedelta(hours=2)) == {("m", 1), ("fork", 1)}
    ledger.forget(fork, 1, kind="expire")
    assert own(now() + timedelta(hours=2)) == {("m", 1)}
    assert ledger.row(fork, 1).state == "expired"


def test_what_is_past_its_time_is_not_held_before_it_is_swept_either(
    ledger: Ledger, memory: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.tell(memory, said("a red note"), expires_at=now() + timedelta(hours=1))
    ledger.tell(memory, said("another red note"))
    assert ledger.holding(memory)[1] == [1, 2]
    later = now() + timedelta(hours=2)
    monkeypatch.setattr(queries, "now", lambda: later)
    assert ledger.holding(memory)[1] == [2]
    assert [row.state for row in ledger.rows(memory)] == ["expired", "held"]
    assert [row.seq for row in ledger.search(memory, "red")] == [2]
    with pytest.raises(NotFoundError):
        ledger.forget(memory, 1)
    assert ledger.forget(memory, 1, kind="expire").kind == "expire"


def test_a_fork_has_the_rows_of_before_and_its_own(ledger: Ledger, memory: Found) -> None:
    ledger.tell(memory, said("one red"))
    fork = ledger.fork(memory, "fork")
    ledger.tell(memory, said("two red"))
    row = ledger.tell(fork, said("three red"))
    deep = ledger.fork(fork, "deep")
    ledger.forget(memory, 1)
    assert row.seq == 2
    assert [ledger.holding(one)[1] for one in (memory, fork, deep)] == [[2], [1, 2], [1, 2]]
    assert [one.text for one in ledger.rows(deep)] == ["one red", "three red"]
    assert sorted(one.text or "" for one in ledger.search(deep, "red")) == ["one red", "three red"]
    assert [one.name for one in ledger.forks(memory)] == ["fork", "deep"]


def test_bad_names_are_refused(ledger: Ledger, memory: Found) -> None:
    for name in ("", "  ", "x" * 201):
        with pytest.raises(InvalidInputError, match="1 to 200"):
            ledger.create(memory.owner, name, {})
    with pytest.raises(ConflictError, match="already"):
        ledger.create(memory.owner, "m", {})
    with pytest.raises(ConflictError, match="already"):
        ledger.fork(memory, "m")


def test_the_audit_says_what_was_done_and_never_what_was_said(ledger: Ledger, memory: Found) -> None:
    ledger.tell(memory, said("a secret"), actor="Bo")
    ledger.forget(memory, 1, actor="Ann")
    found = ledger.audited(memory.owner)
    assert [(one["action"], one["actor"]) for one in found] == [("create", None), ("write", "Bo"), ("forget", "Ann")]
    assert "secret" not in repr(found)


def test_owners_never_meet(ledger: Ledger) -> None:
    """Random operations of 20 owners with memories of the same names, against what each did."""
    rng = random.Random(0)
    owners = [f"owner-{number}" for number in range(20)]
    held: dict[tuple[str, str], list[str]] = {}
    for _ in range(1500):
        owner, name = rng.choice(owners), rng.choice("abc")
        there = (owner, name) in held
        act = rng.choice(["create", "tell", "tell", "forget", "search", "list", "rows"])
        if act == "create":
            if not there:
                ledger.create(owner, name, {})
                held[owner, name] = []
            continue
        if not there:
            with pytest.raises(NotFoundError):
                ledger.find(owner, name)
            continue
        memory = ledger.find(owner, name)
        texts = held[owner, name]
        if act == "tell":
            text = f"red {owner} {name} {len(texts)}"
            ledger.tell(memory, said(text))
            texts.append(text)
        elif act == "search":
            assert {row.text for row in ledger.search(memory, "red", limit=1000)} <= set(texts)
        elif act == "list":
            assert [one.name for one in ledger.list_memories(owner)] == sorted(n for o, n in held if o == owner)
            assert ledger.used(owner)["writes"] == sum(len(t) for (o, _), t in held.items() if o == owner)
        elif act == "rows":
            assert [row.text for row in ledger.rows(memory, limit=10_000)] == texts
            assert all(one["owner"] == owner for one in ledger.audited(owner, limit=5))
        else:
            foreign = Found(**{**vars(memory), "owner": rng.choice([one for one in owners if one != owner])})
            for call in (ledger.rows, ledger.version, ledger.holding, partial(ledger.forget, seq=1)):
                with pytest.raises(NotFoundError):
                    call(foreign)


def test_a_store_of_an_earlier_schema_is_brought_to_this_one(tmp_path: Path) -> None:
    engine = connect(url_of(str(tmp_path)))
    migrate(engine, "0001")
    old = Ledger(engine)
    memory = old.create("me", "m", {"writer": "text"})
    old.tell(memory, said("a red note"))
    columns = {one["name"] for one in inspect(engine).get_columns("snapshots")}
    assert "stamp" not in columns
    engine.dispose()
    new = opened(str(tmp_path))
    assert {one["name"] for one in inspect(new.engine).get_columns("snapshots")} == columns | {"stamp"}
    assert [row.text for row in new.search(memory, "red")] == ["a red note"]
    assert new.tell(memory, said("another")).seq == 2


def test_a_store_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    ledger = opened(str(tmp_path))
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StoreError, match="newer version"):
        migrate(ledger.engine)


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    from remanence import Store

    (tmp_path / "notes.db").write_text("these are notes")
    with pytest.raises(StoreError, match="no SQLite database"):
        Store.open(tmp_path / "notes.db")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot hold a store"):
        Store.open(tmp_path / "file" / "below")
    with pytest.raises(StoreError, match="SQLite or PostgreSQL"):
        Store.open("mysql://user@host/database")
