"""Integrity counts what it says it counts, and a run that was cut goes on as if it had not been."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from remanence import Memory, MemoryModel
from remanence.errors import InvalidInputError
from remanence.evaluation import integrity
from remanence.texts import Question
from tests.support.tiny import decoder, tokenizer, with_memory

SIZES: dict[str, Any] = {"writes": 12, "windows": 3, "questions": 2}


def model_of() -> MemoryModel:
    return with_memory(decoder(vocab_size=300, num_hidden_layers=1), tokenizer=tokenizer())


def without_times(report: dict[str, Any]) -> dict[str, Any]:
    windows = [
        {name: value for name, value in window.items() if name not in ("resident_bytes", "seconds")}
        for window in report["windows"]
    ]
    return {**report, "windows": windows}


class Script:
    """Stands in for writing and answering: notes what happens, and answers right or wrong as told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: MemoryModel, right: list[bool]) -> None:
        self.events: list[str] = []
        self.texts: list[str] = []
        self.right = iter(right)
        self.write = model.write
        monkeypatch.setattr(model, "write", self._write)
        monkeypatch.setattr(integrity, "answer", self._answer)
        monkeypatch.setattr(integrity, "Episode", self._episode(integrity.Episode))

    def _episode(self, real: Any) -> Any:
        def make(*args: Any) -> Any:
            self.episode = real(*args)
            return self.episode

        return make

    def _write(self, memory: Memory, text: str) -> Any:
        self.events.append("write")
        self.texts.append(text)
        return self.write(memory, text)

    def _answer(self, model: MemoryModel, memories: list[Memory], prompts: list[str]) -> list[str]:
        assert self.texts[-1] == self.episode.fact, "the question must be about the text written last"
        assert prompts == [self.episode.question(0).text]
        self.events.append("ask")
        return [self.episode.question(0).truth if next(self.right) else "no"]


def test_each_window_asks_about_the_newest_text_at_even_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    script = Script(monkeypatch, model, [True, True, True, False, False, False])
    report = integrity.measure(model, **SIZES)
    assert script.events == ["write", "write", "ask"] * 6
    assert [window["exact_match"] for window in report["windows"]] == [1.0, 0.5, 0.0]
    assert [window["writes"] for window in report["windows"]] == [4, 8, 12]
    assert [window["samples"] for window in report["windows"]] == [2, 2, 2]
    assert report["windows"][1]["stderr"] == (0.25 / 2) ** 0.5
    assert report["drift"] == -1.0
    assert all(window["resident_bytes"] > 2**20 for window in report["windows"])
    assert len(set(script.texts)) > 6
    assert json.loads(json.dumps(report)) == report


def test_a_cut_run_goes_on_where_its_last_window_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = model_of()
    whole = integrity.measure(model, **SIZES, state=tmp_path / "whole")
    cut = tmp_path / "cut"
    seen: list[int] = []

    def stop(done: int, total: int) -> None:
        seen.append(done)
        if done > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        integrity.measure(model, **SIZES, state=cut, progress=stop)
    seen.clear()
    again = integrity.measure(model, **SIZES, state=cut, progress=lambda done, total: seen.append(done))
    assert seen == [12]
    assert without_times(again) == without_times(whole)
    kept = [Memory.load(folder / "memory.safetensors") for folder in (tmp_path / "whole", cut)]
    assert kept[0].pool.keys.equal(kept[1].pool.keys)
    assert [path.name for path in sorted(cut.iterdir())] == ["memory.safetensors", "parts.json"]


def answering_by_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands in for answering: right or wrong by how much the memory was written."""
    monkeypatch.setattr(integrity.Episode, "question", lambda self, distance: Question("?", "yes"))
    right = (6, 15, 18, 24)
    monkeypatch.setattr(
        integrity, "answer", lambda _, memories, __: ["yes" if memories[0].write_count in right else ""]
    )


@pytest.mark.parametrize("cut", ["while writing", "while saving"])
def test_a_cut_within_a_window_loses_only_what_came_after_the_last_save(
    cut: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = model_of()
    answering_by_count(monkeypatch)
    sizes: dict[str, Any] = {"writes": 24, "windows": 2, "questions": 4}
    whole = integrity.measure(model, **sizes, state=tmp_path / "whole")
    assert [window["exact_match"] for window in whole["windows"]] == [0.25, 0.75]
    monkeypatch.setattr(integrity, "KEPT_EVERY", 5)
    seen: list[int] = []
    state, save = tmp_path / "cut", Memory.save

    def stop(*_: Any) -> None:
        if len(seen) == 2:
            raise KeyboardInterrupt

    def note(done: int, total: int) -> None:
        seen.append(done)
        if cut == "while writing":
            stop()

    def saving(memory: Memory, path: Path, **options: Any) -> None:
        stop()
        save(memory, path, **options)

    monkeypatch.setattr(Memory, "save", saving)
    for ends in pairwise([5, 10, 12, 17, 22, 24]):
        with pytest.raises(KeyboardInterrupt):
            integrity.measure(model, **sizes, state=state, progress=note)
        assert seen == list(ends)
        seen.clear()
    again = integrity.measure(model, **sizes, state=state, progress=note)
    assert seen == [24]
    assert without_times(again) == without_times(whole)
    kept = [Memory.load(folder / "memory.safetensors") for folder in (tmp_path / "whole", state)]
    assert kept[0].pool.keys.equal(kept[1].pool.keys)


def test_more_windows_of_the_same_length_go_on_too(tmp_path: Path) -> None:
    model = model_of()
    integrity.measure(model, **SIZES, state=tmp_path)
    more = integrity.measure(model, writes=16, windows=4, questions=2, state=tmp_path)
    assert without_times(more) == without_times(integrity.measure(model, writes=16, windows=4, questions=2))


def test_a_memory_without_a_record_is_started_anew(tmp_path: Path) -> None:
    model = model_of()
    whole = integrity.measure(model, **SIZES, state=tmp_path)
    (tmp_path / "parts.json").unlink()
    assert without_times(integrity.measure(model, **SIZES, state=tmp_path)) == without_times(whole)


def test_state_of_another_run_is_refused(tmp_path: Path) -> None:
    model = model_of()
    integrity.measure(model, **SIZES, state=tmp_path)
    with pytest.raises(InvalidInputError, match="another seed"):
        integrity.measure(model, **SIZES, seed=1, state=tmp_path)
    with pytest.raises(InvalidInputError, match="another window_writes"):
        integrity.measure(model, writes=24, windows=3, questions=2, state=tmp_path)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"writes": 13}, "13 writes do not make 3 equal windows"),
        ({"windows": 0}, "0 equal windows"),
        ({"writes": 0}, "0 writes"),
        ({"questions": 3}, "3 questions do not spread evenly over a window of 4"),
        ({"questions": 0}, "0 questions"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        integrity.measure(model_of(), **{**SIZES, **sizes})
