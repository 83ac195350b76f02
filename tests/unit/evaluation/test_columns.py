"""A column shows what its name says, and what was said is scored by the same rules in all."""

from typing import Any

import pytest
import torch

from remanence import MemoryModel
from remanence.config import LoraSettings, RetrievalConfig
from remanence.errors import InvalidInputError
from remanence.evaluation.columns import (
    Asking,
    Column,
    Said,
    columns_of,
    hit,
    only,
    reading_all,
    record_of,
    slots_of,
    used_by,
)
from remanence.evaluation.harness import about
from remanence.evaluation.told import Told
from tests.support import asked
from tests.support.late import token_retriever
from tests.support.tiny import tokenizer, with_memory

QUESTION = "Where was Cleo born?"


class Noting:
    """Notes what a model is asked."""

    def __init__(self, model: MemoryModel) -> None:
        self.prompts: list[tuple[int, str, int]] = []  # writes of the memory, the question, tokens
        self._ask = model.ask
        model.ask = self.ask  # type: ignore[method-assign,assignment]

    def ask(self, memory: Any, question: str, *, max_new_tokens: int, **more: Any) -> Any:
        self.prompts.append((len(memory.writes), question, max_new_tokens))
        return self._ask(memory, question, max_new_tokens=max_new_tokens, **more)


def shown(name: str, passages: int = 3) -> str:
    """What stands in front of the question."""
    model = asked.model()
    noting = Noting(model)
    told = Told(model, [asked.passage(number) for number in range(passages)])
    said = Asking(model)(Column.of(name), told, QUESTION, [2])
    [(writes, prompt, tokens)] = noting.prompts
    assert (writes, tokens, said.found, said.again_ms) == (0, 12, None, None) and said.first_token_ms > 0
    assert prompt.endswith(QUESTION)
    return prompt.removesuffix(QUESTION)


def test_nothing_and_oracle_show_nothing_and_the_passage() -> None:
    assert shown("nothing") == ""
    assert shown("oracle") == f"{asked.passage(2)}\n\n"


def test_bm25_shows_the_best_passages_the_best_next_to_the_question() -> None:
    assert shown("bm25_1") == f"{asked.passage(2)}\n\n"
    two = shown("bm25_2").split("\n\n")
    assert two[1] == asked.passage(2) and two[0] in (asked.passage(0), asked.passage(1))


def test_fits_shows_the_newest_text_up_to_the_last_position() -> None:
    model = asked.model()
    noting = Noting(model)
    told = Told(model, [f"{number}. {asked.passage(number % 6)}" for number in range(60)])
    Asking(model)(Column.of("fits"), told, QUESTION)
    prompt = noting.prompts[0][1]
    first = told.passages.index(prompt.split("\n\n")[0])
    assert first > 0 and prompt.split("\n\n") == [*told.passages[first:], QUESTION]
    room = 1000 - 12 - len(model.tokenizer(f"Question: {prompt} Answer:")["input_ids"])
    assert 0 <= room < told.lengths[first - 1] + 2 + 2


def test_slots_asks_the_memory_and_ranks_by_its_scores() -> None:
    model = asked.model()
    noting = Noting(model)
    told = Told(model, [asked.passage(number) for number in range(3)])
    said = Asking(model, tokens=5)(Column.of("slots"), told, QUESTION, [2])
    assert noting.prompts == [(3, QUESTION, 5), (3, QUESTION, 1)]
    best = model.search(told.memory, QUESTION)
    assert said.ranked == [told.writes.index(write) for write, _ in best] and said.score == best[0][1]
    assert said.found is bool(model.ask(told.memory, QUESTION, max_new_tokens=1).sources) and said.again_ms is not None


def test_a_prompt_is_asked_once_and_its_time_counted_with_the_ranking() -> None:
    model = asked.model()
    noting = Noting(model)
    asking, told = Asking(model), Told(model, [asked.passage(2)])
    first, again = (asking(Column.of(name), told, QUESTION, [0]) for name in ("oracle", "bm25_4"))
    assert len(noting.prompts) == 1 and first.text == again.text
    assert again.ranked == [0] and again.first_token_ms >= first.first_token_ms


def test_columns_of_reads_a_list_and_refuses_what_is_not_there() -> None:
    model = asked.model()
    columns = columns_of(model, "nothing, bm25_4,slots,nothing")
    assert [(one.name, one.shows, one.passages) for one in columns] == [
        ("nothing", "nothing", 0),
        ("bm25_4", "bm25", 4),
        ("slots", "slots", 0),
    ]
    for wrong in ("bm25_0", "bm25", "everything", "oracle+reader"):
        with pytest.raises(InvalidInputError, match="there is no column"):
            columns_of(model, wrong)
    with pytest.raises(InvalidInputError, match="no trained reader and no retriever"):
        columns_of(model, "slots+reader+retriever")
    with pytest.raises(InvalidInputError, match="name a column"):
        columns_of(model, " ,")
    with pytest.raises(InvalidInputError, match="has a learned writer"):
        columns_of(with_memory(), "slots")


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
        [one] = columns_of(model, column)
        Asking(model)(one, told, QUESTION, [2])
    assert seen == {
        "slots": ((), 0.25, None),
        "slots+reader": (("reader",), 0.25, "no"),
        "slots+retriever": (("retriever",), 0.9, None),
        "slots+reader+retriever": (("reader", "retriever"), 0.9, "no"),
    }
    assert about(model) == before and set(before["parts"]) == {"reader", "retriever"}
    used = {column: used_by(model, Column.of(column)) for column in ("oracle", "slots", "slots+reader")}
    assert [sorted(one.get("parts", "-")) for one in used.values()] == [["-"], [], ["reader"]]


def test_slots_are_measured_with_one_part_more_each() -> None:
    assert slots_of(with_parts()) == ["slots", "slots+reader", "slots+reader+retriever"]
    assert slots_of(asked.model()) == ["slots"] and slots_of(with_memory()) == []


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


@pytest.mark.parametrize(
    ("said", "truths", "right"),
    [
        ("The capital is Oslo.", ["oslo"], True),
        ("It was 1968", ["6", "68"], False),
        ("It was the Denver Broncos", ["Carolina", "Denver Broncos"], True),
        ("Den-ver broncos", ["Denver Broncos"], True),
        ("the", ["the"], False),
    ],
)
def test_hit_wants_a_whole_answer_word_by_word(said: str, truths: list[str], right: bool) -> None:
    assert hit(said, truths) is right


def test_record_of_says_what_was_found_and_where_it_ranked() -> None:
    model = asked.model()
    told = Told(model, [asked.passage(number) for number in range(3)])
    slots, text = Column.of("slots"), Column.of("oracle")
    said = Said("Rome\nand more", True, [1, 2, 0], 10.0, 4.0, 0.75)
    record = record_of(said, slots, told, ["Rome"], [2])
    assert record["hit"] and record["exact_match"] and record["f1"] == 1.0 and record["found"]
    assert (record["first"], record["among_4"]) == (False, True)
    assert (record["first_token_ms"], record["again_ms"], record["score"]) == (10.0, 4.0, 0.75)
    assert record["bytes_per_token"] == round(sum(told.memory.nbytes.values()) / sum(told.lengths), 2)
    shown = record_of(Said("Lima", None, None, 10.0), text, told, ["Rome"], [2])
    assert not shown["hit"] and not {"found", "first", "again_ms", "score"} & set(shown)
    assert shown["bytes_per_token"] == round(sum(map(len, told.passages)) / sum(told.lengths), 2)


def test_record_of_a_question_that_was_not_told_counts_what_was_not_found() -> None:
    told = Told(asked.model(), [asked.passage(0)])
    record = record_of(Said("Rome", False, [0], 1.0, 1.0), Column.of("slots"), told, ["Rome"], [], answerable=False)
    assert record["not_told"] is True and "hit" not in record
