"""The demonstration: of text slots, a handbook or a file; of a learned model, people at growing distances."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from remanence import Memory, MemoryModel
from remanence.data.handbook import handbook
from remanence.model.read import Answer
from tests.support.cli import done, refused

QUESTIONS = {asked.text: asked for asked in (*handbook().questions, *handbook().not_told)}


@pytest.fixture
def text_slots(text_checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMANENCE_MODEL", text_checkpoint)


@pytest.fixture
def knowing(text_slots: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that answers what stands in its memory and says nothing else."""

    def ask(self: MemoryModel, memory: Memory, question: str, **_: Any) -> Answer:
        asked = QUESTIONS[question]
        place = ("handbook.md", asked.number)
        read = [one.id for one in memory.writes if (one.source, one.metadata["paragraph"]) == place]
        return Answer(f"It is {asked.truths[0]}." if read else "", bool(read), [(write, 0.9) for write in read])

    def generate(self: MemoryModel, memory: Any, prompt: Any, **_: Any) -> Any:
        return "no idea" if isinstance(prompt, str) else ["no [idea]"] * len(prompt)

    monkeypatch.setattr(MemoryModel, "ask", ask)
    monkeypatch.setattr(MemoryModel, "generate", generate)


@pytest.mark.usefixtures("knowing")
@pytest.mark.parametrize("columns", ["80", "120"])
def test_demo_tells_a_handbook_asks_about_it_and_forgets(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    text = done("demo", "--unrelated", "3")
    assert "63 paragraphs told among 3 of novels" in text
    assert max(map(len, text.splitlines()[:-2])) <= int(columns)
    assert text.count("✗ no [idea]") == 20
    lines = [line.rstrip() for line in text.splitlines()]
    for number, asked in enumerate(handbook().questions, 1):
        at = lines.index(f"{number:>2}  {asked.text}")
        assert lines[at + 1].startswith("    ✓ It is ")
        assert f"handbook.md, paragraph {asked.number}" in " ".join(lines[at + 1 : at + 5])
    assert text.count("✓ not told") == 4  # three that are not there, and one that was forgotten
    assert "Paragraph 19 forgotten" in text
    assert "before: ✓ It is Grandmother." in text and "now:    ✓ not told" in text
    words = " ".join(text.split())
    assert "20 of 20 answered, 3 of 3 not told; without memory 0 of 20." in words
    assert "right paragraph was found first for 20 of 20" in words


@pytest.mark.usefixtures("knowing")
def test_demo_says_how_to_go_on(text_checkpoint: str) -> None:
    text = done("demo", "--unrelated", "0", "--model", text_checkpoint)
    for command in ("write notes.mem FILE", "chat notes.mem"):
        assert f" {command} --model {text_checkpoint}" in text.replace("\n", "")


@pytest.mark.usefixtures("text_slots")
def test_demo_gives_figures_as_json() -> None:
    report = json.loads(done("demo", "--unrelated", "2", "--json"))
    assert (report["source"], report["paragraphs"], report["unrelated"]) == ("handbook.md", 63, 2)
    assert [one["question"] for one in report["questions"]] == [asked.text for asked in handbook().questions]
    assert len(report["not_told"]) == 3
    assert report["answered"] == sum(one["right"] for one in report["questions"])
    assert report["right_not_told"] == sum(one["right"] for one in report["not_told"])
    assert report["right_paragraph_first"] == sum(
        one["sources"][:1] == [{"source": "handbook.md", "paragraph": one["paragraph"]}] for one in report["questions"]
    )
    assert report["forgotten"]["paragraph"] == 19
    assert {"source": "handbook.md", "paragraph": 19} not in report["forgotten"]["sources"]
    assert report["seconds"] > 0


@pytest.mark.usefixtures("text_slots")
def test_demo_asks_about_a_file_of_ones_own() -> None:
    Path("notes.md").write_text("# Notes\n\nAlice Brown was born in Oslo.\n\nBob Green was born in Rome.\n")
    Path("notes.tsv").write_text("Where was Alice Brown born?\tOslo\n")
    text = done("demo", "notes.md", "--questions", "notes.tsv", "--unrelated", "1")
    assert "notes.md: 2 paragraphs told among 1 of novels" in text
    assert "notes.md, paragraph 1" in text
    assert "of 1 answered; without memory" in text
    assert "not told" not in text and "forgotten" not in text
    assert "First token after" in text
    report = json.loads(done("demo", "notes.md", "--questions", "notes.tsv", "--unrelated", "0", "--json"))
    assert report["questions"][0]["sources"][0] == {"source": "notes.md", "paragraph": 1}
    assert (report["forgotten"], report["not_told"]) == (None, [])
    assert report["first_token"]["questions"] == 1
    other = json.loads(done("demo", "--questions", "notes.tsv", "--unrelated", "0", "--json"))
    assert (other["source"], len(other["questions"])) == ("handbook.md", 1)


@pytest.mark.parametrize("kind", ["text", "learned"])
def test_demo_of_a_file_without_questions_says_how_to_give_them(
    kind: str, text_checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "text":
        monkeypatch.setenv("REMANENCE_MODEL", text_checkpoint)
    Path("people.txt").write_text("Alice Brown was born in Oslo.\n")
    assert "--questions" in done("demo", "people.txt", "--unrelated", "0")
    report = json.loads(done("demo", "people.txt", "--unrelated", "0", "--json"))
    assert (report["source"], report["paragraphs"]) == ("people.txt", 1)
    assert "paragraph" in done("demo", "-", "--unrelated", "0", stdin="Alice Brown was born in Oslo.\n")


@pytest.mark.usefixtures("text_slots")
def test_demo_refuses_more_unrelated_paragraphs_than_there_are() -> None:
    assert "ask for fewer" in refused("demo", "--unrelated", "461")


def test_demo_of_a_learned_model_gives_figures_as_json() -> None:
    Path("people.txt").write_text("Alice Brown was born in Oslo.\nBob Green was born in Rome.\n")
    Path("people.tsv").write_text("Where was Alice Brown born?\tOslo\n")
    report = json.loads(done("demo", "people.txt", "--questions", "people.tsv", "--unrelated", "2", "--json"))
    groups = [row["group"] for row in report["rows"] if row["column"] == "pool"]
    assert groups == [f"{distance} writes later" for distance in (0, 1, 2)]
    assert report["paragraphs"] == 2
    assert not Path("remanence-demo.png").exists()


@pytest.mark.slow
def test_demo_asks_at_growing_distances_and_draws_retention() -> None:
    text = done("demo", "--unrelated", "6")
    assert [line.split(":")[0] for line in text.splitlines() if line.startswith("distance")] == [
        f"distance {distance}" for distance in (0, 1, 2, 4, 6)
    ]
    for name in ("question", "answer", "truth"):
        assert name in text
    assert "of 24 right" in text
    assert str(Path("remanence-demo.png").resolve()) in text.replace("\n", "")
    assert Path("remanence-demo.png").read_bytes().startswith(b"\x89PNG")


def test_demo_marks_right_and_wrong_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("people.txt").write_text("Alice Brown was born in Oslo.\nBob Green was born in Rome.\n")
    Path("people.tsv").write_text("Where was Alice Brown born?\tOslo\nWhere was Bob Green born?\tRome\n")

    def generate(model: MemoryModel, memories: list[Memory], prompts: list[Any], **_: Any) -> Any:
        if isinstance(prompts[0], str):
            return [" Oslo."] * len(prompts)
        return torch.zeros(len(prompts), max(map(len, prompts)) + 1, dtype=torch.long)

    monkeypatch.setattr(MemoryModel, "generate", generate)
    text = done("demo", "people.txt", "--questions", "people.tsv", "--unrelated", "0", "--output", ".")
    marks = {line.split()[3]: mark for line in text.splitlines() for mark in "✓✗" if mark in line}
    assert marks == {"Alice": "✓", "Bob": "✗"}
    assert "distance 0: 1 of 2 right (50%)" in text


@pytest.mark.parametrize("content", ["one column", "[1]", '[{"question": "Who?"}]', "[", "[]"])
def test_demo_teaches_the_form_of_questions(content: str) -> None:
    Path("q").write_text(content)
    assert "question<TAB>answer" in refused("demo", "--questions", "q", "--unrelated", "0")
