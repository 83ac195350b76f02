"""All that makes a memory what it is, as plain data that can be compared."""

from typing import Any

import torch

from remanence.memory import Memory
from remanence.memory.chunks import Query
from tests.support.longterms import bits, everything


def contents(memory: Memory) -> dict[str, Any]:
    """Times and the tier left out."""
    records = [
        (one.id, one.tokens, one.first_serial, one.slots, one.source, dict(one.metadata), one.text)
        for one in memory.writes
    ]
    found: dict[str, Any] = {
        "spec": memory.spec,
        "writes": records,
        "write_count": memory.write_count,
        "next": memory.next_serial,
        "random state": bits(memory._generator.get_state()),
        "newest": None if memory.newest is None else bits(memory.newest),
    }
    if memory.pool_or_none is not None:
        pool = memory.pool_or_none
        found |= {name: bits(tensor) for name, tensor in pool.tensors.items()} | {"order": pool.order.tolist()}
    if memory.longterm is not None:
        found["longterm"] = everything(memory.longterm)
    if memory.chunks is not None:
        held = memory.chunks
        found["chunks"] = [
            (c.key, c.write, c.place, c.tokens, None if c.ids is None else c.ids.tolist(), c.text, bits(c.latent))
            for c in held
        ]
        found |= {"head": held.head, "date": held.date, "capacity": held.capacity, "tokens": held.tokens}
        found |= {"random": held.random, "seed": held.seed, "next_key": held.next_key, "dropped": held.dropped}
        kept = [chunk.slots for chunk in held if chunk.slots is not None]
        found["slots"] = [bits(one.slots) + (b"" if one.scales is None else bits(one.scales)) for one in kept]
        found["scores"] = list(held.scores(Query(["alice", "oslo"], torch.ones(memory.spec.retrieval_size))).values())
        found["draws"] = list(held._draws)
    return found
