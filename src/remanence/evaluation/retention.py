"""Retention: how often a fact is recalled, as a function of the writes since it was written.

A sample is a text and a question about it, by default the biography of a held-out person. Its memory is brought to
steady state by unrelated writes; then the text is written, then unrelated paragraphs, one per write. At each distance
one question is asked; about a person it is in words and about an attribute drawn for it. Reading changes nothing, so
every question is the first of its episode. Of the columns, `oracle` is the text alone, `fits` the text and what was
written after it, as much as fits of the end, and `bm25_4` the best four of all paragraphs that were written.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from remanence.config import new_storage
from remanence.data.biographies import ATTRIBUTES, values
from remanence.data.episodes import FACTS, Episode
from remanence.errors import InvalidInputError
from remanence.evaluation.answering import Context, continuations
from remanence.evaluation.columns import LEARNED, Column
from remanence.evaluation.distances import DISTANCES, parse_distances, writes_per_pool
from remanence.evaluation.harness import Evaluation, Item, Record
from remanence.evaluation.metrics import Metric
from remanence.evaluation.passages import passages_of
from remanence.evaluation.registry import Command
from remanence.evaluation.steady import BatchOption, Int8Option, Samples, TierOption, Written, in_batches
from remanence.evaluation.told import Told
from remanence.memory import Memory
from remanence.model.model import MemoryModel
from remanence.texts import answer_of

METRICS = (Metric("right", "rate"),)
COMMAND = Command(
    columns="nothing,fits",
    also=("oracle", "bm25"),
    learned=True,
    examples=(
        "--count 50",
        "--distances 0,5,…,20p --json retention.json --plot retention.png",
        "--columns pool,nothing --distances 0..16",
        "--data dev-v1.1.json --distances 0,5,…,60 --columns pool,oracle,bm25_4",
    ),
)


def people_of(warm_up: int, facts: int = FACTS, *, unlisted: bool = False, name: str | None = None) -> Samples:
    """Held-out people. An answer is right if it is the value asked for, to the letter.

    `unlisted`: names and values are made of words that are on no list, and that nothing was trained on.
    """
    return Samples(
        ("unlisted" if unlisted else "listed") if name is None else name,
        {"facts": facts, **({} if unlisted else {"chance": chance()})},
        lambda seed, index: Episode(seed, index, facts, unlisted=unlisted),
        lambda said, question: answer_of(said) == question.truth,
        warm_up,
    )


def chance() -> float:
    """The exact match of guessing: one value of the attribute's, averaged over attributes."""
    return sum(1 / len(values(attribute)) for attribute in ATTRIBUTES) / len(ATTRIBUTES)


def evaluation(
    model: MemoryModel,
    columns: Sequence[Column],
    *,
    data: Annotated[
        Path | None, typer.Option(help="Passages in place of people: a SQuAD v1.1 or Natural Questions file.")
    ] = None,
    people: Annotated[
        str,
        typer.Option(
            help="Whose biographies: listed (names and values of the lists that the bundled models were trained on), "
            "unlisted (made up of words that nothing was trained on), or both."
        ),
    ] = "both",
    facts: Annotated[int, typer.Option(min=1, help="Facts per biography.")] = FACTS,
    distances: Annotated[
        str, typer.Option(help="In writes: 0,5,10; 2p is 2·N/K; 0..20 counts by one; 0,5,…,20p by five.")
    ] = DISTANCES,
    count: Annotated[int, typer.Option(min=1, help="People or questions asked about, at each distance.")] = 100,
    batch: BatchOption = 25,
    tier: TierOption = None,
    int8: Int8Option = False,
    seed: Annotated[int, typer.Option(help="Another seed, other people.")] = 0,
    folder: Path | None = None,
) -> Evaluation:
    """How often a text is recalled, by the writes since it was written: exact match about people, hits about passages.

    Passages are asked about by the published protocol: answers of at most 4 tokens, and 10 generated tokens in which
    one must stand.
    """
    if people not in ("listed", "unlisted", "both"):
        raise InvalidInputError(f"--people is listed, unlisted or both, not {people!r}")
    storage = new_storage(model.config, tier, int8)
    asked = parse_distances(distances, writes_per_pool(model))
    remembered = [column.shows for column in columns if column.shows in LEARNED]
    steady = 2 * writes_per_pool(model)
    sources = [people_of(steady, facts, unlisted=kind == "unlisted") for kind in ("listed", "unlisted")]
    sources = [one for one in sources if people in (one.name, "both")]
    if data is not None:
        sources = [passages_of(data, model.tokenizer, 0 if model.shipped_pool is not None else steady)]
    settings = {"storage": storage, "longterm": "longterm" in remembered}
    items, written = in_batches(model, sources, asked, count, batch, seed, **settings)

    def from_memory(held: Written, distance: int) -> dict[str, list[str]]:
        """By column, what is said."""
        prompts = [question.text for question in held.questions(distance)]
        views = {"longterm": held.memories}
        if "pool" in remembered:
            views["pool"] = [memory.pool_only() for memory in held.memories]
        return {one: continuations(model, views[one], prompts, held.source.answer_tokens) for one in remembered}

    def from_text(held: Written, column: Column, distance: int) -> list[str]:
        rows = [
            _row(model, held, column, place, distance, one.text) for place, one in enumerate(held.questions(distance))
        ]
        return continuations(model, [Memory(model.spec)] * len(rows), rows, held.source.answer_tokens)

    def measure(column: Column, those: Sequence[Item]) -> list[Record]:
        held, records = written(those), dict[tuple[int, int], Record]()
        for distance in dict.fromkeys(item.content[3] for item in those):
            if column.shows in LEARNED:
                said = held.at_each(partial(from_memory, held))[distance][column.shows]
            else:
                said = from_text(held, column, distance)
            for row, (text, one) in enumerate(zip(said, held.questions(distance), strict=True)):
                records[row, distance] = {"right": held.source.right(text, one), "said": text}
        return [records[item.content[2:]] for item in those]

    about = {"slots": model.slots, "slots_per_write": model.slots_per_write, "seed": seed, "int8": int8}
    each = {one.name: one.about for one in sources}
    return Evaluation("retention", {**about, **each}, items, columns, measure, METRICS)


def _row(model: MemoryModel, held: Written, column: Column, place: int, distance: int, prompt: str) -> list[int]:
    """Ids of a prompt, behind what a column shows as text."""
    told = held.told(place, distance)
    texts = {"nothing": [], "oracle": told[:1], "fits": told}.get(column.shows)
    if texts is None:
        every = [*held.before[place], *told]
        texts = [every[one] for one in Told(model, every).ranked(prompt)[: column.passages][::-1]]
    context = Context(model, held.source.answer_tokens)
    for text in texts:
        context.append(text)
    return context.before(prompt)
