"""Several processes and threads write to one memory: everything is there once, and nobody is turned away."""

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from remanence import Store
from tests.support.stores import WRITERS, content, model_of, store_in


def told_by_processes(writer: str, place: str, names: Sequence[str], count: int) -> None:
    command = [sys.executable, "-W", "ignore", "-m", "tests.support.telling", writer, place]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen([*command, name, str(count)], stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=env)
        for name in names
    ]
    for one in started:
        assert one.stdout is not None and "ready\n" in iter(one.stdout.readline, "")  # behind what a tokenizer prints
    for one in started:
        assert one.stdin is not None
        one.stdin.write("go\n")
        one.stdin.flush()
    for one in started:
        _, errors = one.communicate()
        assert one.returncode == 0, errors


def same_as_a_replay(place: str, writer: str, folder: Path) -> None:
    with Store.open(place, model=model_of(writer)) as store, store.memory("shared").opened() as memory:
        found = content(memory)
    fresh = Store.open(place, model=model_of(writer), snapshots=folder / "none", snapshot_every=10**6)
    with fresh.memory("shared").opened() as memory:
        assert content(memory) == found


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS)
def test_four_processes_write_to_one_memory(writer: str, tmp_path: Path) -> None:
    names, count = ["a", "b", "c", "d"], 100 if writer == "text" else 25
    place = str(tmp_path / "store")
    told_by_processes(writer, place, names, count)
    with store_in(tmp_path / "store", writer) as store:
        rows = store.memory("shared").writes(limit=1000)
    assert sorted(str(row.source) for row in rows) == sorted(f"{name}-{n}" for name in names for n in range(count))
    assert [row.seq for row in rows] == list(range(1, len(rows) + 1))
    same_as_a_replay(place, writer, tmp_path)


@pytest.mark.parametrize("writer", WRITERS)
def test_threads_tell_and_ask_one_memory(writer: str, tmp_path: Path) -> None:
    with store_in(tmp_path, writer) as store:
        memory = store.memory("shared", create=True)

        def tell(number: int) -> int:
            seq = memory.tell(f"Note {number}.", source=str(number)).seq
            if number % 3 == 0:
                memory.ask("Which note?", max_new_tokens=1)
            return seq

        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(tell, range(24)))
        assert sorted(found) == list(range(1, 25))
    same_as_a_replay(str(tmp_path), writer, tmp_path)
