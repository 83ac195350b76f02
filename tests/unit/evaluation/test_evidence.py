"""Parts are told in the order of time, evidence is known, and answers are scored as published."""

import json
import sys
from pathlib import Path

import pytest

from remanence.errors import InvalidInputError
from remanence.evaluation import locomo, longmemeval, multihop
from remanence.evaluation.evidence import Asked, Corpus, Part, plain_score, teller
from remanence.evaluation.harness import Report, Run
from tests.support import asked


def test_read_conversations_puts_turns_in_the_order_of_time_with_date_and_speaker(tmp_path: Path) -> None:
    [found] = locomo.read_conversations(asked.locomo_file(tmp_path))
    assert found.name == "7"
    assert [(part.text, part.section) for part in found.parts] == [
        ('(1:56 pm on 8 May, 2022) Ada said, "I live in Oslo now."', "session_1"),
        ('(1:56 pm on 8 May, 2022) Bert said, "I keep bees."', "session_1"),
        ('(9:10 am on 3 March, 2023) Ada said, "I like boats. [shares a photo of a boat]"', "session_2"),
        ('(9:10 am on 3 March, 2023) Bert said, "I moved last year."', "session_2"),
    ]


def test_read_conversations_knows_the_evidence_of_each_question(tmp_path: Path) -> None:
    [found] = locomo.read_conversations(asked.locomo_file(tmp_path))
    assert sorted(found.asked, key=lambda one: one.key) == [
        Asked("0", "Where does Ada live?", "single-hop", ("Oslo",), (0,), ("session_1",)),
        Asked("1", "When did Bert move?", "temporal", ("2022",), (3,), ("session_2",)),
        Asked("2", "What do they like?", "multi-hop", ("bees, boats",), (1, 2), ("session_1", "session_2")),
        Asked("3", "Would Ada sail?", "open-domain", ("yes",)),
        Asked("4", "What is Bert's dog called?", "adversarial", ("Rex",), (0,), ("session_1",), answerable=False),
    ]


def test_read_conversations_takes_the_published_file_and_folders(tmp_path: Path) -> None:
    content = json.loads(asked.locomo_file(tmp_path, "1.json").read_text())
    questions = content.pop("qa")
    published = tmp_path / "2.json"
    published.write_text(json.dumps([{"sample_id": "conv-1", "conversation": content, "qa": questions}] * 2))
    names = [one.name for one in locomo.read_conversations(tmp_path)]
    assert names == ["1", "2/conv-1", "2/conv-1"]
    turns = [one.parts for one in locomo.read_conversations(tmp_path)]
    assert turns[0] == turns[1]


@pytest.mark.parametrize(
    "content", ["{}", "[1]", '{"session_1": [{}], "session_1_date_time": "today", "qa": []}', "no"]
)
def test_read_conversations_refuses_other_formats(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InvalidInputError, match="format of LoCoMo"):
        locomo.read_conversations(tmp_path / "a.json")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no \.json file"):
        locomo.read_conversations(tmp_path / "empty")


@pytest.mark.parametrize(
    ("kind", "truth", "said", "f1"),
    [
        ("single-hop", "the adoption agencies", "Adopted agency!", 1.0),
        ("single-hop", "dogs and cats", "the cat", 2 / 3),
        ("single-hop", "Oslo", "", 0.0),
        ("temporal", "7 May 2023", "On 7 May, 2023", 6 / 7),
        ("multi-hop", "bees, boats", "boating, honey bees", (2 / 3 + 1.0) / 2),
        ("single-hop", "bees, boats", "boating, honey bees", 4 / 5),
    ],
)
def test_score_counts_stems_and_of_several_answers_each(kind: str, truth: str, said: str, f1: float) -> None:
    assert locomo.score(said, Asked("0", "?", kind, (truth,))) == pytest.approx(f1)


def test_the_published_f1_without_its_package_is_refused_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "nltk.stem.porter", None)
    locomo._stemmer.cache_clear()
    with pytest.raises(InvalidInputError, match=r"remanence\[eval\]"):
        asked.evaluation(locomo, asked.model(), "nothing", data=asked.locomo_file(tmp_path))


def test_locomo_reports_evidence_and_what_was_never_told(tmp_path: Path) -> None:
    model = asked.model()
    made = asked.evaluation(locomo, model, "oracle,bm25_4,slots", data=asked.locomo_file(tmp_path))
    records = {(record["item"], record["column"]): record for record in Run(made, {})()}
    assert len(records) == 15
    where = records["7/0", "slots"]
    assert (where["recall_1"], where["recall_5"], where["recall_10"], where["sections_10"]) == (1.0, 1.0, 1.0, 1.0)
    assert records["7/2", "bm25_4"]["recall_1"] in (0.0, 0.5) and records["7/2", "bm25_4"]["recall_5"] == 1.0
    assert "recall_5" not in records["7/3", "slots"] and "recall_5" not in records["7/0", "oracle"]
    assert "f1" in records["7/3", "slots"] and "f1" not in records["7/4", "slots"]
    assert records["7/4", "oracle"]["not_told"] is False
    report = Report.of(made, list(records.values()), {})
    assert {row["group"] for row in report.rows} == {
        *("answerable", "single-hop", "temporal", "multi-hop", "open-domain", "never told")
    }
    assert next(row["samples"] for row in report.rows if row["group"] == "answerable") == 4


def test_locomo_takes_as_many_questions_of_each_conversation(tmp_path: Path) -> None:
    for name in ("1.json", "2.json"):
        asked.locomo_file(tmp_path, name)
    model = asked.model()
    keys = [item.key for item in asked.evaluation(locomo, model, "nothing", data=tmp_path, count=5).items]
    assert [key[0] for key in keys] == ["1", "1", "1", "2", "2"]
    more = [item.key for item in asked.evaluation(locomo, model, "nothing", data=tmp_path, count=6).items]
    assert set(keys) < set(more)


def test_read_histories_sorts_sessions_and_finds_evidence(tmp_path: Path) -> None:
    first, second = longmemeval.read_histories(asked.longmemeval_file(tmp_path))
    assert first.name == "a1" and second.parts == first.parts
    assert [part.text for part in first.parts] == [
        '(2023/05/20 (Sat) 02:21) user said, "Tell me about tides."',
        '(2023/05/20 (Sat) 02:21) assistant said, "Gladly."',
        '(2023/05/30 (Tue) 09:00) user said, "I sold the red bicycle."',
        '(2023/05/30 (Tue) 09:00) assistant said, "Good."',
    ]
    question = "Current date: 2023/06/01 (Thu) 10:00. What did I sell?"
    kind = "single-session-user"
    assert first.asked == (Asked("0", question, kind, ("the red bicycle",), (2,), ("s_late",)),)
    assert not second.asked[0].answerable


def test_longmemeval_measures_each_question_with_its_own_history(tmp_path: Path) -> None:
    model = asked.model()
    made = asked.evaluation(longmemeval, model, "oracle,slots", data=asked.longmemeval_file(tmp_path))
    records = {(record["item"], record["column"]): record for record in Run(made, {})()}
    assert set(records) == {(f"{name}/0", column) for name in ("a1", "a2_abs") for column in ("oracle", "slots")}
    assert records["a1/0", "slots"]["recall_5"] == 1.0 and records["a1/0", "slots"]["sections_10"] == 1.0
    assert "not_told" in records["a2_abs/0", "slots"] and "said" in records["a1/0", "oracle"]


def test_read_histories_refuses_other_formats(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('[{"question_id": "a"}]')
    with pytest.raises(InvalidInputError, match="format of LongMemEval"):
        longmemeval.read_histories(tmp_path / "a.json")


def test_read_corpus_of_hotpotqa_has_each_paragraph_once(tmp_path: Path) -> None:
    found = multihop.read_corpus(asked.hotpot_file(tmp_path))
    assert [part.text for part in found.parts] == [
        "Ada: Ada was born in Oslo. She keeps bees.",
        "Oslo: Oslo lies in Norway.",
        "Rome: Rome lies in Italy.",
    ]
    assert [(one.kind, one.truths, one.evidence) for one in found.asked] == [
        ("bridge", ("Norway",), (0, 1)),
        ("comparison", ("Italy",), (2,)),
    ]


def test_read_corpus_of_musique_knows_aliases_and_what_has_no_answer(tmp_path: Path) -> None:
    first, second = multihop.read_corpus(asked.musique_file(tmp_path)).asked
    assert (first.kind, first.evidence, first.truths, first.answerable) == (
        "2 hops",
        (0,),
        ("Oslo", "Kristiania"),
        True,
    )
    assert (second.kind, second.answerable) == ("3 hops", False)
    assert plain_score("Kristiania", first) == 1.0


def test_multihop_tells_all_paragraphs_and_asks_the_first_questions(tmp_path: Path) -> None:
    model = asked.model()
    made = asked.evaluation(multihop, model, "bm25_1,slots", data=asked.hotpot_file(tmp_path), count=1)
    [bm25, slots] = Run(made, {})()
    assert bm25["recall_1"] == 0.5 and bm25["recall_5"] == slots["recall_5"] == 1.0
    (tmp_path / "a.json").write_text("[]")
    with pytest.raises(InvalidInputError, match="no question"):
        multihop.read_corpus(tmp_path / "a.json")
    with pytest.raises(InvalidInputError, match="neither of HotpotQA nor of MuSiQue"):
        multihop.read_corpus(asked.longmemeval_file(tmp_path))


def test_common_passages_are_told_once_and_longer_memories_are_forks_of_shorter_ones() -> None:
    model, passages, calls = asked.model(), [asked.passage(number) for number in range(4)], list[str]()
    write = model.write
    model.write = lambda memory, text: calls.append(text) or write(memory, text)  # type: ignore[func-returns-value,method-assign,assignment]
    told = teller(model, passages)

    def texts(corpus: Corpus) -> list[str | None]:
        held = told(corpus)
        found = [record.text for record in held.memory.writes]
        assert found == held.passages
        return found

    long, short = Corpus("long", (), (), after=3), Corpus("short", (), (), after=2)
    assert told(long) is told(long) and texts(long) == passages[:3] and texts(short) == passages[:2]
    assert texts(Corpus("all", (), (), after=4)) == passages and len(texts(long)) == 3
    assert texts(Corpus("own", (Part("Own."),), (), after=3)) == [*passages[:3], "Own."]
    assert texts(Corpus("forgotten", (), (), after=3, forgotten=1)) == [passages[0], passages[2]]
    assert calls == [*passages[:3], *passages[:2], passages[3], "Own."]
