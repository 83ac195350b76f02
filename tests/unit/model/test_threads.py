"""Threads that have one memory and one model: each call is whole, and nobody sees half of a write or waits for ever."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remanence import Memory, MemoryModel
from remanence.memory import Receipt
from tests.support import tiny
from tests.support.models import KINDS, everything, told, with_adapters
from tests.support.threads import HANGS, together
from tests.support.tiny import decoder, ids

every_kind = pytest.mark.parametrize("kind", KINDS)


def reader(kind: str, **settings: Any) -> MemoryModel:
    """A model that takes text."""
    return KINDS[kind](decoder(vocab_size=300), tokenizer=tiny.tokenizer(), **settings)


def again(model: MemoryModel, order: dict[int, Tensor]) -> Memory:
    """The same writes, one by one."""
    memory = model.new_memory()
    for number in sorted(order):
        model.write(memory, order[number])
    return memory


def alike(one: Memory, other: Memory) -> bool:
    return everything(one, times=False) == everything(other, times=False)


@pytest.mark.parametrize("kind", ["adapters", "text"])
@pytest.mark.parametrize("rounds", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_threads_write_read_ask_fork_and_save_one_memory(kind: str, rounds: int, tmp_path: Path) -> None:
    model = reader(kind, chunk=16)
    memory, order = model.new_memory(), dict[int, Tensor]()

    def read(who: int) -> None:
        assert model.read(memory, ids(5)).logits.isfinite().all()

    def ask(who: int) -> None:
        assert model.ask(memory, "Where was Alice born?", max_new_tokens=2).found

    def fork(who: int) -> None:
        whole(model, memory.fork())

    def save(who: int) -> None:
        memory.save(tmp_path / "memory", overwrite=True)
        memory.save(tmp_path / f"{who}")
        for name in ("memory", f"{who}"):
            whole(model, Memory.load(tmp_path / name))

    def look(who: int) -> None:
        whole(model, Memory.from_state(memory.state()))

    acts = [read, ask, fork, save, look]

    def work(who: int) -> None:
        for number in range(rounds):
            text = ids(5 + 11 * (number % 4), seed=1000 * who + number)
            receipt: Receipt = model.write(memory, text, commit=lambda made, text=text: order.update({made.id: text}))
            assert receipt.tokens == len(text)
            acts[(who + number) % len(acts)](who)

    together(*(lambda who=who: work(who) for who in range(4)))
    count = 4 * rounds
    assert memory.write_count == len(memory.writes) == len(order) == count
    assert [record.tokens for record in memory.writes] == [len(order[number]) for number in range(count)]
    assert alike(memory, again(model, order))
    memory.save(tmp_path / "memory", overwrite=True)
    assert alike(Memory.load(tmp_path / "memory"), memory)


def whole(model: MemoryModel, copied: Memory) -> None:
    """Raise where a copy of a memory is not one that can be read and written."""
    count = copied.write_count
    assert len(copied.writes) == count
    assert model.read(copied, ids(5)).logits.isfinite().all()
    assert model.write(copied, ids(9)).id == count


@every_kind
def test_threads_with_memories_of_their_own_share_a_model(kind: str) -> None:
    model = KINDS[kind]()
    memories = [model.new_memory(seed) for seed in range(3)]
    read: dict[int, list[Tensor]] = {seed: [] for seed in range(3)}

    def work(seed: int) -> None:
        for number in range(4):
            model.write(memories[seed], ids(20, seed=10 * seed + number))
            read[seed].append(model.generate(memories[seed], ids(4), max_new_tokens=3, do_sample=False))

    together(*(lambda seed=seed: work(seed) for seed in range(3)))
    for seed, memory in enumerate(memories):
        alone = model.new_memory(seed)
        for number in range(4):
            model.write(alone, ids(20, seed=10 * seed + number))
            assert torch.equal(model.generate(alone, ids(4), max_new_tokens=3, do_sample=False), read[seed][number])
        assert alike(memory, alone)


@every_kind
def test_threads_that_write_the_same_memories_in_another_order_do_not_wait_for_each_other(kind: str) -> None:
    model = KINDS[kind]()
    one, two = model.new_memory(0), model.new_memory(1)

    def work(*memories: Memory) -> None:
        for number in range(6):
            model.write(list(memories), [ids(20, seed=number), ids(20, seed=number)])
            model.read(list(memories), [ids(3), ids(3)])

    together(lambda: work(one, two), lambda: work(two, one))
    assert one.write_count == two.write_count == 12


def test_threads_with_several_models_and_memories_do_not_wait_for_each_other() -> None:
    models, hf = [with_adapters(), with_adapters()], decoder()
    models += [KINDS["pool"](hf), KINDS["text"](hf)]
    memories = [told(model) for model in models]

    def work(order: Sequence[int]) -> None:
        for number in range(4):
            for at in order:
                model, memory = models[at], memories[at]
                model.write(memory, ids(9, seed=number))
                model.generate(memory, ids(3), max_new_tokens=2, do_sample=False)

    together(lambda: work([0, 1, 2, 3]), lambda: work([3, 2, 1, 0]), lambda: work([2, 0, 3, 1]))
    assert [memory.write_count for memory in memories] == [3 + 12] * 4


def of_read(model: MemoryModel, memory: Memory, _: Path) -> Any:
    return model.read(memory, ids(5)).logits


def of_generate(model: MemoryModel, memory: Memory, _: Path) -> Any:
    return model.generate(memory, ids(5), max_new_tokens=1, output_logits=True, return_dict_in_generate=True).logits[0]


def of_fork(model: MemoryModel, memory: Memory, _: Path) -> Any:
    return memory.fork()


def of_file(model: MemoryModel, memory: Memory, path: Path) -> Any:
    memory.save(path / "m")
    return Memory.load(path / "m")


def of_search(model: MemoryModel, memory: Memory, _: Path) -> Any:
    return model.inspect(memory)["writes"], [record.id for record in memory.writes]


@every_kind
@pytest.mark.parametrize("look", [of_read, of_generate, of_fork, of_file, of_search])
def test_nobody_sees_a_write_that_is_undone(kind: str, look: Callable[..., Any], tmp_path: Path) -> None:
    model = KINDS[kind]()
    memory = told(model)
    before, expected = memory.fork(), look(model, memory.fork(), tmp_path)
    seen, looking = list[Any](), list[threading.Thread]()

    def look_at_once() -> None:
        seen.append(look(model, memory, tmp_path / "other"))

    def commit(_: Receipt) -> None:
        looking.append(threading.Thread(target=look_at_once, daemon=True))
        looking[0].start()
        looking[0].join(0.3)  # until it has looked, unless it waits for this write
        raise KeyboardInterrupt

    (tmp_path / "other").mkdir()
    with pytest.raises(KeyboardInterrupt):
        model.write(memory, ids(20, seed=1), commit=commit)
    looking[0].join(HANGS)
    assert not looking[0].is_alive()
    if isinstance(seen[0], Memory):
        assert alike(seen[0], before)
    elif isinstance(seen[0], Tensor):
        torch.testing.assert_close(seen[0], expected, atol=1e-5, rtol=0.0)
    else:
        assert seen[0] == expected


@every_kind
def test_a_generation_lets_others_write_its_memory_and_reads_on_what_it_began_with(kind: str) -> None:
    model = KINDS[kind]()
    memory, options = told(model), {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    expected = model.generate(memory.fork(), ids(5), **options)
    writing = threading.Thread(target=lambda: model.write(memory, ids(20, seed=1)), daemon=True)

    class Starts:
        """A streamer that lets another thread write, once the prompt was read."""

        def put(self, value: Tensor) -> None:
            if not writing.ident:
                writing.start()
                if kind != "adapters":  # which take turns
                    writing.join(HANGS)
                    assert memory.write_count == 4

        def end(self) -> None:
            pass

    assert torch.equal(model.generate(memory, ids(5), **options, streamer=Starts()), expected)
    writing.join(HANGS)
    assert memory.write_count == 4
