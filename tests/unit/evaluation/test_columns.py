"""Columns are what their names say, where the model has it, and no more of the model is on than a column names."""

import re
from typing import Any

import pytest
import torch

from remanence import MemoryModel
from remanence.config import LongTermConfig, LoraSettings, RetrievalConfig
from remanence.errors import InvalidInputError
from remanence.evaluation.asking import Asking
from remanence.evaluation.columns import TEXTS, about, column_of, columns_of, memory_columns, only, reading_all, used_by
from remanence.evaluation.told import Told
from tests.support import asked
from tests.support.late import token_retriever
from tests.support.tiny import decoder, tokenizer, with_memory

QUESTION = "Where was Cleo born?"


def learned(**settings: Any) -> MemoryModel:
    return with_memory(decoder(vocab_size=300, num_hidden_layers=1), tokenizer=tokenizer(), **settings)


def test_columns_of_reads_a_list_each_once() -> None:
    columns = columns_of(asked.model(), "nothing, bm25_4,slots,nothing,ft", [*TEXTS, "ft"])
    assert [(one.name, one.shows, one.passages) for one in columns] == [
        ("nothing", "nothing", 0),
        ("bm25_4", "bm25", 4),
        ("slots", "slots", 0),
        ("ft", "ft", 0),
    ]


@pytest.mark.parametrize(
    ("names", "writer", "message"),
    [
        *(
            (wrong, "text", f"no column '{re.escape(wrong)}' here; there are nothing, bm25_1 .or any number., slots$")
            for wrong in ("bm25_0", "bm25", "everything", "oracle", "nothing+reader")
        ),
        ("fits", "learned", "there are nothing, bm25_1 .or any number., pool$"),
        (" ,", "text", "name a column"),
        ("slots+reader+retriever", "text", "no trained reader and no retriever"),
        ("slots", "learned", "has a learned writer.*name pool"),
        ("pool", "text", "in no pool; name slots"),
        ("longterm", "learned", "no retriever"),
    ],
)
def test_columns_of_refuses_what_is_not_there_and_says_what_is(names: str, writer: str, message: str) -> None:
    model = asked.model() if writer == "text" else learned()
    with pytest.raises(InvalidInputError, match=message):
        columns_of(model, names, ["nothing", "bm25"])


def test_bm25_without_its_package_is_refused_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidInputError, match=r"remanence\[eval\]"):
        columns_of(asked.model(), "bm25_4", TEXTS)


def with_parts() -> MemoryModel:
    """Random parts, which change what is read and said."""
    lora = LoraSettings(r=2, target_modules=("q_proj",))
    retrieval = RetrievalConfig(min_score=0.9, refusal="no")
    model = MemoryModel.attach(asked.model().hf, tokenizer(), lora=lora, retrieval=retrieval)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(0))
    model.use_token_retriever(token_retriever(model, layers=(0, 1)))
    return model


def test_a_column_has_the_parts_that_it_names_and_no_others() -> None:
    model = with_parts()
    assert model.parts == ("reader", "retriever")
    seen: dict[str, tuple[Any, ...]] = {}
    ask = model.ask

    def noting(*given: Any, **more: Any) -> Any:
        seen.setdefault(column, (model.parts, model.config.retrieval.min_score, model.config.retrieval.refusal))
        return ask(*given, **more)

    model.ask = noting  # type: ignore[method-assign,assignment]
    told, before = Told(model, [asked.passage(number) for number in range(3)]), about(model)
    for column in ("slots", "slots+reader", "slots+retriever", "slots+reader+retriever"):
        [one] = columns_of(model, column, TEXTS)
        Asking(model)(one, told, QUESTION, [2])
    assert seen == {
        "slots": ((), 0.25, None),
        "slots+reader": (("reader",), 0.25, "no"),
        "slots+retriever": (("retriever",), 0.9, None),
        "slots+reader+retriever": (("reader", "retriever"), 0.9, "no"),
    }
    assert about(model) == before and set(before["parts"]) == {"reader", "retriever"}
    used = {column: used_by(model, column_of(column)) for column in ("oracle", "slots", "slots+reader")}
    assert [sorted(one.get("parts", "-")) for one in used.values()] == [["-"], [], ["reader"]]
    assert "config" in used_by(model, column_of("related"))  # which an evaluation has of its own


def test_each_memory_of_a_model_is_a_column_and_slots_with_one_part_more_each() -> None:
    assert memory_columns(with_parts()) == ["slots", "slots+reader", "slots+reader+retriever"]
    assert memory_columns(asked.model()) == ["slots"] and memory_columns(learned()) == ["pool"]
    longterm = learned(longterm=LongTermConfig(retrieved=4), retrieval_size=8)
    assert memory_columns(longterm) == ["pool", "longterm"]


def test_without_its_parts_a_model_answers_as_one_that_has_none() -> None:
    model, plain = with_parts(), asked.model()
    memory, other = model.new_memory(), plain.new_memory()
    for one, into in ((model, memory), (plain, other)):
        one.write(into, asked.passage(0))
    prompt = "Where was Ada born?"
    expected = plain.read(other, prompt).logits
    with only(model, ()):
        assert torch.equal(model.read(memory, prompt).logits, expected)
    with only(model, ("reader",)):
        assert not torch.allclose(model.read(memory, prompt).logits, expected, atol=1e-3)


def test_reading_all_reads_what_scores_too_little_and_only_inside() -> None:
    model = asked.model()
    memory, other = model.new_memory(), "Why do tides rise?"
    model.write(memory, asked.passage(0))
    assert not model.ask(memory, other, max_new_tokens=1).sources
    with reading_all(model):
        assert model.ask(memory, other, max_new_tokens=1).sources
    assert not model.ask(memory, other, max_new_tokens=1).sources
