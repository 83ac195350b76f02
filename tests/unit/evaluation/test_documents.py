"""Long documents are made of files as they say, of the lengths asked for."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from remanence.data.prose import paragraphs
from remanence.errors import InvalidInputError
from remanence.evaluation.babi import parse_lengths
from remanence.evaluation.longcontext import read_documents
from tests.support.tiny import tokenizer

BABI = """1 Mary went to the hall.
2 John took the milk.
3 Where is Mary? \thall\t1
4 Mary went to the garden.
5 Where is Mary? \tgarden\t4
1 Sandra is in the park.
2 Where is Sandra? \tpark\t1
"""
STORIES = {
    ("Where is Mary?", "hall"): ["Mary went to the hall.", "John took the milk."],
    ("Where is Mary?", "garden"): ["Mary went to the hall.", "John took the milk.", "Mary went to the garden."],
    ("Where is Sandra?", "park"): ["Sandra is in the park."],
}


def words(text: str, **_: Any) -> Any:
    return {"input_ids": text.split()}


def longbench(path: Path, *records: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, records)))
    return path


def babi(path: Path) -> Path:
    path.write_text(BABI)
    return path


def test_lengths_are_read_in_thousands() -> None:
    assert parse_lengths("4k, 500,1k,4000") == [500, 1000, 4000]
    for wrong in ("", "1k,", "-1", "0", "1m", "1.5k"):
        with pytest.raises(InvalidInputError, match="lengths are numbers"):
            parse_lengths(wrong)


def test_facts_stay_in_order_among_novels_of_the_length_asked_for(tmp_path: Path) -> None:
    documents = read_documents(babi(tmp_path / "qa1.txt"), words, [200, 900], 3)
    assert [document.length for document in documents] == [200] * 3 + [900] * 3
    for document in documents:
        assert document.length is not None
        assert document.length - 100 < len(document.text.split()) <= document.length
        lines = document.text.split("\n")
        key = (document.question.text, document.question.truth)
        assert [line for line in lines if line not in set(paragraphs())] == STORIES[key]
    assert [d.question for d in documents[:3]] == [d.question for d in documents[3:]]
    assert {document.question.truth for document in documents[:3]} == {"hall", "garden", "park"}


def test_facts_lie_at_different_places(tmp_path: Path) -> None:
    places = set()
    for seed in range(5):
        (document,) = read_documents(babi(tmp_path / "qa1.txt"), words, [1000], 1, seed)
        lines = document.text.split("\n")
        places.add(next(i for i, line in enumerate(lines) if line not in set(paragraphs())))
    assert len(places) > 2


def test_the_same_seed_makes_the_same_documents(tmp_path: Path) -> None:
    path = babi(tmp_path / "qa1.txt")
    made = [read_documents(path, words, [300], 2, seed) for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]


@pytest.mark.parametrize("kind", ["babi", "longbench"])
def test_fewer_documents_are_the_first_of_more(kind: str, tmp_path: Path) -> None:
    records = [{"context": "word " * n, "input": f"Ask {n}?", "answers": [str(n)]} for n in range(1, 9)]
    path = babi(tmp_path / "qa1.txt") if kind == "babi" else longbench(tmp_path / "qa.jsonl", *records)
    more, fewer = (read_documents(path, words, [300, 500], count) for count in (3, 2))
    for length in (300, 500):
        assert [d for d in more if d.length == length][:2] == [d for d in fewer if d.length == length]


def test_longer_documents_than_all_the_prose_are_made_too(tmp_path: Path) -> None:
    (document,) = read_documents(babi(tmp_path / "qa1.txt"), words, [30_000], 1)
    assert len(document.text.split()) > 29_900


def test_stories_that_do_not_fit_the_shortest_length_are_left_out(tmp_path: Path) -> None:
    documents = read_documents(babi(tmp_path / "qa1.txt"), words, [12, 300], 3)
    assert {document.question.truth for document in documents} == {"park"}
    with pytest.raises(InvalidInputError, match="no question"):
        read_documents(tmp_path / "qa1.txt", words, [4], 3)


def test_longbench_documents_are_sorted_by_length(tmp_path: Path) -> None:
    records = [{"context": "word " * n, "input": f"Ask {n}?", "answers": [str(n), "other"]} for n in (5, 10, 11, 40)]
    records.append({"context": "no question", "input": "", "answers": ["summary"]})
    documents = read_documents(longbench(tmp_path / "qa.jsonl", *records), words, [10, 20], 5)
    found = {d.question.truth: d.length for d in documents}
    assert found == {"5": 10, "10": 10, "11": 20, "40": None}
    assert all(d.question.text == f"Ask {d.question.truth}?" and d.question.also == ("other",) for d in documents)
    fewer = read_documents(tmp_path / "qa.jsonl", words, [10, 20], 1)
    assert [d.length for d in fewer] == [10, 20, None]


def test_the_last_line_is_the_question_where_there_is_no_context(tmp_path: Path) -> None:
    path = longbench(tmp_path / "ruler.jsonl", {"input": "The key is 7.\nMore.\nWhat is the key?", "outputs": ["7"]})
    (document,) = read_documents(path, words, [10], 1)
    assert document.text == "The key is 7.\nMore."
    assert document.question.text == "What is the key?"
    assert document.question.truths == ("7",)


def test_lengths_are_counted_by_the_tokenizer_of_the_model(tmp_path: Path) -> None:
    path = longbench(tmp_path / "qa.jsonl", {"context": "qzx " * 10, "input": "Ask?", "answers": ["x"]})
    (document,) = read_documents(path, tokenizer(), [10], 1)
    assert document.length is None


@pytest.mark.parametrize("content", ["", "some text\nmore", '{"a": 1}', "[1, 2]", '{"context": 1}', "7"])
def test_other_files_are_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(InvalidInputError, match=r"neither in the format|no question|is empty"):
        read_documents(path, words, [10], random.Random(0).randint(1, 1))
