"""Children that work on a store and are killed while they do; run as a program, so that it may fork with a warm model.

    python -m tests.support.crashing WRITER PLACE SNAPSHOTS COUNT SEED

Each child says what it is about to do, does it, and says that it was acknowledged. After the kill the store has to hold
what was acknowledged, with or without what was in flight, and nothing else.
"""

import json
import os
import random
import signal
import sys
import time
from contextlib import suppress
from typing import Any

import torch

from remanence import Store
from remanence.errors import NotFoundError
from remanence.store.database import vacuum
from tests.support.stores import content, model_of

WORDS = ("Ann", "Oslo", "red", "boat", "Lima", "walks", "seven", "tea")
NAME = "memory"
AT_MOST = 0.12  # seconds that a child works


def opened(place: str, snapshots: str, writer: str) -> Store:
    return Store.open(place, model=model_of(writer), snapshots=snapshots, snapshot_every=3)


def work(place: str, snapshots: str, writer: str, say: Any, seed: int) -> None:
    """What a child does until it is killed."""
    rng = random.Random(seed)
    store = opened(place, snapshots, writer)
    memory = store.memory(NAME, create=True)
    say({"at": memory.version})
    while True:
        held = store.ledger.holding(memory.found)[1]
        act = rng.choices(["tell", "forget", "undo", "look", "compact"], [6, 2, 1, 3, 1])[0]
        if act == "forget" and not held:
            continue
        say({"doing": act if act in ("tell", "forget", "undo") else None})
        if act == "tell":
            row = memory.tell(" ".join(rng.choices(WORDS, k=rng.randint(1, 30))), source=str(rng.random()))
        elif act == "forget":
            row = memory.forget(rng.choice(held))
        elif act == "undo":
            try:
                row = memory.undo()
            except NotFoundError:
                say({"done": None})
                continue
        elif act == "look":
            with memory.opened():
                pass
        else:
            vacuum(store.ledger.engine)
        say({"done": row.seq if act in ("tell", "forget", "undo") else None})


def killed(place: str, snapshots: str, writer: str, seed: int) -> tuple[int, bool]:
    """The version that was acknowledged to a child which was killed, and whether a change was in flight."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        os.close(reads)
        try:
            with os.fdopen(writes, "w", buffering=1) as pipe:
                work(place, snapshots, writer, lambda said: print(json.dumps(said), file=pipe, flush=True), seed)
        except BaseException as error:
            print(f"child: {error!r}", file=sys.stderr)
        os._exit(1)
    os.close(writes)
    with os.fdopen(reads) as pipe:
        first = pipe.readline()
        time.sleep(random.Random(seed).uniform(0, AT_MOST))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        said = [json.loads(line) for line in [first, *pipe] if line.endswith("\n")]
    version, flying = said[0]["at"] if said else 0, False
    for one in said[1:]:
        if "doing" in one:
            flying = one["doing"] is not None
        else:
            flying = False
            version = version if one["done"] is None else one["done"]
    return version, flying


def verify(place: str, snapshots: str, writer: str, version: int, flying: bool) -> None:
    """Everything that was acknowledged is there, and the memory is what a replay makes of it."""
    store = opened(place, snapshots, writer)
    memory = store.memory(NAME, create=True)
    there = memory.version
    assert there == version or (flying and there == version + 1), f"{there} after {version}, in flight: {flying}"
    rows = store.ledger.rows(memory.found, kinds=("write", "forget", "undo"), limit=10**6)
    assert [row.seq for row in rows] == list(range(1, there + 1))
    with memory.opened() as one:
        found = content(one)
    store.ledger.engine.dispose()
    fresh = Store.open(place, model=model_of(writer), snapshots=f"{snapshots}-none", snapshot_every=10**6)
    with fresh.memory(NAME).opened() as one:
        assert content(one) == found
    fresh.ledger.engine.dispose()


def main(writer: str, place: str, snapshots: str, count: int, seed: int) -> None:
    torch.set_num_threads(1)
    model_of(writer)
    cut = 0
    for number in range(count):
        part = f"{place}-{number // 25}" if "://" not in place else place  # short ledgers, so that a replay is quick
        version, flying = killed(part, snapshots + part[-4:].replace("/", ""), writer, 1000 * seed + number)
        cut += flying
        verify(part, snapshots + part[-4:].replace("/", ""), writer, version, flying)
    print(f"verified {count}, in flight {cut}, versions up to {version}")


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
