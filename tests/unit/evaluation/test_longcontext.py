"""Documents are told whole, in one write, and asked about by their length; as text they are shown in parts."""

import json
from pathlib import Path
from typing import Any

import pytest

from remanence import MemoryModel
from remanence.errors import InvalidInputError
from remanence.evaluation import longcontext
from remanence.evaluation.harness import Evaluation, Report, Run
from remanence.model.read import Answer
from tests.support import asked
from tests.support.tiny import decoder, tokenizer, with_memory

LONG = "The hat is green.\n" + "So it goes on and on.\n" * 30
RECORDS = [
    {"context": "The key is red.\n\n\nIt is old.", "input": "What is the key?", "answers": ["red"]},
    {"context": "The box is blue.", "input": "What is the box?", "answers": ["dark blue", "navy"]},
    {"context": LONG, "input": "The hat?", "answers": ["green"]},
]


def file(folder: Path, records: list[dict[str, Any]] = RECORDS, name: str = "qa.jsonl") -> Path:
    (folder / name).write_text("\n".join(map(json.dumps, records)))
    return folder / name


def evaluation(model: MemoryModel, data: Path, columns: str, **more: Any) -> Evaluation:
    return asked.evaluation(longcontext, model, columns, data=data, **{"lengths": "40", **more})


def test_each_column_is_scored_at_each_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a model that answers with the colour that stands in its memory or its prompt."""
    hf = decoder(vocab_size=300, num_hidden_layers=1, max_position_embeddings=200)
    model = with_memory(hf, tokenizer=tokenizer())
    told: dict[int, str] = {}
    kept: list[Any] = []  # so that no two memories have the same id
    write = model.write

    def noting(memory: Any, text: str) -> Any:
        kept.append(memory)
        told[id(memory)] = text
        return write(memory, text)

    def ask(memory: Any, prompt: str, *, max_new_tokens: int, streamer: Any) -> Answer:
        streamer.times += [0.0, 0.0]
        known = told.get(id(memory), "") + prompt
        return Answer(next((c for c in ("red", "blue", "green") if c in known), "no idea"), True, [])

    monkeypatch.setattr(model, "write", noting)
    monkeypatch.setattr(model, "ask", ask)
    made = evaluation(model, file(tmp_path), "pool,nothing,fits,bm25_4")
    rows = {(row["group"], row["column"]): row for row in Report.of(made, Run(made, {})(), {}).rows}
    found = {key: tuple(row["metrics"][name]["value"] for name in ("f1", "exact_match")) for key, row in rows.items()}
    short = (pytest.approx((1 + 2 / 3) / 2, abs=1e-4), 0.5)
    assert found == {
        **{("40 tokens", column): short for column in ("pool", "fits", "bm25_4")},
        **{("> 40 tokens", column): (1, 1) for column in ("pool", "bm25_4")},
        ("40 tokens", "nothing"): (0, 0),
        **{("> 40 tokens", column): (0, 0) for column in ("nothing", "fits")},  # its beginning is too long ago
        **{key: value for key, value in found.items() if key[0] == "answerable"},
    }
    assert rows["40 tokens", "pool"]["samples"] == 2 and rows["> 40 tokens", "pool"]["samples"] == 1
    assert sorted(told.values()) == sorted(record["context"] for record in RECORDS)


def test_values_that_are_all_asked_for_count_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = asked.model()
    record = {"input": "They are 11, 22 and 33.\nWhich are they?", "outputs": ["11", "22", "33"]}
    monkeypatch.setattr(
        model, "ask", lambda *_, streamer, **__: streamer.times.extend([0, 0]) or Answer("11 33", True, [])
    )
    [found] = Run(evaluation(model, file(tmp_path, [record], "niah_multi.jsonl"), "nothing"), {})()
    assert (found["hit"], found["exact_match"], found["f1"]) == (False, pytest.approx(2 / 3), pytest.approx(0.8))


def test_long_paragraphs_are_cut_where_sentences_or_else_words_end() -> None:
    sentence = "So it goes on and on. "
    parts = list(longcontext.pieces(sentence * 100))
    assert " ".join(parts) == (sentence * 100).strip() and len(parts) == 3
    assert all(part.endswith(".") and len(part) <= 1000 for part in parts)
    assert all(len(part) <= 1000 and not part.startswith("ord") for part in longcontext.pieces("word " * 500))
    assert list(longcontext.pieces("x" * 1500)) == ["x" * 1000, "x" * 500] and list(longcontext.pieces("a. b")) == [
        "a. b"
    ]


def test_documents_keep_their_names_where_more_are_asked_about(tmp_path: Path) -> None:
    records = [{"context": f"It is {n}.", "input": f"Ask {n}?", "answers": [str(n)]} for n in range(8)]
    model, data = asked.model(), file(tmp_path, records)
    few, more = (
        {item.key: item.content[1] for item in evaluation(model, data, "nothing", count=count, lengths="500").items}
        for count in (3, 6)
    )
    assert len(more) == 6 and few.items() <= more.items()


def test_lengths_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="lengths are numbers"):
        evaluation(asked.model(), file(tmp_path), "nothing", lengths="long")
