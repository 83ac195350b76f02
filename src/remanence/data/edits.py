"""Edits of facts: read from CounterFact and zsRE files, or made up about invented people."""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from remanence.data.biographies import ATTRIBUTES, Person, biography, question, sample_person, values
from remanence.data.episodes import FACTS
from remanence.errors import InvalidInputError
from remanence.texts import read_text

Kind = Literal["counterfact", "zsre", "biographies"]

_STATED = 3


@dataclass(frozen=True)
class Edit:
    """One fact to change, and what is asked afterwards.

    Attributes:
        statement: the new fact as text, for methods that read.
        prompt: what the new fact answers or completes; new: its answer; old: the answer before.
        paraphrases: other wordings of the prompt.
        neighbours: prompts about others, and answers that must stay as they are.
        known: texts to write before any edit, so that the old facts are known; empty where the model has them.
    """

    statement: str
    prompt: str
    new: str
    old: str
    paraphrases: tuple[str, ...]
    neighbours: tuple[tuple[str, str], ...]
    known: tuple[str, ...] = ()


def biography_edits(count: int, seed: int = 0) -> list[Edit]:
    """Held-out people, each with one fact that changes and a neighbour who shares half of the name.

    Both biographies are to be written first, so that the old fact and the neighbour's are known. The statement says the
    new fact in three ways: a single sentence would be shorter than what a memory can take (16 tokens). The neighbour
    has the same kind of fact, and is asked about it.
    """
    rng = random.Random(f"edits/{seed}")
    taken: set[str] = set()
    return [_biography_edit(rng, taken) for _ in range(count)]


def _biography_edit(rng: random.Random, taken: set[str]) -> Edit:
    person = _draw(rng, taken)
    neighbour = _draw(rng, taken, person)
    attributes = rng.sample(ATTRIBUTES, FACTS)
    edited = attributes[0]
    old, kept = person.facts[edited], neighbour.facts[edited]
    new = rng.choice([value for value in values(edited) if value not in (old, kept)])
    after = Person(person.name, {edited: new})
    wordings = sorted({question(person, edited, rng) for _ in range(40)})
    prompt, *paraphrases = rng.sample(wordings, 3)
    return Edit(
        statement=" ".join(biography(after, rng, [edited]) for _ in range(_STATED)),
        prompt=prompt,
        new=new,
        old=old,
        paraphrases=tuple(paraphrases),
        neighbours=((question(neighbour, edited, rng), kept),),
        known=(biography(person, rng, attributes), biography(neighbour, rng, attributes)),
    )


def _draw(rng: random.Random, taken: set[str], beside: Person | None = None) -> Person:
    """Someone new; `beside` someone, with the same first or the same last name, and not the same facts."""
    while True:
        person = sample_person(rng, "test")
        if person.name in taken:
            continue
        if beside is not None:
            shared = set(person.name.split(" ", 1)) & set(beside.name.split(" ", 1))
            if not shared or any(person.facts[a] == beside.facts[a] for a in ATTRIBUTES):
                continue
        taken.add(person.name)
        return person


def read_edits(path: Path) -> tuple[Kind, list[Edit]]:
    """A JSON list of edits, and by which metrics they are scored.

    | records | scored as |
    |---|---|
    | CounterFact as published with ROME (`requested_rewrite`, ...) | counterfact |
    | CounterFact with one paraphrase and one neighbour (`prompt`, `locality_prompt`, ...) | counterfact |
    | zsRE as published with MEND (`src`, `alt`, `rephrase`, `loc`, ...) | zsre |
    | zsRE of KnowEdit (`prompt`, `locality`, ...) | zsre |

    Raises:
        FileNotFoundError: no such file.
        InvalidInputError: it is in none of these forms.
    """
    teach = f"{path} is no JSON list of CounterFact or zsRE edits"
    try:
        records = json.loads(read_text(path))
    except ValueError as error:
        raise InvalidInputError(f"{teach}: {error}") from error
    if not isinstance(records, list) or not records or not isinstance(records[0], dict):
        raise InvalidInputError(teach)
    kind: Kind = "counterfact" if {"requested_rewrite", "locality_prompt"} & set(records[0]) else "zsre"
    edits = []
    for number, record in enumerate(records):
        try:
            edits.append(_counterfact(record) if kind == "counterfact" else _zsre(record))
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise InvalidInputError(f"{teach}: record {number} lacks or misuses {error}") from error
    return kind, edits


def _counterfact(record: dict[str, Any]) -> Edit:
    if "requested_rewrite" not in record:
        neighbour = (record["locality_prompt"], record["locality_ground_truth"])
        prompt, new, old = record["prompt"], record["target_new"], record["ground_truth"]
        return Edit(f"{prompt} {new}.", prompt, new, old, (record["rephrase_prompt"],), (neighbour,))
    rewrite = record["requested_rewrite"]
    prompt, new = rewrite["prompt"].replace("{}", rewrite["subject"]), rewrite["target_new"]["str"]
    old = rewrite["target_true"]["str"]
    neighbours = tuple((asked, old) for asked in record["neighborhood_prompts"])
    return Edit(f"{prompt} {new}.", prompt, new, old, tuple(record["paraphrase_prompts"]), neighbours)


def _zsre(record: dict[str, Any]) -> Edit:
    if "src" in record:
        prompt, new, old, other = record["src"], record["alt"], record["answers"][0], record["rephrase"]
        return Edit(f"{prompt} {new}.", prompt, new, old, (other,), ((record["loc"], record["loc_ans"]),))
    prompt, new, old, other = (record[name] for name in ("prompt", "target_new", "ground_truth", "rephrase_prompt"))
    return Edit(f"{prompt} {new}.", prompt, new, _first(old), (other,), tuple(_localities(record["locality"])))


def _localities(locality: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for asked in locality.values():
        yield from ((one["prompt"], _first(one["ground_truth"])) for one in asked)


def _first(answers: Any) -> str:
    """Of several right answers, which may be lists themselves, the first."""
    while not isinstance(answers, str):
        answers = answers[0]
    return answers
