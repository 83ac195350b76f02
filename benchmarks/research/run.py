"""Who should leave the pool: rules against each other, for a pool alone and with long-term memory behind it.

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

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from remanence import MemoryModel
from remanence.checkpoints import bundled
from remanence.data.episodes import Episode
from remanence.data.prose import paragraphs
from remanence.evaluation.answering import answer
from remanence.evaluation.columns import Column
from remanence.evaluation.harness import Evaluation, Item, Record
from remanence.evaluation.metrics import Metric

Evict = Callable[[torch.Generator, int, int, int], Tensor]  # generator, L, N, K -> ranks [L, K], 0 the oldest


def drawn(generator: torch.Generator, layers: int, among: int, k: int) -> Tensor:
    return torch.stack([torch.randperm(among, generator=generator)[:k] for _ in range(layers)])


EVICTION: dict[str, Evict] = {
    "random": drawn,
    "shared": lambda generator, layers, slots, k: drawn(generator, 1, slots, k).expand(layers, k),
    "older half": lambda generator, layers, slots, k: drawn(generator, layers, slots // 2, k),
    "oldest": lambda generator, layers, slots, k: torch.arange(k).expand(layers, k),
}
DISTANCES = {"tiny": (0, 4, 8, 12, 16, 24, 32), "tiny_longterm": (0, 16, 32, 64, 160, 320)}
RULES = {"tiny": tuple(EVICTION), "tiny_longterm": ("random", "oldest")}


@dataclass(frozen=True)
class Settings:
    questions: int = field(default=100, metadata={"help": "at each distance"})
    seed: int = 0
    models: list[str] = field(default_factory=lambda: list(DISTANCES))


def evaluation(on: Settings) -> tuple[MemoryModel, Evaluation]:
    models = {name: MemoryModel.from_pretrained(bundled(name)).optimize_for_cpu() for name in on.models}
    items = [
        Item(f"{name}/{number}", (name,), RULES[name], name, together=name)
        for name in on.models
        for number in range(on.questions)
    ]

    def measure(rule: Column, those: Sequence[Item]) -> list[Record]:
        name = those[0].content
        return stream(models[name], EVICTION[rule.name], DISTANCES[name], len(those), on.seed)

    rules = [Column(name, name) for name in EVICTION]
    metrics = [Metric(str(distance), "rate") for distance in sorted({at for name in models for at in DISTANCES[name]})]
    return models[on.models[0]], Evaluation("eviction", {"seed": on.seed}, items, rules, measure, metrics)


def stream(model: MemoryModel, evict: Evict, distances: tuple[int, ...], questions: int, seed: int) -> list[Record]:
    """Whether the n-th question at each distance, of so many over one memory, was answered."""
    generator, rng = torch.Generator().manual_seed(seed), random.Random(f"research/{seed}")
    memory, warm_up = model.new_memory(seed), 2 * model.slots // model.slots_per_write
    told: dict[int, Episode] = {}
    right: dict[int, list[bool]] = {distance: [] for distance in distances}
    write = 0
    while min(map(len, right.values())) < questions:
        if write % 2 == 0:
            told[write] = Episode(seed, write)
        ranks = evict(generator, len(model.backbone.layers), model.slots, model.slots_per_write)
        model.write(memory, told[write].fact if write in told else rng.choice(paragraphs()), evict=ranks)
        for distance, found in right.items():
            episode = told.get(write - distance)
            if write >= warm_up + max(distances) and episode is not None and len(found) < questions:
                question = episode.question(distance)
                found.append(answer(model, [memory], [question.text])[0] == question.truth)
        told.pop(write - max(distances), None)
        write += 1
    return [{str(distance): found[number] for distance, found in right.items()} for number in range(questions)]
