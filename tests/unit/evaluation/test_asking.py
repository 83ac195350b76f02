"""A model is shown what its column says, and what was said is scored by the same rules in all evaluations."""

import itertools
from typing import Any

import pytest

from remanence import MemoryModel
from remanence.config import LongTermConfig
from remanence.evaluation.asking import Asking, Said, hit, memory_of, record_of
from remanence.evaluation.columns import column_of
from remanence.evaluation.told import Told
from remanence.texts import AllOf
from tests.support import asked
from tests.support.tiny import decoder, tokenizer, with_memory

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
    said = Asking(model)(column_of(name), told, QUESTION, [2])
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
    Asking(model)(column_of("fits"), told, QUESTION)
    prompt = noting.prompts[0][1]
    first = told.passages.index(prompt.split("\n\n")[0])
    assert first > 0 and prompt.split("\n\n") == [*told.passages[first:], QUESTION]
    room = 1000 - 12 - len(model.tokenizer(f"Question: {prompt} Answer:")["input_ids"])
    assert 0 <= room < told.lengths[first - 1] + 2 + 2


def test_text_that_does_not_fit_beside_better_text_is_left_out() -> None:
    model = asked.model()
    noting = Noting(model)
    told = Told(model, [f"Cleo was born. {'x ' * 600}", asked.passage(2), f"Cleo keeps bees. {'x ' * 300}"])
    for column in ("bm25_3", "oracle"):
        Asking(model)(column_of(column), told, QUESTION, [1, 0, 2])
    for prompt in [one[1] for one in noting.prompts]:
        assert asked.passage(2) in prompt and len(model.tokenizer(prompt)["input_ids"]) < 1000
        assert [passage in prompt for passage in told.passages].count(True) == 2


def test_pool_and_longterm_ask_a_learned_memory_without_and_with_what_left_the_pool() -> None:
    hf = decoder(vocab_size=300, num_hidden_layers=1, max_position_embeddings=1000)
    model = with_memory(hf, tokenizer=tokenizer(), longterm=LongTermConfig(retrieved=4), retrieval_size=8)
    seen: list[Any] = []
    ask = model.ask
    model.ask = lambda memory, *args, **more: seen.append(memory) or ask(memory, *args, **more)  # type: ignore
    told = Told(model, [asked.passage(number) for number in range(6)])
    sizes = []
    for name in ("pool", "longterm"):
        said = Asking(model)(column_of(name), told, QUESTION)
        assert said.ranked is None and said.found is None and said.again_ms is not None
        sizes.append(record_of(said, column_of(name), told, ["Rome"], [2])["bytes_per_token"])
        assert memory_of(column_of(name), told).nbytes == seen[-1].nbytes
    assert [one.longterm is None for one in seen] == [True, True, False, False] and sizes[0] < sizes[1]


def test_slots_asks_the_memory_and_ranks_by_its_scores() -> None:
    model = asked.model()
    noting = Noting(model)
    told = Told(model, [asked.passage(number) for number in range(3)])
    said = Asking(model, tokens=5)(column_of("slots"), told, QUESTION, [2])
    assert noting.prompts == [(3, QUESTION, 5), (3, QUESTION, 1)]
    best = model.search(told.memory, QUESTION)
    assert said.ranked == [told.writes.index(write) for write, _ in best] and said.score == best[0][1]
    assert said.found is bool(model.ask(told.memory, QUESTION, max_new_tokens=1).sources) and said.again_ms is not None


def test_a_prompt_is_asked_once_and_its_time_counted_with_the_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks, model = itertools.count(), asked.model()
    monkeypatch.setattr("remanence.evaluation.asking.perf_counter", lambda: float(next(ticks)))  # a clock of its own
    noting = Noting(model)
    asking, told = Asking(model), Told(model, [asked.passage(2)])
    first, again = (asking(column_of(name), told, QUESTION, [0]) for name in ("oracle", "bm25_4"))
    assert len(noting.prompts) == 1 and first.text == again.text
    assert again.ranked == [0] and again.first_token_ms == first.first_token_ms


@pytest.mark.parametrize(
    ("said", "truths", "right"),
    [
        ("The capital is Oslo.", ["oslo"], True),
        ("It was 1968", ["6", "68"], False),
        ("It was the Denver Broncos", ["Carolina", "Denver Broncos"], True),
        ("Den-ver broncos", ["Denver Broncos"], True),
        ("the", ["the"], False),
        ("11 and 22, and 33", AllOf(["11", "22"]), True),
        ("11 and 33", AllOf(["11", "22"]), False),
        ("anything", AllOf(["the"]), False),
    ],
)
def test_hit_wants_a_whole_answer_word_by_word(said: str, truths: list[str], right: bool) -> None:
    assert hit(said, truths) is right


def test_record_of_says_what_was_found_and_where_it_ranked() -> None:
    model = asked.model()
    told = Told(model, [asked.passage(number) for number in range(3)])
    slots, text = column_of("slots"), column_of("oracle")
    said = Said("Rome\nand more", True, [1, 2, 0], 10.0, 4.0, 0.75)
    record = record_of(said, slots, told, ["Rome"], [2])
    assert record["hit"] and record["exact_match"] and record["f1"] == 1.0 and record["found"]
    assert (record["first"], record["among_4"]) == (False, True)
    assert (record["first_token_ms"], record["again_ms"], record["score"]) == (10.0, 4.0, 0.75)
    assert record["bytes_per_token"] == round(sum(told.memory.nbytes.values()) / sum(told.lengths), 2)
    shown = record_of(Said("Lima", None, None, 10.0), text, told, ["Rome"], [2])
    assert not shown["hit"] and not {"found", "first", "again_ms", "score"} & set(shown)
    assert shown["bytes_per_token"] == round(sum(map(len, told.passages)) / sum(told.lengths), 2)


def test_record_of_values_that_are_all_asked_for_counts_their_share() -> None:
    told = Told(asked.model(), [asked.passage(0)])
    record = record_of(Said("11 22", None, None, 1.0), column_of("nothing"), told, AllOf(["11", "22", "33", "44"]), [])
    assert (record["hit"], record["exact_match"]) == (False, 0.5) and record["f1"] == pytest.approx(2 / 3)


def test_record_of_a_question_that_was_not_told_counts_what_was_not_found() -> None:
    told = Told(asked.model(), [asked.passage(0)])
    record = record_of(Said("Rome", False, [0], 1.0, 1.0), column_of("slots"), told, ["Rome"], [], answerable=False)
    assert record["not_told"] is True and "hit" not in record
