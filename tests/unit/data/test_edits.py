"""Edits are read from the forms in which they are published, and made up so that they can be asked about."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from remanence.data.biographies import ATTRIBUTES, split_of, values
from remanence.data.edits import biography_edits, read_edits
from remanence.errors import InvalidInputError

COUNTERFACT = {
    "case_id": 0,
    "prompt": "The mother tongue of Ann is",
    "target_new": "English",
    "subject": "Ann",
    "ground_truth": "French",
    "rephrase_prompt": "Ann grew up with",
    "locality_prompt": "Bob is a native speaker of",
    "locality_ground_truth": "French",
}
ROME = {
    "requested_rewrite": {
        "prompt": "The mother tongue of {} is",
        "subject": "Ann",
        "target_new": {"str": "English"},
        "target_true": {"str": "French"},
    },
    "paraphrase_prompts": ["Ann grew up with", "Ann was raised in"],
    "neighborhood_prompts": ["Bob is a native speaker of", "Carl spoke"],
}
MEND = {
    "src": "Who made it?",
    "alt": "Ann",
    "answers": ["Bob", "Robert"],
    "rephrase": "By whom was it made?",
    "loc": "nq question: when",
    "loc_ans": "1999",
}
KNOWEDIT = {
    "prompt": "Who made it?",
    "target_new": "Ann",
    "ground_truth": ["Bob"],
    "rephrase_prompt": "By whom was it made?",
    "locality": {"Relation_Specificity": [{"prompt": "When", "ground_truth": [["1999"], ["99"]]}]},
}


def written(tmp_path: Path, content: Any) -> Path:
    path = tmp_path / "edits.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.mark.parametrize("record", [COUNTERFACT, ROME])
def test_counterfact_is_read_in_both_forms(tmp_path: Path, record: dict[str, Any]) -> None:
    kind, (edit,) = read_edits(written(tmp_path, [record]))
    assert kind == "counterfact"
    assert edit.statement == "The mother tongue of Ann is English."
    assert (edit.prompt, edit.new, edit.old) == ("The mother tongue of Ann is", "English", "French")
    assert edit.paraphrases[0] == "Ann grew up with"
    assert edit.neighbours[0] == ("Bob is a native speaker of", "French")
    assert len(edit.paraphrases) == len(edit.neighbours) == (2 if record is ROME else 1)


@pytest.mark.parametrize("record", [MEND, KNOWEDIT])
def test_zsre_is_read_in_both_forms(tmp_path: Path, record: dict[str, Any]) -> None:
    kind, (edit,) = read_edits(written(tmp_path, [record]))
    assert kind == "zsre"
    assert (edit.prompt, edit.new, edit.old) == ("Who made it?", "Ann", "Bob")
    assert edit.paraphrases == ("By whom was it made?",)
    assert edit.neighbours[0][1] == "1999"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("no json", "no JSON list"),
        ({"a": 1}, "no JSON list"),
        ([], "no JSON list"),
        ([COUNTERFACT, {"prompt": "x"}], "record 1"),
        ([{**MEND, "answers": []}], "record 0"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        read_edits(written(tmp_path, content))


def test_invented_edits_change_one_fact_and_leave_the_neighbours_alone() -> None:
    edits = biography_edits(30)
    people: list[str] = []
    for edit in edits:
        attribute = next(a for a in ATTRIBUTES if {edit.new, edit.old} <= set(values(a)))
        (asked, kept), (before, beside) = edit.neighbours[0], edit.known
        assert kept in values(attribute)
        assert len({edit.new, edit.old, kept}) == 3
        assert edit.statement.count(edit.new) == 3 and edit.old not in edit.statement
        assert edit.old in before and kept in beside
        assert len({edit.prompt, *edit.paraphrases}) == 3
        person, neighbour = (_name_in(text) for text in (edit.prompt, asked))
        assert person in edit.statement and person in before and neighbour in beside
        assert len(set(person.split()) & set(neighbour.split())) == 1
        people += [person, neighbour]
    assert len(set(people)) == len(people)
    assert all(split_of(name) == "test" for name in people)


def test_the_same_seed_gives_the_same_edits_however_many() -> None:
    assert biography_edits(2) == biography_edits(4)[:2]
    assert biography_edits(2) != biography_edits(2, seed=1)


def _name_in(text: str) -> str:
    """The name in a question: its last two capitalised words that stand together, without the question word."""
    words = [word.strip("?,.").removesuffix("'s") for word in text.split()[2:-1]]
    pairs = [f"{a} {b}" for a, b in pairwise(words) if a[0].isupper() and b[0].isupper()]
    assert len(pairs) == 1, text
    return pairs[0]
