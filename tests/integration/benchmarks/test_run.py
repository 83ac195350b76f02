"""A benchmark agrees before it is timed, and is timed in turns; every one of the registry runs through."""

import json
import subprocess
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import run
import tables
from remanence import MemoryModel
from remanence.checkpoints import bundled
from remanence.model import reference
from tests.support import asked
from timing import OURS, PLAIN, Cases, Disagreement, Part, agree, measure

TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
TINY = ("--shape", "tiny", "--repeats", "2")


def figures(capsys: pytest.CaptureFixture[str], tmp_path: Path, *words: str) -> dict[str, Any]:
    """What a benchmark writes down, once what it prints is known to fit a terminal."""
    file = tmp_path / "figures.json"
    run.main([*words, "--json", str(file)])
    made: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    assert made["benchmark"] == words[0] and made["date"] and made["device"] and made["versions"]["torch"]
    assert made["command"].startswith(f"python benchmarks/run.py {words[0]}") and "--json" not in made["command"]
    if "evaluation" not in made:
        assert max(map(len, capsys.readouterr().out.splitlines())) <= 80
    return made


def cells(made: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row["cells"] for row in made["rows"]}


def noting(order: list[str], name: str, seconds: float | None = None) -> Callable[[], float | None]:
    def noted() -> float | None:
        order.append(name)
        return seconds

    return noted


def test_cases_take_turns_and_own_seconds_count() -> None:
    order: list[str] = []
    cases: Cases = {
        (("a",), OURS): noting(order, "a", 0.25),
        (("b",), OURS): noting(order, "b", 0.5),
        (("a", "b"), PLAIN): noting(order, "plain", 1.0),
        (("c",), OURS): noting(order, "c"),
    }

    def gate() -> dict[str, Any]:
        order.append("gate")
        return {"largest_difference": 0.0}

    rows, checks = measure({"part": lambda: Part(cases, 3, gate, {"a": {"held": 7}})})
    assert order == ["gate", *["a", "b", "plain", "c"] * 5]
    assert rows["a"][OURS] == {"median": 250, "quartiles": [250, 250], "mean": 250, "samples": 3, "unit": "ms"}
    assert rows["a"]["plain path / Remanence"]["value"] == 4 and rows["b"]["plain path / Remanence"]["value"] == 2
    assert rows["a"]["held"] == 7 and PLAIN not in rows["c"] and 0 <= rows["c"][OURS]["median"] < 250
    assert checks == {"part": {"largest_difference": 0.0}}


def test_a_part_is_let_go_before_the_next_is_made() -> None:
    held: list[weakref.ref[Any]] = []

    def make() -> Part:
        assert not held or held[-1]() is None
        large = torch.ones(3)
        held.append(weakref.ref(large))
        return Part({(("a",), OURS): lambda: large.sum()}, 2)

    measure({"one": make, "two": make})
    assert len(held) == 2


def test_nothing_is_timed_that_does_not_agree() -> None:
    order: list[str] = []
    one = torch.ones(3)
    part = Part({(("a",), OURS): noting(order, "a")}, 3, lambda: agree("ones", one, one + 1e-3))
    with pytest.raises(Disagreement, match="nothing was timed"):
        measure({"part": lambda: part})
    assert not order
    assert agree("ones", one, one + 1e-5)["largest_difference"] > 0
    assert agree("ones", one.bfloat16(), one + 1e-3) == {"largest_difference": pytest.approx(1e-3, rel=1e-3)}


def test_a_benchmark_refuses_to_time_a_wrong_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    right = reference.read
    monkeypatch.setattr(reference, "read", lambda *given: right(*given) * 1.01)
    with pytest.raises(Disagreement, match="logits of a prompt"):
        run.main(["read_write", *TINY, "--only", "N = 12", "--json", str(tmp_path / "figures.json")])
    assert not list(tmp_path.iterdir())


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """The package as it is here, committed, but that it says who it is."""
    folder = tmp_path / "repository"
    source = run.ROOT / "src/remanence"
    for file in source.rglob("*"):
        if file.suffix in (".py", ".json", ".txt") and file.stat().st_size < 2**18:
            copy = folder / "src/remanence" / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
    with (folder / "src/remanence/__init__.py").open("a", encoding="utf-8") as file:
        file.write('\nimport sys\nprint("the package at the base", file=sys.stderr)\n')
    for words in (
        ["init", "--quiet"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "a"],
    ):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    return folder


def worktrees(repository: Path) -> int:
    said = subprocess.run(
        ["git", "-C", str(repository), "worktree", "list"], check=True, capture_output=True, text=True
    )
    return len(said.stdout.splitlines())


@pytest.mark.parametrize("stopped", [KeyboardInterrupt, None])
def test_a_worktree_goes_however_its_use_ends(repository: Path, stopped: type[BaseException] | None) -> None:
    try:
        with run.worktree(repository, "HEAD") as tree:
            assert (tree / "src/remanence/__init__.py").is_file() and worktrees(repository) == 2
            if stopped is not None:
                raise stopped
    except KeyboardInterrupt:
        assert stopped is KeyboardInterrupt
    assert not tree.exists() and worktrees(repository) == 1


@pytest.mark.slow
def test_a_benchmark_is_compared_with_another_commit(
    repository: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "ROUNDS", 2)
    there, worktree = [], run.worktree
    monkeypatch.setattr(run, "worktree", lambda root, ref: there.append((root, ref)) or worktree(repository, "HEAD"))
    file = tmp_path / "figures.json"
    run.main(["read_write", *TINY, "--only", "pool update", "--base", "before", "--json", str(file)])
    assert there == [(run.ROOT, "before")] and worktrees(repository) == 1
    assert capfd.readouterr().err.count("the package at the base") == 2
    made = cells(json.loads(file.read_text(encoding="utf-8")))
    assert set(made) == {f"pool update, N = {n}, {side}" for n in ("1,280", "12,800") for side in (OURS, PLAIN)}
    for one in made.values():
        assert one["now"]["samples"] == one["before"]["samples"] == 2
        assert one["before / now"]["value"] == pytest.approx(one["before"]["median"] / one["now"]["median"], rel=1e-3)


def test_cells_are_told_with_their_units() -> None:
    timed = {"median": 12.34, "quartiles": [11.06, 1500.0], "samples": 3, "unit": "ms"}
    assert tables.text(timed) == "12.3 ms (11.1 to 1,500.0)"
    assert tables.text({"value": 3 * 2**19, "unit": "bytes"}) == "1.5 MiB"
    assert tables.text({"value": 4.5, "stderr": 0.25, "unit": "loss"}) == "4.5000 ± 0.2500"
    assert [tables.text(cell) for cell in ("said", 1234, None, {"value": 0.004})] == ["said", "1,234", "", "0.004"]
    made = {"rows": [{"name": "a", "cells": {"b": timed}}, {"name": "c", "cells": {"d": 5}}], "note": "Said."}
    assert tables.markdown(made) == (
        "|  | b | d |\n|---|---:|---:|\n| a | 12.3 ms (11.1 to 1,500.0) |  |\n| c |  | 5 |\n\n"
        "Said. Medians and quartiles of 3 samples each."
    )


def test_every_benchmark_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    run.main(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(run.BENCHMARKS)
    with pytest.raises(SystemExit, match="name a benchmark: read_write"):
        run.main(["write_read"])


def test_folders_of_files_are_not_in_the_command(tmp_path: Path) -> None:
    words = ["heads", "--data", str(tmp_path / "dev.json"), "--json", "a/b.json", "--count", "3"]
    _, on, _ = run.parsed(words)
    assert run.command(words, on) == "python benchmarks/run.py heads --data dev.json --count 3"
    with pytest.raises(SystemExit, match="takes none"):
        run.main([*words, "--base", "HEAD"])


@pytest.mark.slow
def test_reading_and_writing_are_measured_at_any_shape(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = figures(capsys, tmp_path, "read_write", *TINY)
    assert made["checks"]["memories in one call"]["same_tokens"]
    rows = cells(made)
    assert rows["next token, N = 48 (right: stock model, equally long static cache)"][OURS]["samples"] == 2
    assert rows["pool update, N = 12,800 against pool update, N = 1,280"][PLAIN]["value"] > 0
    assert rows["first token, after a write, more for every 1,000 slots"].keys() == {OURS, PLAIN, f"{PLAIN} / {OURS}"}
    assert rows["bytes per slot and layer (right: as a hidden state)"][OURS] == 144


@pytest.mark.slow
def test_longterm_memory_is_measured_at_any_shape(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = figures(capsys, tmp_path, "longterm", *TINY, "--scale", "0.001", "--folder", str(tmp_path))
    assert made["checks"]["gather"]["same_bits"] and made["checks"]["scores, M = 150"]["same_order"]
    assert made["checks"]["disk tier"]["disk_and_host_same_bits"]
    rows = cells(made)
    assert rows["append, disk, M = 1,000 against M = 10, mean, making room included"][OURS]["value"] > 0
    assert rows["disk tier, 4 layers of 1,000 slots: on disk"][OURS]["value"] == 4 * 1000 * 2 * 4 * 32 * 4


@pytest.mark.slow
def test_writes_are_measured_in_small_and_large_memories(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = figures(capsys, tmp_path, "writes", "--few", "2", "--many", "20", "--repeats", "2")
    assert list(cells(made)) == ["pool", "longterm", "text"]
    assert cells(made)["text"].keys() >= {"write 2 to 4", "write 20 to 22", "held", "late / early", "question / again"}


@pytest.mark.slow
def test_steps_of_training_are_measured_in_processes_of_their_own(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shape = ("--layers", "1", "--size", "32", "--intermediate", "48", "--batch", "2", "--length", "8", "--rank", "4")
    made = figures(capsys, tmp_path, "grass_step", *shape, "--methods", "adamw", "grass", "--repeats", "2")
    adamw, grass = cells(made).values()
    assert adamw["rows take"]["value"] > 0 and adamw["refresh adds"] is None and "rows take" not in grass
    assert grass["gradients"]["value"] < adamw["gradients"]["value"]
    assert grass["step with a refresh"]["samples"] == 3


@pytest.mark.slow
def test_rules_of_eviction_are_asked_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = figures(capsys, tmp_path, "eviction", "--questions", "2", "--models", "tiny")
    assert [row["column"] for row in made["rows"]] == ["random", "shared", "older half", "oldest"]
    assert all(row["metrics"]["0"]["n"] == 2 for row in made["rows"]) and made["rows"][3]["metrics"]["0"]["value"] == 1


@pytest.fixture
def chatting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever model is named, one whose answers mean nothing."""
    model = asked.model()
    model.tokenizer.chat_template = TEMPLATE
    monkeypatch.setattr(MemoryModel, "from_pretrained", lambda *_: model)


@pytest.mark.usefixtures("chatting")
@pytest.mark.parametrize(("name", "metric", "ways"), [("heads", "loss", 5), ("together", "hit", 7)])
def test_questions_are_asked_in_every_way(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, metric: str, ways: int
) -> None:
    made = figures(capsys, tmp_path, name, "--data", str(asked.squad_file(tmp_path)), "--count", "2")
    assert len(made["rows"]) == ways and made["command"].endswith("--data squad.json --count 2")
    assert all(row["metrics"][metric]["n"] == 2 for row in made["rows"])


def test_passages_are_compressed_at_every_ratio(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model, chunks = MemoryModel.from_pretrained(bundled("tiny")), []
    model.tokenizer.chat_template = TEMPLATE
    monkeypatch.setattr(MemoryModel, "from_pretrained", lambda *_: model)
    right = model.write

    def write(*given: Any) -> Any:
        chunks.append(model.config.chunk)
        return right(*given)

    monkeypatch.setattr(model, "write", write)
    (tmp_path / "training_log.json").write_text('{"log": [{"loss": 1.5}]}', encoding="utf-8")
    words = ["--model", str(tmp_path), "--data", str(asked.squad_file(tmp_path)), "--count", "1", "--ratios", "2", "3"]
    made = figures(capsys, tmp_path, "compressed", *words)
    assert [row["column"] for row in made["rows"]] == ["nothing", "2 tokens a slot", "3 tokens a slot"]
    assert chunks == [2 * model.slots_per_write, 3 * model.slots_per_write]
    assert made["settings"]["training"] == [{"loss": 1.5}]


@pytest.mark.usefixtures("chatting")
def test_own_text_is_asked_about_and_its_answers_are_kept(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    made = figures(capsys, tmp_path, "own_text", "--text", "notes")
    assert made["rows"][0]["metrics"].keys() == {"source", "hit", "found"}
    assert len(made["records"]) == 20 and made["records"][0]["said"] is not None
    with pytest.raises(SystemExit, match="--novel"):
        run.main(["own_text", "--text", "chapter"])


def test_words_are_counted_by_passage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    text = "\n".join(["The bee flew over the harbour. " * 40] * 3)
    (tmp_path / "wiki_00").write_text(
        f'<doc id="1" title="Bees">\n{text}\n</doc>\n<doc id="2" title="Left Out">\n{text}\n</doc>\n'
    )
    (tmp_path / "left.json").write_text('{"data": [{"title": "Left_Out"}]}')
    files = (
        "--wikipedia",
        str(tmp_path),
        "--without",
        str(tmp_path / "left.json"),
        "--output",
        str(tmp_path / "words"),
    )
    made = figures(capsys, tmp_path, "word_frequencies", *files)
    counted = json.loads((tmp_path / "words").read_text(encoding="utf-8"))
    assert cells(made)["words"]["passages"] == counted["passages"] == 5
    assert counted["frequencies"]["harbour"] == 1
