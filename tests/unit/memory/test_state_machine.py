"""Anything that can be done to memories, in any order, against plain lists."""

import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor

from remanence.config import LongTermConfig, StorageConfig, Tier
from remanence.errors import MemoryConflictError
from remanence.memory import Memory
from remanence.memory.chunks import Query
from remanence.memory.envelope import folder_of, read_envelope
from remanence.memory.lexical import words
from tests.support import longterms, texts
from tests.support.contents import contents
from tests.support.interrupts import steps
from tests.support.kinds import blocks
from tests.support.plain import PlainSlots, PlainText

NAMES = st.sampled_from(["a", "b"])
WHICH = st.integers(0, 3)


class Machine(RuleBasedStateMachine):
    """Some memories and files, each with what it should hold.

    `versions` count the saves of a file; a memory knows, for each file, which of them it goes on from.
    """

    memories: list[tuple[Memory, Any, dict[str, int]]]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.memories, self.saved, self.versions = [], dict[str, Any](), dict[str, int]()
        self.number = 0
        self.patch = pytest.MonkeyPatch()
        longterms.use_small_blocks(self.patch)

    def teardown(self) -> None:
        self.patch.undo()
        shutil.rmtree(self.folder)

    def picked(self, which: int) -> int:
        return which % len(self.memories)

    def write(self, memory: Memory, plain: Any, number: int, chunks: int) -> Any:
        """One write; returns the plain memory after it."""
        raise NotImplementedError

    @rule(which=WHICH, chunks=st.integers(1, 3))
    def one_more_write(self, which: int, chunks: int) -> None:
        memory, plain, known = self.memories[self.picked(which)]
        self.number += 1
        self.memories[self.picked(which)] = (memory, self.write(memory, plain, self.number, chunks), known)

    @rule(which=WHICH, chunks=st.integers(1, 3), share=st.floats(0, 1))
    def a_write_that_is_interrupted(self, which: int, chunks: int, share: float) -> None:
        memory, plain, known = self.memories[self.picked(which)]
        whole, before, after = memory.fork(), contents(memory), [plain]
        self.number += 1
        count = steps(lambda: after.append(self.write(whole, plain, self.number, chunks)))
        with suppress(KeyboardInterrupt):  # a fork, whose order is not known yet, may take some steps more
            steps(lambda: self.write(memory, plain, self.number, chunks), interrupt_at=1 + int(share * (count - 1)))
        happened = contents(memory) != before
        assert not happened or contents(memory) == contents(whole)
        self.memories[self.picked(which)] = (memory, after[happened], known)

    @precondition(lambda self: len(self.memories) < 4)
    @rule(which=WHICH)
    def fork(self, which: int) -> None:
        memory, plain, known = self.memories[self.picked(which)]
        self.memories.append((memory.fork(), plain.copy(), dict(known)))

    @precondition(lambda self: len(self.memories) > 1)
    @rule(which=WHICH)
    def let_go(self, which: int) -> None:
        del self.memories[self.picked(which)]

    @rule(which=WHICH, name=NAMES, overwrite=st.booleans())
    def save(self, which: int, name: str, overwrite: bool) -> None:
        memory, plain, known = self.memories[self.picked(which)]
        if not overwrite and name in self.versions and self.versions[name] != known.get(name):
            with pytest.raises(MemoryConflictError):
                memory.save(self.folder / name)
            return
        memory.save(self.folder / name, overwrite=overwrite)
        self.versions[name] = known[name] = self.versions.get(name, 0) + 1
        self.saved[name] = plain.copy()
        named = {block.file for block in read_envelope(self.folder / name).blocks.values()}
        assert named == {file.name for file in blocks(self.folder / name)}
        assert folder_of(self.folder / name).exists() == bool(named)

    @precondition(lambda self: self.saved)
    @rule(which=WHICH, name=NAMES, tier=st.sampled_from(["device", "host", "disk", None]))
    def load_in_the_place_of_another(self, which: int, name: str, tier: Tier | None) -> None:
        name = name if name in self.saved else next(iter(self.saved))
        memory = Memory.load(self.folder / name, storage=self.storage(tier, self.saved[name]))
        self.memories[self.picked(which)] = (memory, self.saved[name].copy(), {name: self.versions[name]})

    def storage(self, tier: Tier | None, plain: Any) -> StorageConfig | None:
        return None if tier is None else StorageConfig(tier)

    @invariant()
    def all_hold_what_they_should(self) -> None:
        for memory, plain, _ in self.memories:
            plain.check(memory)


class TextMachine(Machine):
    @initialize(
        tier=st.sampled_from(["text", "host", "disk"]),
        capacity=st.sampled_from([None, 20, 60]),
        random=st.booleans(),
        seed=st.integers(0, 3),
    )
    def start(self, tier: Tier, capacity: int | None, random: bool, seed: int) -> None:
        self.tier = tier
        memory = texts.text_memory(StorageConfig(tier), capacity=capacity, random=random, seed=seed)
        self.memories.append((memory, PlainText(capacity, random, seed), {}))

    def write(self, memory: Memory, plain: PlainText, number: int, chunks: int) -> PlainText:
        lengths = tuple(1 + (3 * number + place) % 9 for place in range(chunks))
        texts.tell(memory, number, lengths)
        plain = plain.copy()
        plain.write(number, lengths)
        return plain

    def storage(self, tier: Tier | None, plain: Any) -> StorageConfig | None:
        return None if tier is None or self.tier == "text" else StorageConfig(tier)

    @rule(which=WHICH, write=st.integers(0, 20))
    def forget(self, which: int, write: int) -> None:
        memory, plain, _ = self.memories[self.picked(which)]
        if plain.writes:
            write = plain.writes[write % len(plain.writes)]
            texts.forget(memory, write)
            plain.forget(write)

    @rule(which=WHICH, latent=st.integers(0, 9), asked=st.lists(st.sampled_from(texts.WORDS), max_size=4))
    def ask(self, which: int, latent: int, asked: list[str]) -> None:
        memory, plain, _ = self.memories[self.picked(which)]
        plain.check_scores(memory, Query(words(" ".join(asked)), texts.latent_of(latent).float()))


class LearnedMachine(Machine):
    @initialize(tier=st.sampled_from(["host", "disk"]), capacity=st.sampled_from([0, 100, 300, 150_000]))
    def start(self, tier: Tier, capacity: int) -> None:
        held = longterms.longterm(LongTermConfig(retrieved=7, capacity=capacity), StorageConfig(tier))
        self.memories.append((Memory(longterms.SPEC, longterm=held), PlainSlots(capacity), {}))

    def write(self, memory: Memory, plain: PlainSlots, number: int, chunks: int) -> PlainSlots:
        evicted: list[Tensor | None] = []
        numbers = [10 * number + place for place in range(chunks)]
        with memory.changing() as undo:
            first = memory.next_serial
            evicted += [memory.put(longterms.new_slots(one), undo) for one in numbers]
            memory.record(undo, 5, first, time=texts.TIME)
        plain = plain.copy()
        plain.write(numbers, evicted)
        return plain


def run(machine: type[Machine], examples: int) -> None:
    profile = settings(
        max_examples=examples,
        stateful_step_count=25,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(machine, settings=profile)


@pytest.mark.parametrize("examples", [80, pytest.param(600, marks=pytest.mark.slow)])
def test_text_memories_agree_with_plain_lists(examples: int) -> None:
    run(TextMachine, examples)


@pytest.mark.parametrize("examples", [60, pytest.param(400, marks=pytest.mark.slow)])
def test_learned_memories_agree_with_plain_lists(examples: int) -> None:
    run(LearnedMachine, examples)
