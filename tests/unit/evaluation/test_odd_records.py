"""Records that look otherwise than usual are read for what they say, or named."""

import json
from pathlib import Path
from typing import Any

import pytest

from remanence.data.edits import read_edits
from remanence.errors import InvalidInputError
from remanence.evaluation.longcontext import read_documents
from remanence.evaluation.passages import read_passages
from remanence.evaluation.scores import exact_match, f1
from remanence.texts import AllOf, read_questions
from remanence.training.questions import load_questions

ENDS = [" ", "\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c"]
VALUES = ["111111", "222222", "333333", "444444"]


def words(text: str, **_: Any) -> Any:
    return {"input_ids": text.split()}


def lines(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize("end", ENDS, ids=ascii)
def test_lines_of_json_end_at_newlines_alone(end: str, tmp_path: Path) -> None:
    text = f"Alice was born in Oslo.{end}She works as a surveyor."
    long = lines(tmp_path / "a.jsonl", {"context": text, "input": "Where?", "answers": ["Oslo"]})
    assert read_documents(long, words, [1000], 1)[0].text == text
    gold = {"nq_annotated_gold": {"title": "A", "long_answer": text}}
    nq = lines(tmp_path / "b.jsonl", *[{"question": "where", "answers": ["Oslo"], **gold}] * 2)
    assert [passage.text for passage in read_passages(nq)] == [text] * 2
    own = lines(tmp_path / "c.jsonl", {"question": "where", "answers": ["Oslo"], "passages": [text]})
    assert load_questions([own]).passages == [text]
    (tmp_path / "d.tsv").write_text(f"Where{end}was she born?\tOslo\n", encoding="utf-8")
    assert len(read_questions(tmp_path / "d.tsv")) == 1


def test_an_answer_without_a_list_is_one_answer(tmp_path: Path) -> None:
    text = "Alice Brown was born in Oslo."
    made = read_documents(
        lines(tmp_path / "a", {"context": text, "input": "Where?", "answers": "Oslo"}), words, [99], 1
    )
    assert made[0].question.truths == ("Oslo",)
    record = {"question": "where", "answers": "Oslo", "nq_annotated_gold": {"title": "A", "long_answer": text}}
    assert read_passages(lines(tmp_path / "b", record))[0].questions[0].truths == ("Oslo",)
    nq = {"question": "where", "answers": "Oslo", "ctxs": [{"title": "Alice", "text": text}]}
    own = {"question": "where", "answers": "Oslo", "passages": [text]}
    for number, other in enumerate((nq, own)):
        made = load_questions([lines(tmp_path / f"{number}.jsonl", other)])
        assert [question.answers for question in made.questions] == [("Oslo",)]


def test_empty_answers_are_no_answers(tmp_path: Path) -> None:
    asked = [{"question": "Who?", "answers": [{"text": given}]} for given in ("", " ", "Oslo")]
    squad = {"data": [{"title": "A", "paragraphs": [{"context": "Oslo.", "qas": asked}]}]}
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    assert [q.truths for q in read_passages(tmp_path / "squad.json")[0].questions] == [("Oslo",)]
    with pytest.raises(InvalidInputError, match='no question: "input" or the answers are empty in all records'):
        read_documents(lines(tmp_path / "a", {"context": "x", "input": "Who?", "answers": [""]}), words, [99], 1)


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"context": "x", "input": "When?", "answers": [1990]}, "record 1: 1990 is no text"),
        ({"context": "x", "input": "When?", "answers": 1990}, "record 1: 'int' object is not iterable"),
        ({"context": ["x"], "input": "When?", "answers": ["1990"]}, "record 1: 'context' is .* and no text"),
        ({"context": None, "input": "When?", "answers": ["1990"]}, "record 1: 'context' is None and no text"),
        ({"context": "x", "input": ["When?"], "answers": ["1990"]}, "record 1: 'input' is .* and no text"),
        ({"input": 7, "outputs": ["1990"]}, "record 1: 'input' is 7 and no text"),
        ([1], r"record 1: \[1\] is no JSON object"),
    ],
)
def test_a_record_of_other_types_is_named(record: Any, said: str, tmp_path: Path) -> None:
    good = {"context": "x", "input": "When?", "answers": ["1990"]}
    with pytest.raises(InvalidInputError, match=said):
        read_documents(lines(tmp_path / "a", good, record), words, [99], 1)


@pytest.mark.parametrize(
    "record",
    [
        {"question": "where", "answers": [7], "passages": ["Oslo"]},
        {"question": 7, "answers": ["Oslo"], "passages": ["Oslo"]},
        {"question": "where", "answers": ["Oslo"], "passages": ["Oslo"], "supporting": [4]},
        {"question": "where", "answers": ["Oslo"], "ctxs": []},
    ],
)
def test_a_question_of_other_types_is_named(record: Any, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="record 0 lacks or misuses"):
        load_questions([lines(tmp_path / "a.jsonl", record)])


def test_values_that_are_all_asked_for_count_by_their_share(tmp_path: Path) -> None:
    record = {"input": "The numbers are " + ", ".join(VALUES) + ".\nWhat are they?", "outputs": VALUES}
    truths = read_documents(lines(tmp_path / "niah.jsonl", record), words, [99], 1)[0].question.truths
    assert isinstance(truths, AllOf)
    assert (exact_match(VALUES[0], truths), exact_match("They are " + " and ".join(VALUES), truths)) == (0.25, 1.0)
    assert f1(VALUES[0], truths) == pytest.approx(0.4)
    assert f1(", ".join(VALUES), truths) == 1.0
    alternatives = read_documents(lines(tmp_path / "qa_1.jsonl", record), words, [99], 1)[0].question.truths
    assert exact_match(VALUES[2], alternatives) == 1.0


def test_prompts_are_taken_as_they_are(tmp_path: Path) -> None:
    rewrite = {"prompt": "The set { of {} is", "subject": "X", "target_new": {"str": "A"}, "target_true": {"str": "B"}}
    record = {"requested_rewrite": rewrite, "paraphrase_prompts": [], "neighborhood_prompts": []}
    (tmp_path / "edits.json").write_text(json.dumps([record]))
    assert read_edits(tmp_path / "edits.json")[1][0].prompt == "The set { of X is"
