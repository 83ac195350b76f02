"""A memory is a function of the writes that its ledger says it holds. This computes it, from as near as there is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from remanence.environment import device_name, versions
from remanence.errors import MemoryMismatchError
from remanence.memory import Memory
from remanence.memory.transaction import write
from remanence.model.model import MemoryModel
from remanence.store.cutting import pieces_of
from remanence.store.rows import Found, Told


@dataclass
class Held:
    """A memory, and the numbers of the writes in it, oldest first."""

    memory: Memory
    holds: list[int]


def stamp(model: MemoryModel) -> dict[str, str]:
    """On what a memory is encoded: where it is the same, a replay is the same bit for bit."""
    return {**versions(), "device": device_name(model.device)}


def new(model: MemoryModel, found: Found) -> Held:
    """The memory before its first write.

    Raises:
        MemoryMismatchError: other weights encoded what it holds.
    """
    if found.fingerprint is not None and found.fingerprint != model.fingerprint():
        raise MemoryMismatchError(
            f"memory {found.name!r} was encoded with other weights than this {model.name!r}; load the model of then, "
            "or encode it anew: remanence store reencode"
        )
    options: dict[str, Any] = {}
    if found.settings["writer"] == "text":
        options = {"head": tuple(found.settings["head"]), "date": found.settings["date"]}
    return Held(model.new_memory(found.settings["seed"], **options), [])


def replay(model: MemoryModel, held: Held, told: Sequence[Told]) -> None:
    """Write these into it, each alone, so that it is the same bit for bit whenever it is done."""
    for one in told:
        encode(model, held.memory, one)
        held.holds.append(one.seq)


@torch.inference_mode(False)
@torch.no_grad()
def encode(model: MemoryModel, memory: Memory, one: Told, commit: Callable[[Any], object] | None = None) -> None:
    """Write one into a memory, as `MemoryModel.write` does, but from the ids on record and with the time of then."""
    about = {"source": one.source, "metadata": one.metadata, "time": one.created}
    pieces = [(ids.to(model.device), text) for ids, text in pieces_of(one.content)]
    write(model.writer, [memory], [pieces], about, id_=one.seq, commit=commit)


def reach(
    model: MemoryModel,
    held: Held,
    target: list[int],
    told_of: Callable[[Sequence[int]], list[Told]],
    earlier: Callable[[], Held],
) -> Held:
    """A memory that holds `target`: the one given, changed, or else `earlier()`, whose writes begin it."""
    held = _without(model, held, target)
    if held.holds != target[: len(held.holds)]:
        held = earlier()
    replay(model, held, told_of(target[len(held.holds) :]))
    return held


def _without(model: MemoryModel, held: Held, target: list[int]) -> Held:
    """Chunks do not see each other, so that of a text memory a write can be taken out where it stands."""
    wanted = set(target)
    gone = [seq for seq in held.holds if seq not in wanted]
    rest = [seq for seq in held.holds if seq in wanted]
    if not gone or held.memory.chunks is None or rest != target[: len(rest)]:
        return held
    left = Held(held.memory.fork(), rest)
    there = {record.id for record in left.memory.writes}
    if not all(seq in there and model.forget(left.memory, seq).exact for seq in gone):
        return held  # what was dropped for good since then would be there
    left.memory.write_count = 1 + max(rest, default=-1)  # an undo may bring the others back
    return left
