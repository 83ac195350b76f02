"""Questions about passages are chosen and scored by the published protocol, with the baselines in the same table."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from remanence.errors import InvalidInputError
from remanence.evaluation import retention
from remanence.evaluation.harness import Evaluation, Report, Run
from remanence.evaluation.passages import passages_of, read_passages
from tests.support import asked
from tests.support.readers import Reader
from tests.support.tiny import decoder, tokenizer, with_memory

ARTICLES = {
    "Oslo": [("Oslo lies on a fjord.", "What lies on a fjord?", ["Oslo", "the city of Oslo by the fjord"])],
    "Rome": [("Rome has seven hills.", "How many hills has Rome?", ["seven"])],
    "Bern": [("Bern has a bear pit.", "What animal lives in Bern?", ["bear"])],
}


def squad(path: Path, articles: dict[str, Any]) -> Path:
    data = [
        {
            "title": title,
            "paragraphs": [
                {
                    "context": text,
                    "qas": [{"question": q, "answers": [{"text": a, "answer_start": 0} for a in answers]}],
                }
                for text, q, answers in told
            ],
        }
        for title, told in articles.items()
    ]
    path.write_text(json.dumps({"data": data}))
    return path


def natural(path: Path, articles: dict[str, Any]) -> Path:
    records = [
        {"question": q, "answers": answers, "nq_annotated_gold": {"title": title, "long_answer": text}}
        for title, told in articles.items()
        for text, q, answers in told
    ]
    path.write_text("\n".join(map(json.dumps, records)))
    return path


class Words:
    """A tokenizer that counts words, so that lengths can be seen; it encodes with the real one."""

    def __init__(self) -> None:
        self.real = tokenizer()

    def __call__(self, text: Any, **settings: Any) -> Any:
        return self.real(text, **settings) if isinstance(text, list) else {"input_ids": text.split()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@pytest.mark.parametrize("form", [squad, natural])
def test_both_formats_give_the_same_passages(form: Any, tmp_path: Path) -> None:
    passages = read_passages(form(tmp_path / "file", ARTICLES))
    assert [(p.article, p.text) for p in passages] == [(t, told[0][0]) for t, told in ARTICLES.items()]
    assert passages[0].questions[0].text == "Question: What lies on a fjord? Answer:"
    assert passages[0].questions[0].truths == ("Oslo", "the city of Oslo by the fjord")


def test_only_short_answers_that_stand_in_their_passage_are_asked_for(tmp_path: Path) -> None:
    told = [
        ("One two three four five.", "Short?", ["one two", "One two three four", "One two three four five"]),
        ("One two three four five.", "Too long?", ["One two three four five"]),
        ("One two three four five.", "Elsewhere?", ["six"]),
        ("One two three four five.", "None?", []),
        ("word " * 513, "In a passage longer than a write?", ["word"]),
    ]
    path = squad(tmp_path / "file", {"A": told, "B": [("Other.", "Asked?", ["Other"])]})
    source = passages_of(path, Words())
    asked = {q.text: q.truths for q in (source.episode(0, index).question(0) for index in range(2))}
    assert asked == {"Question: Short? Answer:": ("One two three four",), "Question: Asked? Answer:": ("Other",)}
    assert source.about["questions"] == 2 and source.about["passages"] == 5
    with pytest.raises(InvalidInputError, match="has 2 questions"):
        source.episode(0, 2)


def test_what_is_written_between_comes_from_other_articles_and_goes_on_forever(tmp_path: Path) -> None:
    articles = {**ARTICLES, "Oslo": ARTICLES["Oslo"] * 3}
    source = passages_of(squad(tmp_path / "file", articles), Words())
    for index in range(5):
        told = source.episode(0, index)
        between = [next(told.unrelated) for _ in range(12)]
        assert told.fact not in between
        assert len(set(between)) >= 2
        assert told.question(0) == told.question(7)


def test_passages_of_a_single_article_are_unrelated_to_each_other(tmp_path: Path) -> None:
    told = [pair for pairs in ARTICLES.values() for pair in pairs]
    source = passages_of(squad(tmp_path / "file", {"": told}), Words())
    one = source.episode(0, 0)
    assert {next(one.unrelated) for _ in range(2)} == {text for text, _, _ in told} - {one.fact}


def test_the_seed_draws_other_questions_in_another_order_each_once(tmp_path: Path) -> None:
    source = passages_of(squad(tmp_path / "file", ARTICLES), Words())
    drawn = [[source.episode(seed, index).fact for index in range(3)] for seed in range(9)]
    assert all(len(set(facts)) == 3 for facts in drawn)
    assert len({tuple(facts) for facts in drawn}) > 1
    assert source.episode(3, 1).fact == drawn[3][1]


def test_an_answer_anywhere_in_what_is_said_is_a_hit(tmp_path: Path) -> None:
    source = passages_of(squad(tmp_path / "file", ARTICLES), Words())
    question = next(q for i in range(2) if (q := source.episode(0, i).question(0)).truth in ("bear", "Oslo"))
    assert source.right(f" I say.\nThe {question.truth}s", question)
    assert not source.right(f" {question.truth.swapcase()}", question)


@pytest.mark.parametrize(
    "content", ["", "[]", '{"data": [{"title": 1}]}', '{"question": "a"}', "plain text", json.dumps({"data": []})]
)
def test_a_file_with_nothing_to_ask_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(content)
    with pytest.raises(InvalidInputError, match=r"known formats|nothing to ask|is empty"):
        passages_of(path, Words())


def told(known: list[str], question: str) -> str:
    return "".join(known)


def hits(made: Evaluation) -> dict[str, list[float]]:
    """By column, the rates at each distance."""
    rows = Report.of(made, Run(made, {})(), {}).rows
    return {
        name: [row["metrics"]["right"]["value"] for row in rows if row["column"] == name]
        for name in dict.fromkeys(row["column"] for row in rows)
    }


def test_memory_and_baselines_are_measured_in_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hf = decoder(vocab_size=300, num_hidden_layers=1, max_position_embeddings=110)
    model = with_memory(hf, slots=24, k=6, tokenizer=tokenizer())
    reader = Reader(model, monkeypatch, told)
    options = {"data": squad(tmp_path / "file", ARTICLES), "distances": "0,6", "count": 3, "batch": 2}
    made = asked.evaluation(retention, model, "pool,nothing,fits,oracle,bm25_4", **options)
    assert hits(made) == {"pool": [1, 1], "nothing": [0, 0], "fits": [1, 0], "oracle": [1, 1], "bm25_4": [1, 1]}
    assert reader.limits == {10} and made.items[0].groups == ("file, 0 writes later",)
    assert {len(texts) for texts in reader.texts.values()} == {2 * 4 + 1 + 6}
    assert made.settings["file"]["questions"] == 3 and "chance" not in made.settings["file"]


def test_a_shipped_pool_is_where_every_sample_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_memory(decoder(vocab_size=300, num_hidden_layers=1), slots=24, k=6, tokenizer=tokenizer())
    model.shipped_pool = torch.randn(1, 24, 32)
    reader = Reader(model, monkeypatch, told)
    data = squad(tmp_path / "file", ARTICLES)
    Run(asked.evaluation(retention, model, "pool", data=data, distances="0,2", count=2), {})()
    assert [len(texts) for texts in reader.texts.values()] == [3, 3]


def test_more_questions_than_there_are_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_memory(decoder(vocab_size=300, num_hidden_layers=1), tokenizer=tokenizer())
    monkeypatch.setattr(model, "write", lambda *_: pytest.fail("measured before refusing"))
    with pytest.raises(InvalidInputError, match="has 3 questions to ask; name a smaller --count"):
        asked.evaluation(retention, model, "pool", data=squad(tmp_path / "file", ARTICLES), count=4)
