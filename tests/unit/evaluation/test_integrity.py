"""Integrity counts what it says it counts, and a run that was cut resumes as if it had not been."""

from pathlib import Path
from typing import Any

import pytest

from remanence import Memory, MemoryModel
from remanence.config import LongTermConfig
from remanence.errors import InvalidInputError
from remanence.evaluation import integrity
from remanence.evaluation.harness import Evaluation, Record, Report, Run
from tests.support import asked
from tests.support.tiny import decoder, tokenizer, with_memory

SIZES: dict[str, Any] = {"writes": 12, "windows": 3, "count": 2}


@pytest.fixture(scope="module")
def model() -> MemoryModel:
    hf = decoder(vocab_size=300, num_hidden_layers=1)
    return with_memory(hf, tokenizer=tokenizer(), longterm=LongTermConfig(retrieved=4), retrieval_size=8)


def evaluation(model: MemoryModel, columns: str = "longterm", **sizes: Any) -> Evaluation:
    return asked.evaluation(integrity, model, columns, **{**SIZES, **sizes})


def right(records: list[Record]) -> list[bool]:
    return [record["right"] for record in records]


class Script:
    """Stands in for writing and answering: notes what happens, answers right or wrong as told, and can be cut."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: MemoryModel, answers: list[bool]) -> None:
        self.events: list[str] = []
        self.texts: list[str] = []
        self.cut_at = -1
        self._answers, self._write = iter(answers), model.write
        monkeypatch.setattr(model, "write", self.write)
        monkeypatch.setattr(integrity, "answer", self.answer)
        monkeypatch.setattr(integrity, "Episode", self.noting(integrity.Episode))

    def noting(self, real: Any) -> Any:
        def make(*args: Any) -> Any:
            self.episode = real(*args)
            return self.episode

        return make

    def write(self, memory: Memory, text: str) -> Any:
        if len(self.texts) == self.cut_at:
            raise KeyboardInterrupt
        self.events.append("write")
        self.texts.append(text)
        return self._write(memory, text)

    def answer(self, model: MemoryModel, memories: list[Memory], prompts: list[str]) -> list[str]:
        assert self.texts[-1] == self.episode.fact, "the question must be about the text written last"
        assert prompts == [self.episode.question(0).text]
        self.events.append("ask" if memories[0].longterm is not None else "ask the pool")
        return [self.episode.question(0).truth if next(self._answers) else "no"]


@pytest.mark.parametrize("column", ["longterm", "pool"])
def test_each_window_asks_about_the_newest_text_at_even_steps(
    column: str, model: MemoryModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Script(monkeypatch, model, [True, True, True, False, False, False])
    made = evaluation(model, column)
    report = Report.of(made, Run(made, {})(), {})
    assert script.events == ["write", "write", "ask" if column == "longterm" else "ask the pool"] * 6
    assert [row["group"] for row in report.rows] == ["4 writes", "8 writes", "12 writes"]
    assert [row["metrics"]["right"]["value"] for row in report.rows] == [1.0, 0.5, 0.0]
    assert all(row["metrics"]["resident_mib"]["value"] > 1 and row["samples"] == 2 for row in report.rows)
    assert all(row["metrics"]["ms_per_write"]["n"] == 1 for row in report.rows) and len(set(script.texts)) > 6


@pytest.mark.parametrize("cut_at", [0, 2, 4, 6, 11])
def test_a_run_that_was_cut_resumes_where_its_last_window_began(
    cut_at: int, model: MemoryModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [True, False, False, True, True, False]
    with monkeypatch.context() as patch:
        whole = Script(patch, model, answers)
        made = evaluation(model)
        Run(made, {})()
        expected: Any = made.measure
        expected = expected._memory
    with monkeypatch.context() as patch:
        Script(patch, model, answers).cut_at = cut_at
        run = Run(evaluation(model, folder=tmp_path), {}, tmp_path)
        with pytest.raises(KeyboardInterrupt):
            run()
    done = cut_at // 4
    with monkeypatch.context() as patch:
        left = Script(patch, model, answers[2 * done :])
        made = evaluation(model, folder=tmp_path)
        assert right(Run(made, {}, tmp_path)()) == answers
        assert left.texts == whole.texts[4 * done :]
        found: Any = made.measure
        assert found._memory.pool.keys.equal(expected.pool.keys) and found._memory.write_count == 12


def test_more_windows_of_the_same_length_are_measured_behind_those_that_are_there(
    model: MemoryModel, tmp_path: Path
) -> None:
    Run(evaluation(model, folder=tmp_path), {}, tmp_path)()
    more = {"writes": 16, "windows": 4}
    records = Run(evaluation(model, folder=tmp_path, **more), {}, tmp_path)()
    assert right(records) == right(Run(evaluation(model, **more), {})())
    for file in tmp_path.glob("integrity-*.mem"):
        file.unlink()  # then everything is written again, and only what is not there is asked
    more = {"writes": 20, "windows": 5}
    assert right(Run(evaluation(model, folder=tmp_path, **more), {}, tmp_path)()) == right(
        Run(evaluation(model, **more), {})()
    )
    assert len(list(tmp_path.iterdir())) == 3  # records, a memory, and what lies beside it


def test_a_memory_without_records_and_one_of_other_settings_are_left_alone(model: MemoryModel, tmp_path: Path) -> None:
    whole = right(Run(evaluation(model, folder=tmp_path), {}, tmp_path)())
    for file in tmp_path.glob("*.jsonl"):
        file.unlink()
    assert right(Run(evaluation(model, folder=tmp_path), {}, tmp_path)()) == whole
    for other in ({"seed": 1}, {"count": 1}, {"writes": 24}):
        Run(evaluation(model, folder=tmp_path, **other), {}, tmp_path)()
    assert len(list(tmp_path.glob("*.mem"))) == 4


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"writes": 13}, "13 writes do not make 3 equal windows"),
        ({"count": 3}, "3 questions do not spread evenly over a window of 4"),
        ({"columns": "pool,longterm"}, "name one column"),
        ({"columns": "nothing"}, "no column 'nothing'"),
    ],
)
def test_what_makes_no_sense_is_refused(sizes: dict[str, Any], message: str, model: MemoryModel) -> None:
    with pytest.raises(InvalidInputError, match=message):
        evaluation(model, **sizes)
