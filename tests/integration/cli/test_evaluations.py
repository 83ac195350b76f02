"""`remanence eval`: of every evaluation a table, figures, a picture, and a folder from which it resumes."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from remanence import MemoryModel
from remanence.evaluation import harm, squad
from remanence.evaluation.harness import Report, Run
from remanence.evaluation.registry import EVALUATIONS, load
from tests.support import asked
from tests.support.cli import done, refused, run

FILES = {
    "squad": asked.squad_file,
    "locomo": asked.locomo_file,
    "longmemeval": asked.longmemeval_file,
    "multihop": asked.hotpot_file,
    "babi": asked.babi_file,
    "longcontext": asked.babi_file,
}
WORDS = {
    "squad": "--memories 1,untold --count 2 --columns oracle,slots",
    "locomo": "--count 2 --columns bm25_4,slots",
    "longmemeval": "--count 1 --columns nothing,slots",
    "multihop": "--count 1 --columns nothing,slots",
    "babi": "--count 1 --columns nothing,slots --lengths 200",
    "longcontext": "--count 1 --lengths 100,200",
    "retention": "--count 2 --distances 0,1p --facts 2 --people both --tier disk --int8",
    "retrieval": "--count 2 --distances 2p --batch 1",
    "editing": "--edits 1,2 --count 2 --columns nothing,fits,pool,ft_l",
    "integrity": "--writes 4 --windows 2 --count 1",
    "harm": "--unrelated 2 --count 1",
}
every_evaluation = pytest.mark.parametrize("name", EVALUATIONS)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(squad, "ASKED_ABOUT", 3)
    monkeypatch.setattr(harm, "ANSWER_TOKENS", 4)


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("text")
    asked.model().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def words(name: str, workplace: Path, text_model: str, longterm_checkpoint: str) -> list[str]:
    """An evaluation of a small file, of a model that it is usually for."""
    learned = name == "editing" or load(name)[0].learned
    data = ["--data", str(FILES[name](workplace))] if name in FILES else []
    return ["eval", name, *data, *WORDS[name].split(), "--model", longterm_checkpoint if learned else text_model]


@every_evaluation
def test_help_teaches_by_example(name: str) -> None:
    text = done("eval", name, "--help")
    assert "Examples:" in text and f"remanence eval {name}" in text.partition("Examples:")[2]


def test_columns_are_explained_where_they_can_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "600")
    assert "oracle (the passages" in done("eval", "squad", "--help") and "ft_l" in done("eval", "editing", "--help")
    text = done("eval", "integrity", "--help")
    assert "longterm" in text and "oracle" not in text and "slots+reader" not in text


@every_evaluation
def test_eval_shows_a_table_keeps_figures_draws_them_and_resumes(
    name: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = done(*words, "--resume", "kept", "--json", "figures.json", "--plot", "figures.svg")
    content = json.loads(Path("figures.json").read_text())
    report = Report.from_json(content)
    assert report.name == name and report.table() in first and content["rows"]
    assert max(map(len, first.splitlines())) <= 80
    assert content["model"]["fingerprint"] and set(content["versions"]) >= {"remanence", "torch", "python"}
    assert content["device"].endswith("with 1 thread") and "<svg" in Path("figures.svg").read_text()
    for work in ("write", "ask", "read", "generate"):
        monkeypatch.setattr(MemoryModel, work, lambda *_, **__: pytest.fail("worked again"))
    again = shlex.split(content["command"])
    assert again[:3] == ["remanence", "eval", name] and set(WORDS[name].split()) <= set(again)
    assert done(*again[1:], "--resume", "kept") == first


@every_evaluation
def test_eval_that_is_interrupted_says_what_it_leaves_and_resumes(
    name: str, words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, kept = Run._keep, list[int]()

    def cut(self: Run, column: str, items: Any, found: Any) -> None:
        if kept:
            raise KeyboardInterrupt
        kept.append(len(items))
        keep(self, column, items, found)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_keep", cut)
        result = run(*words, "--resume", "kept")
        [file] = Path("kept").glob(f"{name}-*.jsonl")
        assert result.exit_code == 130
        assert f"interrupted; what is measured is kept in {file}; run it again to resume" in result.stderr
        kept[:] = [0]
        assert "interrupted; nothing was kept" in run(*words).stderr
    measured: list[int] = []
    monkeypatch.setattr(Run, "_keep", lambda *given: measured.append(len(given[2])) or keep(*given))
    done(*words, "--resume", "kept", "--json", "figures.json")
    whole = sum(measured)
    measured.clear()
    done(*words)
    assert 0 < whole < sum(measured)


def test_eval_measures_only_the_columns_that_are_named_and_says_so() -> None:
    words = "eval retention --count 1 --distances 0 --columns nothing --people listed --json r.json"
    done(*words.split())
    content = json.loads(Path("r.json").read_text())
    assert [row["column"] for row in content["rows"]] == ["nothing"]
    assert "--columns nothing" in content["command"] and "--people listed" in content["command"]


def test_eval_measures_all_that_a_model_has_where_no_columns_are_named(longterm_checkpoint: str) -> None:
    for words, columns in (
        ("retention --count 1 --distances 0", ["nothing", "fits", "pool", "longterm"]),
        ("integrity --writes 1 --windows 1 --count 1", ["longterm"]),
    ):
        done("eval", *words.split(), "--model", longterm_checkpoint, "--json", "r.json")
        rows = json.loads(Path("r.json").read_text())["rows"]
        assert list(dict.fromkeys(row["column"] for row in rows)) == columns


def test_eval_takes_a_bundled_checkpoint_by_name() -> None:
    shown = done("eval", "retention", "--model", "tiny", "--count", "1", "--distances", "0", "--columns", "nothing")
    assert "writes later" in shown


@pytest.mark.parametrize(
    "words",
    [
        "retention --samples 3",
        "retention --memory pool",
        "retention --state kept",
        "integrity --questions 3",
        "editing counterfact.json",
        "editing --method ft",
        "editing --counts 1",
        "longcontext --data none --memory pool",
        "perplexity",
        "edits",
    ],
)
def test_eval_knows_no_options_of_before(words: str) -> None:
    result = run("eval", *words.split())
    assert result.exit_code == 2
    assert any(word in result.stderr for word in ("No such option", "No such command", "unexpected extra argument"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("squad --data nowhere.json", "no file nowhere.json"),
        ("squad --data .", "is a folder"),
        ("squad --data squad.json --columns all", "no column 'all'"),
        ("squad --data squad.json --columns pool", "text slots, which are in no pool"),
        ("squad --data squad.json --json no/where.json", "no folder"),
        ("squad --data 7.json", "in none of the known formats"),
        ("locomo --data nowhere", "no file nowhere"),
        ("babi --data qa1.txt --novels nowhere", "no file nowhere"),
        ("harm --told nowhere", "no file nowhere"),
        ("retention --distances 0,x", "no number of writes"),
        ("retention --people known", "--people is listed"),
        ("retention --facts 9", "facts, not 9"),
        ("retention --plot r.doc", ".png or .svg"),
        ("longcontext --data qa1.txt --lengths long", "lengths are numbers"),
        ("editing --edits many", "numbers from 1"),
    ],
)
def test_eval_refuses_what_makes_no_sense_in_one_line_before_it_measures(
    words: str, message: str, workplace: Path, text_model: str, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in (asked.squad_file, asked.locomo_file, asked.babi_file):
        file(workplace)
    for work in ("write", "ask", "generate"):
        monkeypatch.setattr(MemoryModel, work, lambda *_, **__: pytest.fail("measured before refusing"))
    name, *rest = words.split()
    assert message in refused("eval", name, *rest, "--model", checkpoint if load(name)[0].learned else text_model)


@pytest.mark.parametrize("words", ["retention --count 0", "squad --count 0 --data squad.json", "integrity --writes 0"])
def test_eval_refuses_counts_below_one(words: str, workplace: Path) -> None:
    asked.squad_file(workplace)
    result = run("eval", *words.split())
    assert result.exit_code == 2 and "greater than or" in result.stderr
