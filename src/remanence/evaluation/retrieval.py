"""Retrieval: how many of a fact's slots a question brings back from long-term memory, layer by layer (M+, section 4.6).

A sample is one held-out person, written into a memory in steady state, with unrelated writes after the biography; then
one question is read, and what it retrieved is traced to the writes that made it.
"""

from collections.abc import Callable, Sequence
from math import sqrt
from pathlib import Path
from typing import Any

import torch

from remanence.data.episodes import FACTS, Episode
from remanence.errors import InvalidInputError
from remanence.evaluation.distances import parse_distances, writes_per_pool
from remanence.evaluation.resuming import identity, keep, kept
from remanence.memory import Memory, Storage
from remanence.model.model import MemoryModel

Progress = Callable[[int, int], None]
Batch = dict[int, tuple[list[list[float]], int]]  # per distance the shares [B][L], and how many slots a layer has


def measure(
    model: MemoryModel,
    *,
    distances: str | Sequence[int] = "10p",
    samples: int = 50,
    seed: int = 0,
    storage: Storage | None = None,
    batch: int = 25,
    state: Path | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Share of the fact's long-term slots that are among the K0 retrieved, and the share that chance would give.

    Args:
        distances: writes between biography and question, or as `parse_distances` reads them.
        samples: people; batch: memories that are written at once.
        state: folder in which shares are kept batch by batch; a run that was cut goes on from there.
        progress: called with (steps done, steps in all).

    Returns:
        what `identity` gives, `k0`, `seed`; `points`: per distance `distance`, `longterm` (slots per layer), `random`
        (K0 of them), `share` (mean over layers and samples), `stderr` (over samples), `samples`, `layers` (share of
        each).

    Raises:
        InvalidInputError: the model has no retriever, or the sizes make no sense; a state folder of another run.
    """
    if model.config.longterm is None:
        raise InvalidInputError("this model has no retriever, so there is nothing to measure")
    per_pool = writes_per_pool(model)
    asked = parse_distances(distances, per_pool) if isinstance(distances, str) else sorted(set(distances))
    if not asked or asked[0] < 1 or samples < 1 or batch < 1:
        raise InvalidInputError("retrieval needs at least one sample, and distances of at least one write")
    run: dict[str, Any] = {
        **identity(model),
        "k0": model.config.longterm.retrieved,
        "seed": seed,
        "samples": samples,
    }
    settings = {**run, "batch": batch, "distances": asked, "int8": storage is not None and bool(storage.int8)}
    record = None if state is None else kept(state / "shares.json", settings)
    finished: list[Batch] = (
        [] if record is None else [{int(d): at for d, at in one.items()} for one in record["batches"]]
    )
    starts, steps = range(0, samples, batch), 2 * per_pool + 1 + asked[-1]

    def told(done: int) -> None:
        if progress is not None:
            progress(len(finished) * steps + done, len(starts) * steps)

    for start in starts[len(finished) :]:
        indices = range(start, min(start + batch, samples))
        finished.append(
            _measure_batch(
                model,
                [Episode(seed, index, FACTS) for index in indices],
                [model.new_memory(seed + index, storage=storage) for index in indices],
                asked,
                told,
            )
        )
        if state is not None:
            keep(state / "shares.json", settings, batches=finished)
    points = []
    for distance in asked:
        found = [one[distance] for one in finished]
        shares = [row for each, _ in found for row in each]
        points.append(_point(distance, min(size for _, size in found), run["k0"], torch.tensor(shares)))
    return {**run, "points": points}


def _measure_batch(
    model: MemoryModel,
    episodes: Sequence[Episode],
    memories: Sequence[Memory],
    asked: Sequence[int],
    progress: Callable[[int], None],
) -> Batch:
    warm_up = 2 * writes_per_pool(model)
    facts: list[int] = []
    measured: Batch = {}
    for step in range(-warm_up, asked[-1] + 1):
        texts = [episode.fact if step == 0 else next(episode.unrelated) for episode in episodes]
        receipts = model.write(memories, texts)
        if step == 0:
            facts = [receipt.id for receipt in receipts]
        if step in asked:
            prompts = [episode.question(step).text for episode in episodes]
            size = min(longterm_size(memory) for memory in memories)
            measured[step] = _shares(model, memories, prompts, facts), size
        progress(step + warm_up + 1)
    return measured


def longterm_size(memory: Memory) -> int:
    assert memory.longterm is not None
    size = min(layer.size for layer in memory.longterm.layers)
    if not size:
        raise InvalidInputError(
            "long-term memory holds nothing to retrieve; ask at a larger distance, or for a capacity"
        )
    return size


def _point(distance: int, size: int, retrieved: int, shares: torch.Tensor) -> dict[str, Any]:  # [samples, L]
    each = shares.mean(dim=1)
    spread = float(each.std()) if len(each) > 1 else 0.0
    return {
        "distance": distance,
        "longterm": size,
        "random": min(1.0, retrieved / size),
        "share": float(each.mean()),
        "stderr": spread / sqrt(len(each)),
        "samples": len(each),
        "layers": [round(share, 4) for share in shares.mean(dim=0).tolist()],
    }


def _shares(
    model: MemoryModel, memories: Sequence[Memory], prompts: Sequence[str], facts: Sequence[int]
) -> list[list[float]]:  # [B][L]
    """For each memory and layer: of the slots in long-term memory that the fact's write made, the share retrieved.

    A layer in which the pool still holds all of them counts as full: there was nothing to retrieve.
    """
    found = model.read(list(memories), list(prompts), logits_to_keep=1).past_key_values.retrieval.found
    shares = []
    for row, (memory, fact) in enumerate(zip(memories, facts, strict=True)):
        assert memory.longterm is not None
        layers = []
        for layer, held in enumerate(memory.longterm.layers):
            there = int((memory.written_by(held.known("serial", held.candidates())) == fact).sum())
            hits = int((memory.written_by(held.known("serial", found[layer][row].positions.unique())) == fact).sum())
            layers.append(hits / there if there else 1.0)
        shares.append(layers)
    return shares
