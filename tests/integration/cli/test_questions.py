"""Evaluations of text slots from the command line: a table, figures as JSON, and a folder from which they go on."""

import json
from pathlib import Path
from typing import Any

import pytest

from remanence import MemoryModel
from remanence.evaluation import harm, squad
from remanence.evaluation.harness import Report
from tests.support import asked
from tests.support.cli import done, refused

WORDS = {
    "squad": ["--memories", "1,untold", "--count", "2", "--columns", "oracle,slots"],
    "locomo": ["--count", "2", "--columns", "bm25_4,slots"],
    "longmemeval": ["--count", "1", "--columns", "slots"],
    "multihop": ["--count", "1", "--columns", "slots"],
    "babi": ["--count", "1", "--columns", "slots", "--lengths", "200"],
    "edits": ["--count", "1", "--counts", "1,2", "--columns", "nothing,fits,slots"],
}
FILES = {
    "squad": asked.squad_file,
    "locomo": asked.locomo_file,
    "longmemeval": asked.longmemeval_file,
    "multihop": asked.hotpot_file,
    "babi": asked.babi_file,
    "edits": asked.counterfact_file,
}


@pytest.fixture(autouse=True)
def text_model(workplace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("text")
    asked.model().save_pretrained(folder)
    monkeypatch.setenv("REMANENCE_MODEL", str(folder))
    monkeypatch.setattr(squad, "ASKED_ABOUT", 3)
    monkeypatch.setattr(harm, "ANSWER_TOKENS", 4)


@pytest.mark.parametrize("name", [*WORDS, "harm"])
def test_help_teaches_by_example(name: str) -> None:
    text = done("eval", name, "--help")
    assert "Examples:" in text and f"remanence eval {name}" in text.partition("Examples:")[2]


@pytest.mark.parametrize("name", WORDS)
def test_eval_prints_a_table_and_keeps_figures(name: str, workplace: Path) -> None:
    file = FILES[name](workplace)
    shown = done("eval", name, "--data", str(file), *WORDS[name], "--json", "figures.json")
    content = json.loads(Path("figures.json").read_text())
    report = Report.from_json(content)
    assert report.name == name and report.table() in shown
    assert content["command"].startswith(f"remanence eval {name} --data {file}") and content["versions"]["torch"]
    assert content["model"]["fingerprint"] and content["rows"]


@pytest.mark.parametrize("name", WORDS)
def test_eval_goes_on_from_its_folder(name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["eval", name, "--data", str(FILES[name](workplace)), *WORDS[name], "--resume", "kept"]
    first = done(*words)

    def fail(*args: Any, **more: Any) -> None:
        raise AssertionError("asked again")

    monkeypatch.setattr(MemoryModel, "ask", fail)
    monkeypatch.setattr(MemoryModel, "read", fail)
    assert done(*words) == first


def test_eval_harm_measures_windows_and_prompts(workplace: Path) -> None:
    done("eval", "harm", "--unrelated", "2", "--count", "1", "--json", "harm.json")
    rows = json.loads(Path("harm.json").read_text())["rows"]
    assert [(row["group"], row["column"]) for row in rows] == [
        *[("windows", "nothing"), ("windows", "slots"), ("prompts", "nothing"), ("prompts", "slots")]
    ]


def test_eval_refuses_what_is_not_there_in_one_line(workplace: Path) -> None:
    file = str(asked.squad_file(workplace))
    assert "no file nowhere.json" in refused("eval", "squad", "--data", "nowhere.json")
    assert "nothing at nowhere" in refused("eval", "locomo", "--data", "nowhere")
    assert "no column 'all'" in refused("eval", "squad", "--data", file, "--columns", "all")
    assert "no folder" in refused("eval", "squad", "--data", file, "--json", "no/where.json")
    assert "in none of the known formats" in refused("eval", "squad", "--data", str(asked.locomo_file(workplace)))
