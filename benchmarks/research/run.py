"""Who should leave the pool: rules against each other, for a pool alone and with long-term memory behind it.

    python benchmarks/research/run.py --json benchmarks/research/results.json

One memory is written over and over, with biographies of held-out people and paragraphs of novels in turn; behind each
write, whoever was written so many writes ago is asked about. The same texts, the same questions and the same weights
for all rules; nothing is trained for any of them.

| eviction | who leaves the pool |
|---|---|
| random | K slots of each layer, drawn for each layer (MemoryLLM) |
| shared | the same K ranks in all layers |
| older half | K drawn among the older half of the slots |
| oldest | the K oldest, which is a queue |
"""

import argparse
import random
import sys
from collections.abc import Callable
from math import sqrt
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from measure import circumstances, write_down
from remanence import Memory, MemoryModel
from remanence.checkpoints import bundled
from remanence.data.episodes import Episode
from remanence.data.prose import paragraphs
from remanence.evaluation.answering import answer

Evict = Callable[[torch.Generator, int, int, int], Tensor]  # generator, L, N, K -> ranks [L, K], 0 the oldest


def drawn(generator: torch.Generator, layers: int, among: int, k: int) -> Tensor:
    return torch.stack([torch.randperm(among, generator=generator)[:k] for _ in range(layers)])


EVICTION: dict[str, Evict] = {
    "random": drawn,
    "shared": lambda generator, layers, slots, k: drawn(generator, 1, slots, k).expand(layers, k),
    "older half": lambda generator, layers, slots, k: drawn(generator, layers, slots // 2, k),
    "oldest": lambda generator, layers, slots, k: torch.arange(k).expand(layers, k),
}
POOL, LONGTERM = (0, 4, 8, 12, 16, 24, 32), (0, 16, 32, 64, 160, 320)  # distances


def stream(
    model: MemoryModel, evict: Evict, distances: tuple[int, ...], questions: int, seed: int
) -> list[dict[str, float]]:
    """Exact match by distance, of `questions` each, over one memory."""
    generator, rng = torch.Generator().manual_seed(seed), random.Random(f"research/{seed}")
    memory, warm_up = model.new_memory(seed), 2 * model.slots // model.slots_per_write
    told: dict[int, Episode] = {}
    right = dict.fromkeys(distances, 0)
    asked = dict.fromkeys(distances, 0)
    write = 0
    while min(asked.values()) < questions:
        if write % 2 == 0:
            told[write] = Episode(seed, write)
        _put(model, memory, told[write].fact if write in told else rng.choice(paragraphs()), evict, generator)
        for distance in distances:
            episode = told.get(write - distance)
            if write >= warm_up + max(distances) and episode is not None and asked[distance] < questions:
                question = episode.question(distance)
                asked[distance] += 1
                right[distance] += answer(model, [memory], [question.text])[0] == question.truth
        told.pop(write - max(distances), None)
        write += 1
    rates = {distance: right[distance] / questions for distance in distances}
    return [
        {"distance": distance, "exact_match": rate, "stderr": sqrt(rate * (1 - rate) / questions)}
        for distance, rate in rates.items()
    ]


def _put(model: MemoryModel, memory: Memory, text: str, evict: Evict, generator: torch.Generator) -> None:
    layers = len(model.backbone.layers)
    model.write(memory, text, evict=evict(generator, layers, model.slots, model.slots_per_write))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="where the figures go; printed otherwise")
    parser.add_argument("--questions", type=int, default=100, help="at each distance")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    pool = MemoryModel.from_pretrained(bundled("tiny")).optimize_for_cpu()
    longterm = MemoryModel.from_pretrained(bundled("tiny_longterm")).optimize_for_cpu()
    results = []

    def measured(name: str, model: MemoryModel, eviction: str, distances: tuple[int, ...]) -> None:
        print(f"{name}, {eviction} ...", file=sys.stderr, flush=True)
        points = stream(model, EVICTION[eviction], distances, options.questions, options.seed)
        results.append({"model": name, "eviction": eviction, "points": points})

    for eviction in EVICTION:
        measured("tiny", pool, eviction, POOL)
    for eviction in ("random", "oldest"):
        measured("tiny_longterm", longterm, eviction, LONGTERM)
    write_down(
        {**circumstances(), "questions": options.questions, "seed": options.seed, "results": results}, options.json
    )


if __name__ == "__main__":
    main()
