"""The committed page, pictures and tables are those of the committed figures; what is new or missing shows."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import report
import run
from remanence.cli import app
from remanence.evaluation.harness import Report
from remanence.evaluation.metrics import Metric
from remanence.evaluation.plots import digest

FIGURES = report.read(report.ROOT / "benchmarks")
RESULTS = (report.ROOT / "docs/results.md").read_text(encoding="utf-8")
STALE = "is not what the figures give; run: make results"


def page(figures: report.All) -> str:
    return report.renewed(RESULTS, figures)


ABOUT = {
    "date": "2026-01-02T03:04:05+00:00",
    "device": "a device",
    "versions": {"remanence": "0.1", "torch": "2.11", "transformers": "5.17", "python": "3.11"},
}


def reported(name: str, groups: dict[str, float], metric: str = "right", command: str | None = None) -> dict[str, Any]:
    """Figures as an evaluation writes them, of one column."""
    rows = [
        {
            "group": group,
            "column": "pool",
            "samples": 12,
            "metrics": {metric: {"value": value, "low": value / 2, "high": 2 * value, "n": 12}},
            "versus": {},
        }
        for group, value in groups.items()
    ]
    made = Report(name, {}, {}, (Metric(metric, "rate"),), rows).to_json()
    return {**made, **ABOUT, "command": command or f"remanence eval {name} --model other"}


@pytest.mark.parametrize("name", report.PAGES)
def test_pages_are_those_of_the_committed_figures(name: str) -> None:
    text = (report.ROOT / name).read_text(encoding="utf-8")
    assert text == report.renewed(text, FIGURES), STALE
    assert report.MARKED.search(text)


def test_pictures_show_the_committed_figures_and_no_others_lie_there() -> None:
    shown = {report.picture(name): one for name, one in FIGURES.items() if report.drawing(one)}
    lying = {path.relative_to(report.ROOT) for path in (report.ROOT / "docs/results").iterdir()}
    assert lying == set(shown), STALE
    for path, one in shown.items():
        one = Report.from_json(one).to_json() if one.get("evaluation") in report.DRAWN else one
        assert digest(one) in (report.ROOT / path).read_text(encoding="utf-8"), f"{path} {STALE}"


@pytest.mark.parametrize("kind", ["retention", "harm"])
def test_the_same_figures_give_the_same_picture(kind: str, tmp_path: Path) -> None:
    one = next(one for one in FIGURES.values() if one.get("evaluation") == kind)
    draw = report.drawing(one)
    assert draw is not None
    for name in ("a.svg", "b.svg"):
        draw(one, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_new_figures_appear_with_what_they_were_made_by() -> None:
    new = reported("integrity", {"7 writes": 0.25})
    text = page({**FIGURES, "integrity/other.json": new})
    assert "### other, `integrity/other.json`" in text and "results/integrity-other.svg" in text
    assert "| 7 writes | 12 | 0.250 (0.125 to 0.500) |" in text
    assert f"Made by `{new['command']}`, 2026-01-02, on a device, remanence 0.1, torch 2.11, " in text


def test_figures_of_a_script_that_is_gone_say_what_makes_them_today() -> None:
    name, today = "read_write/results.json", "Today: `python benchmarks/run.py read_write`."
    old = {**FIGURES[name], "command": "python benchmarks/read_write/run.py --json a.json"}
    assert today in page({name: old}) and "Made by `python benchmarks/read_write/run.py --json a.json`" in page(
        {name: old}
    )
    assert today not in page({name: {**old, "command": "python benchmarks/run.py read_write --repeats 50"}})
    assert "Today" not in page({"small/cpu_200_steps.json": FIGURES["small/cpu_200_steps.json"]})
    assert "Today: `remanence eval integrity --model tiny" in page(
        {"integrity/results.json": FIGURES["integrity/results.json"]}
    )


def test_long_documents_get_a_table_and_a_picture(tmp_path: Path) -> None:
    new = reported("longcontext", {"4,096 tokens": 0.5, "> 4,096 tokens": 0.25}, "f1")
    assert "| 4,096 tokens | 12 | 0.500 (0.250 to 1.000) |" in page({"longcontext/hotpotqa.json": new})
    draw = report.drawing(new)
    assert draw is not None
    draw(new, tmp_path / "picture.svg")
    assert "f1" in (tmp_path / "picture.svg").read_text(encoding="utf-8")


def test_a_single_figure_stands_where_a_page_names_it() -> None:
    one = reported("retention", {"0 writes later": 0.75})
    text = 'So <!-- figure: measured a/b.json "0 writes later" pool right -->?<!-- /figure -->.'
    assert "-->0.750 (0.375 to 1.500)<!--" in report.renewed(text, {"a/b.json": one})
    assert "-->not measured<!--" in report.renewed(text, {})


def test_figures_of_the_harness_get_their_table() -> None:
    new = reported("squad", {"1 passage": 0.25}, "hit", "remanence eval squad --model smollm2")
    text = page({"real/squad.json": new})
    assert "### smollm2, `real/squad.json`" in text
    assert "| 1 passage | 12 | 0.250 (0.125 to 0.500) |" in text
    assert "Made by `remanence eval squad --model smollm2`, 2026-01-02" in text


def test_figures_without_a_table_or_a_place_are_named() -> None:
    new = {**ABOUT, "command": "remanence eval taste --model other"}
    assert "## Other figures" not in page(FIGURES)
    for name in ("taste/results.json", "integrity/taste.json"):
        text = page({**FIGURES, name: new})
        assert (
            f"## Other figures\n\n- `{name}`. Made by `remanence eval taste" in text
            and f"### other, `{name}`" not in text
        )
    placed = page({**FIGURES, "taste/results.json": FIGURES["writes/results.json"]})
    assert "## Other figures\n\n- `taste/results.json`. Made by" in placed


def test_what_is_missing_is_said_with_its_command() -> None:
    line = "- `integrity/results.json`: `remanence eval integrity --model tiny --writes 100000 --count 200 --json "
    assert line not in page(FIGURES)
    assert line in page({name: one for name, one in FIGURES.items() if not name.startswith("integrity/")})
    assert all(f"- `{name}`: `{report.shown(name)}`" in page({}) for name in report.COMMANDS)
    readme = report.renewed((report.ROOT / "README.md").read_text(encoding="utf-8"), {})
    assert f"Not measured: `{report.shown('grass/step.json')}`." in readme


def test_evaluations_and_benchmarks_take_the_commands_that_are_named() -> None:
    group: Any = get_command(app)
    for command in report.COMMANDS.values():
        program, first, *words = shlex.split(command)
        if program == "remanence":
            name, *options = words
            evaluations = group.commands[first]
            evaluations.get_command(evaluations.make_context(first, [name]), name).make_context(name, options)
        elif first == "benchmarks/run.py":
            run.parsed(words)


def test_make_measures_figures_that_have_a_command() -> None:
    makefile = (report.ROOT / "Makefile").read_text(encoding="utf-8")
    names = re.findall(r"[ /](\w+/\w+\.json)", makefile)
    assert set(names) <= set(report.COMMANDS) and len(names) > 10


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An empty repository in which evaluations write their own name; returns those that have run."""
    run: list[str] = []

    def evaluate(words: list[str], **_: Any) -> None:
        made = Path(words[-1])
        if made.stem == "breaks":
            raise subprocess.CalledProcessError(1, words)
        made.write_text(json.dumps(words[4]))
        run.append(made.stem)

    checkpoint = tmp_path / "checkpoints/tiny/weights"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    os.utime(checkpoint, (1, 1))
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "KEPT", tmp_path / "runs/report")
    monkeypatch.setattr(report, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(
        report, "COMMANDS", {f"a/{name}.json": f"remanence eval {name}" for name in ("one", "breaks", "two")}
    )
    monkeypatch.setattr(report.subprocess, "run", evaluate)
    (tmp_path / "benchmarks").mkdir()
    return run


def test_measuring_again_goes_on_after_a_cut(workplace: list[str], tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        report.again(["a/one.json", "a/breaks.json"])
    assert workplace == ["one"] and not (tmp_path / "benchmarks/a").exists()
    report.again(["a/one.json", "a/two.json"])
    assert workplace == ["one", "two"]
    assert json.loads((tmp_path / "benchmarks/a/two.json").read_text()) == "two"
    report.again(["a/one.json"])
    assert workplace == ["one", "two", "one"]


def test_figures_of_a_checkpoint_that_has_changed_are_measured_again(workplace: list[str], tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        report.again(["a/one.json", "a/breaks.json"])
    made = (tmp_path / "runs/report/a/one.json").stat().st_mtime
    os.utime(tmp_path / "checkpoints/tiny/weights", (made + 1, made + 1))
    with pytest.raises(subprocess.CalledProcessError):
        report.again(["a/one.json", "a/breaks.json"])
    assert workplace == ["one", "one"]
