"""Retrieval: how many of a fact's slots a question brings back from long-term memory, layer by layer (M+, section 4.6).

A sample is one held-out person, written into a memory in steady state, with unrelated writes after the biography; then
one question is read, and what it retrieved is traced to the writes that made it. A layer in which the pool still holds
all slots of the biography counts as full: there was nothing to retrieve.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer

from remanence.config import new_storage
from remanence.errors import InvalidInputError
from remanence.evaluation.columns import Column
from remanence.evaluation.distances import parse_distances, writes_per_pool
from remanence.evaluation.harness import Evaluation, Item, Record
from remanence.evaluation.metrics import Metric
from remanence.evaluation.registry import Command
from remanence.evaluation.retention import people_of
from remanence.evaluation.steady import BatchOption, Int8Option, TierOption, Written, in_batches
from remanence.model.model import MemoryModel

COMMAND = Command(("", "--distances 5p,10p,20p --count 100 --json retrieval.json"), whole=True, learned=True)


def evaluation(
    model: MemoryModel,
    columns: Sequence[Column],
    *,
    distances: Annotated[str, typer.Option(help="In writes, or 10p for 10·N/K.")] = "10p",
    count: Annotated[int, typer.Option(min=1, help="People asked about, at each distance.")] = 50,
    batch: BatchOption = 25,
    tier: TierOption = None,
    int8: Int8Option = False,
    seed: Annotated[int, typer.Option(help="Another seed, other people.")] = 0,
    folder: Path | None = None,
) -> Evaluation:
    """How many of a fact's slots a question brings back from long-term memory, against chance; in --json by layer."""
    if [column.shows for column in columns] != ["longterm"]:
        raise InvalidInputError(
            "what is retrieved comes from long-term memory, so the only column is longterm, of a model with a "
            "retriever, such as --model tiny_longterm"
        )
    asked = parse_distances(distances, writes_per_pool(model))
    if asked[0] < 1:
        raise InvalidInputError("retrieval needs distances of at least one write")
    storage = new_storage(model.config, tier, int8)

    source = people_of(2 * writes_per_pool(model), name="")
    items, written = in_batches(model, [source], asked, count, batch, seed, storage=storage)

    def measure(column: Column, those: Sequence[Item]) -> list[Record]:
        held = written(those)
        found = held.at_each(partial(_records, model, held))
        return [found[distance][row] for _, _, row, distance in (item.content for item in those)]

    settings = {"seed": seed, "warm_up": source.warm_up, "int8": int8}
    each = [Metric(f"layer_{layer}", "mean", shown=False) for layer in range(len(model.backbone.layers))]
    metrics = (Metric("share", "mean"), Metric("chance", "mean"), *each)
    return Evaluation("retrieval", settings, items, columns, measure, metrics)


def _records(model: MemoryModel, held: Written, distance: int) -> list[Record]:
    """For each memory: of the slots in long-term memory that the fact's write made, the share retrieved, and what share
    of all slots there is retrieved, which is chance."""
    assert model.config.longterm is not None
    prompts = [question.text for question in held.questions(distance)]
    found = model.read(held.memories, prompts, logits_to_keep=1).past_key_values.retrieval.found
    records = []
    for row, (memory, fact) in enumerate(zip(held.memories, held.facts, strict=True)):
        assert memory.longterm is not None
        size, shares = min(layer.size for layer in memory.longterm.layers), []
        if not size:
            raise InvalidInputError("long-term memory holds nothing to retrieve; ask at a larger distance")
        for layer, slots in enumerate(memory.longterm.layers):
            there = int((memory.written_by(slots.known("serial", slots.candidates())) == fact).sum())
            hits = int((memory.written_by(slots.known("serial", found[layer][row].positions.unique())) == fact).sum())
            shares.append(hits / there if there else 1.0)
        records.append(
            {
                "share": fmean(shares),
                "chance": min(1.0, model.config.longterm.retrieved / size),
                **{f"layer_{layer}": share for layer, share in enumerate(shares)},
            }
        )
    return records
