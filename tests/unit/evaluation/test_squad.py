"""Passages are told as the table says, and the same questions are asked of each memory."""

from pathlib import Path

import pytest

from remanence.errors import InvalidInputError
from remanence.evaluation import squad
from remanence.evaluation.columns import columns_of
from remanence.evaluation.evidence import teller
from remanence.evaluation.harness import Evaluation, Record, Run
from tests.support import asked
from tests.support.tiny import decoder, tokenizer, with_memory


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squad, "ASKED_ABOUT", 3)


def evaluation(file: Path, memories: str, columns: str = "oracle,slots", **more: int) -> Evaluation:
    return asked.evaluation(squad, asked.model(), columns, data=file, memories=memories, **more)


def records(made: Evaluation) -> dict[tuple[str, str], Record]:
    return {(record["item"], record["column"]): record for record in Run(made, {})()}


def test_read_questions_takes_short_answers_about_the_first_passages(tmp_path: Path) -> None:
    found = squad.read_questions(asked.squad_file(tmp_path), asked.model().tokenizer)
    assert sorted(found.passages) == sorted(map(asked.passage, range(6)))
    assert sorted(one.evidence for one in found.asked) == [(0,), (1,), (2,)]
    for one in found.asked:
        [place] = one.evidence
        number = asked.NAMES.index(found.articles[place])
        assert (one.text, one.truths) == (f"Where was {asked.NAMES[number]} born?", (asked.TOWNS[number],))
        assert found.passages[place] == asked.passage(number)


def test_read_questions_takes_the_second_half_of_natural_questions(tmp_path: Path) -> None:
    found = squad.read_questions(asked.natural_file(tmp_path), asked.model().tokenizer)
    assert sorted(found.passages) == [asked.passage(number) for number in (3, 4, 5)]
    assert sorted(one.text for one in found.asked) == [f"where was {asked.NAMES[n]} born" for n in (3, 4, 5)]


def test_evaluation_asks_the_same_questions_of_each_memory_and_first_those_of_a_smaller_count(tmp_path: Path) -> None:
    file = asked.squad_file(tmp_path)
    whole, fewer = evaluation(file, "1,4,+0,+2,all,untold"), evaluation(file, "1", count=2)
    questions: dict[tuple[str, ...], list[tuple[str, tuple[str, ...]]]] = {}
    for item in whole.items:
        questions.setdefault(item.groups, []).append((item.content[1].text, item.content[1].truths))
    assert list(questions) == [
        ("1 passage",),
        ("4 passages",),
        ("3 passages",),
        ("3 passages, 2 writes later",),
        ("all 6 passages",),
        ("its passage not told",),
    ]
    assert all(asked == questions["1 passage",] for asked in questions.values()) and len(questions["1 passage",]) == 3
    assert [item.content[1].text for item in fewer.items] == [text for text, _ in questions["1 passage",][:2]]
    assert fewer.settings == whole.settings


def test_memories_hold_what_the_table_says(tmp_path: Path) -> None:
    model = asked.model()
    questions = squad.read_questions(asked.squad_file(tmp_path), model.tokenizer)
    told_of, columns = teller(model, questions.passages), columns_of(model, "slots", ())
    own = questions.passages[questions.asked[0].evidence[0]]
    for name, count in (("1", 1), ("4", 4), ("+0", 3), ("+2", 5), ("all", 6)):
        corpus = squad.corpora_of(questions, name, columns, 1)[0]
        told, [place] = told_of(corpus), corpus.asked[0].evidence
        assert len(told.passages) == count and told.passages[place] == own
        assert [record.text for record in told.memory.writes] == told.passages
        if name not in ("1", "4"):
            assert told.passages == questions.passages[:count]
    [corpus] = squad.corpora_of(questions, "untold", columns, 1)
    told = told_of(corpus)
    assert len(told.passages) == 2 and own not in told.passages and corpus.asked[0].evidence == ()
    assert own not in [record.text for record in told.memory.writes]


def test_small_memories_are_read_whole_and_others_by_score(tmp_path: Path) -> None:
    made = records(evaluation(asked.squad_file(tmp_path), "4,+0,untold", "nothing,slots", count=1))
    assert "found" not in made["4/0", "slots"] and made["+0/0", "slots"]["found"] is True
    assert made["4/0", "slots"]["first"] is True and made["+0/0", "slots"]["first"] is True
    assert "not_told" in made["untold/0", "slots"] and "hit" not in made["untold/0", "slots"]
    assert ("untold/0", "nothing") not in made


def test_fits_is_asked_of_memories_that_are_not_long(tmp_path: Path) -> None:
    made = evaluation(asked.squad_file(tmp_path), "+0,+2", "fits,bm25_1", count=1)
    assert [item.columns for item in made.items] == [("fits", "bm25_1"), ("bm25_1",)]


@pytest.mark.parametrize(
    ("memories", "message"),
    [
        ("17", "no memory '17'"),
        ("0", "no memory '0'"),
        ("some", "no memory 'some'"),
        ("+9", "takes 12 passages"),
        ("7", "takes 7 passages"),
    ],
)
def test_evaluation_refuses_memories_that_are_not_there(memories: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=message):
        evaluation(asked.squad_file(tmp_path), memories)


@pytest.mark.parametrize("columns", ["oracle,bm25_4", "pool"])
def test_text_and_learned_memories_have_nothing_to_say_of_what_was_not_told(columns: str, tmp_path: Path) -> None:
    hf = decoder(vocab_size=300, num_hidden_layers=1, max_position_embeddings=1000)
    model = with_memory(hf, tokenizer=tokenizer()) if columns == "pool" else asked.model()
    file = asked.squad_file(tmp_path)
    with pytest.raises(InvalidInputError, match="nothing to measure"):
        asked.evaluation(squad, model, columns, data=file, memories="untold")
    assert len(asked.evaluation(squad, model, columns, data=file, memories="1,untold", count=2).items) == 2
