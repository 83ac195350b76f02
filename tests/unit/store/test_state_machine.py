"""Random sequences of what can be done to memories, against lists: the ledger, the open memory and a replay agree."""

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from remanence import Store
from remanence.errors import NotFoundError
from remanence.store.handle import StoredMemory
from tests.support.stores import content, store_in

WORDS = ("Ann", "Oslo", "red", "boat", "Lima", "walks", "seven", "tea")


class Lists:
    """What each memory should hold, by plain means: its events, where an undone one counts as never made."""

    def __init__(self, events: list[tuple[str, int | None]] | None = None) -> None:
        self.events = list(events or [])

    def held(self) -> list[int]:
        skipped = set[int]()
        for number in range(len(self.events), 0, -1):
            kind, target = self.events[number - 1]
            if kind == "undo" and number not in skipped and target is not None:
                skipped.add(target)
        there = list[int]()
        gone = set[int]()
        for number, (kind, target) in enumerate(self.events, 1):
            if number in skipped or kind == "undo":
                continue
            if target is not None:
                gone.add(target)
            if kind == "write":
                there.append(number)
        return [number for number in there if number not in gone]


class Machine(RuleBasedStateMachine):
    writer = "text"
    memories = Bundle("memories")

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.folder = Path(self._folder.name)
        self.store = store_in(self.folder, self.writer, snapshot_every=3)
        self.lists: dict[str, Lists] = {}

    def teardown(self) -> None:
        for name, own in self.lists.items():
            self.same(name, own)
        self.store.close()
        self._folder.cleanup()

    def handle(self, name: str) -> StoredMemory:
        return self.store.memory(name)

    @initialize(target=memories)
    def begin(self) -> str:
        self.store.memory("first", create=True)
        self.lists["first"] = Lists()
        return "first"

    @rule(name=memories, words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=12))
    def tell(self, name: str, words: list[str]) -> None:
        row = self.handle(name).tell(" ".join(words) + ".", source=words[0], metadata={"n": len(words)})
        self.lists[name].events.append(("write", None))
        assert row.seq == len(self.lists[name].events)

    @rule(name=memories, pick=st.integers(0, 50), words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=5))
    def supersede(self, name: str, pick: int, words: list[str]) -> None:
        if held := self.lists[name].held():
            old = held[pick % len(held)]
            self.handle(name).tell(" ".join(words), supersedes=old)
            self.lists[name].events.append(("write", old))

    @rule(name=memories, pick=st.integers(0, 50))
    def forget(self, name: str, pick: int) -> None:
        held = self.lists[name].held()
        if not held:
            with pytest.raises(NotFoundError):
                self.handle(name).forget(1)
            return
        gone = held[pick % len(held)]
        self.handle(name).forget(gone)
        self.lists[name].events.append(("forget", gone))

    @rule(name=memories, pick=st.one_of(st.none(), st.integers(0, 50)))
    def undo(self, name: str, pick: int | None) -> None:
        events = self.lists[name].events
        wanted = None if pick is None or not events else pick % len(events) + 1
        try:
            row = self.handle(name).undo(wanted)
        except NotFoundError:
            return
        events.append(("undo", row.target))

    @rule(name=memories, target=memories)
    def fork(self, name: str) -> str:
        made = f"fork-{len(self.lists)}"
        self.handle(name).fork(made)
        self.lists[made] = Lists(self.lists[name].events)
        return made

    @rule(name=memories)
    def look(self, name: str) -> None:
        with self.handle(name).opened() as memory:
            assert [record.id for record in memory.writes][-32:] == self.lists[name].held()[-32:]

    @rule()
    def reopen(self) -> None:
        self.store.close()
        self.store = store_in(self.folder, self.writer, snapshot_every=3)

    @invariant()
    def held(self) -> None:
        for name, own in self.lists.items():
            assert self.store.ledger.holding(self.handle(name).found)[1] == own.held()

    def same(self, name: str, own: Lists) -> None:
        """The memory that was open, and one that never was but by a replay of what it holds."""
        with self.handle(name).opened() as memory:
            found = content(memory)
        fresh = Store.open(self.folder, model=self.store._given, snapshots=self.folder / "none", snapshot_every=10**6)
        with fresh.memory(name).opened() as memory:
            assert content(memory) == found
            assert self.writer == "learned" or [record.id for record in memory.writes] == own.held()
        fresh.residents.drop([self.handle(name).found.id])
        fresh.ledger.engine.dispose()


@pytest.mark.parametrize("writer", ["text", "learned"])
@pytest.mark.parametrize("steps", [pytest.param(30, id="short"), pytest.param(200, id="long", marks=pytest.mark.slow)])
def test_random_sequences(writer: str, steps: int) -> None:
    kind: Any = type("Machine", (Machine,), {"writer": writer})
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        kind,
        settings=settings(
            max_examples=10 if steps > 100 else 5,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=checks,
            derandomize=True,
        ),
    )
