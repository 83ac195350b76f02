"""Loss at equal tokens: text is parted by document, the search ends at a best rate, methods train as they claim."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from grass import quality, recall
from grass.corpus import Corpus, corpus, documents, read
from grass.methods import METHODS
from grass.search import Cell, Cells, best, figures_of, finished, summary, sweep, wanted
from grass.training import Setup, train
from tables import markdown

TINY = Setup(2, 16, 24, 2, rank=4, gap=2, steps=6, batch=2, length=16, held_out=64)
TEXTS = [f"Document {number} tells of {number * 7} things. " * 20 for number in range(200)]


def cells_of(method: str, losses: dict[int, float | None], seed: int = 0) -> Cells:
    return {Cell(method, power, seed): {"validation": loss, "test": loss} for power, loss in losses.items()}


def random_corpus() -> Corpus:
    tokens = torch.randint(50, (3, 600), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    return Corpus(*tokens, vocabulary=50)


@pytest.fixture
def text(tmp_path: Path) -> list[Path]:
    wiki, lines = tmp_path / "wiki_00", tmp_path / "c4.jsonl"
    wiki.write_text("".join(f'<doc id="1" title="x">\n{text}\n</doc>\n' for text in TEXTS[:150]))
    lines.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS[150:]))
    return [wiki, lines]


def test_documents_of_both_formats_are_read(text: list[Path]) -> None:
    assert list(documents(text)) == TEXTS
    assert list(documents([text[0].parent])) == [*TEXTS[150:], *TEXTS[:150]]


def test_no_document_is_in_two_parts(text: list[Path]) -> None:
    made = read(text, train=2000, held_out=500)
    assert [len(part) for part in (made.train, made.validation, made.test)] == [2000, 500, 500]
    rows = [{tuple(row.tolist()) for row in part.unfold(0, 12, 1)} for part in (made.train, made.validation, made.test)]
    assert not rows[0] & rows[1] and not rows[0] & rows[2] and not rows[1] & rows[2]


def test_too_little_text_is_refused(text: list[Path]) -> None:
    with pytest.raises(ValueError, match="add text"):
        read(text, train=10_000_000, held_out=500)


def test_tokens_come_back_from_their_file(text: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "made" / "tokens.pt"
    made = corpus(file, text, 2000, 500)
    again = corpus(file, [], 1000, 500)
    assert torch.equal(made.train, again.train) and torch.equal(made.test, again.test)
    assert again.vocabulary == made.vocabulary > int(made.train.max())
    with pytest.raises(ValueError, match="are wanted"):
        corpus(file, [], 3000, 500)
    with pytest.raises(ValueError, match="--text"):
        corpus(tmp_path / "none.pt", [], 10, 10)


def test_the_search_goes_on_until_both_neighbours_are_worse() -> None:
    first = wanted("adamw", {}, 3, quality.FIRST)
    assert [cell.power for cell in wanted("apollo", {}, 3, quality.FIRST)] == [3, 2, 4]
    assert [cell.power for cell in first] == [2, 1, 3] and {cell.seed for cell in first} == {0}
    cells = cells_of("adamw", {1: 5.0, 2: 4.0, 3: 3.0})
    assert wanted("adamw", cells, 3, quality.FIRST) == [Cell("adamw", 4, 0)] and best("adamw", cells) is None
    cells |= cells_of("adamw", {4: None})  # diverged
    assert best("adamw", cells) == 3
    assert wanted("adamw", cells, 3, quality.FIRST) == [Cell("adamw", 3, 1), Cell("adamw", 3, 2)]


def test_a_summary_waits_for_all_seeds_and_tells_test_at_what_validation_chose() -> None:
    cells = cells_of("adamw", {1: 5.0, 2: 4.0, 3: 4.5})
    more = {"gradient_bytes": 1, "state_bytes": 2, "seconds_per_step": 0.1}
    cells[Cell("adamw", 2, 0)] |= {"test": 6.0, **more}
    cells[Cell("adamw", 3, 0)] |= {"test": 1.0}
    assert summary("adamw", cells, 2) is None
    cells[Cell("adamw", 2, 1)] = {"validation": 4.0, "test": 6.2, **more}
    made = summary("adamw", cells, 2)
    assert made is not None and made["lr"] == 0.004
    assert made["test"] == pytest.approx(6.1) and made["stderr"] == pytest.approx(0.1)


def test_a_finished_cell_is_found_again_and_other_setups_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "corpus", lambda *_: random_corpus())
    made = sweep(["grass-uniform-keep"], 1, partial(quality.run, setup=TINY, folder=tmp_path), tmp_path, {})
    assert len(made) >= 3 and finished(tmp_path) == made
    quality.same_setup(TINY, tmp_path)
    quality.same_setup(TINY, tmp_path)
    with pytest.raises(ValueError, match="another setup"):
        quality.same_setup(Setup(**{**vars(TINY), "steps": 7}), tmp_path)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains(method: str) -> None:
    name = method.partition("-")[0]
    if name in ("galore", "apollo"):
        pytest.importorskip(f"{name}_torch")
    setup = Setup(**{**vars(TINY), "steps": 18})
    tokens = torch.arange(600, dtype=torch.int32) % 7  # easy to learn
    made = train(setup, method, 0.03, 0, Corpus(tokens, tokens, tokens, vocabulary=50))
    assert made["test"] < made["training"][0][1] - 0.5
    assert made["gradient_bytes"] > 0 and made["state_bytes"] > 0


def test_grass_holds_the_bytes_of_its_rows() -> None:
    full, grass = (train(TINY, method, 1e-3, 0, random_corpus()) for method in ("adamw", "grass-top-reset"))
    projected = 2 * (4 * 16 * 16 + 3 * 16 * 24)
    assert full["gradient_bytes"] - grass["gradient_bytes"] == 4 * (projected - 2 * 4 * (4 * 16 + 3 * 24))


def test_a_run_that_diverges_says_so() -> None:
    made = train(TINY, "adamw", 1e30, 0, random_corpus())
    assert made["validation"] is None and made["test"] is None
    json.dumps(made, allow_nan=False)


def test_a_sweep_ends_when_nothing_is_wanted_and_runs_no_cell_twice(tmp_path: Path) -> None:
    ran: list[Cell] = []

    def run(cell: Cell) -> dict[str, Any]:
        ran.append(cell)
        loss = {"loss": abs(cell.power - 1) + 2.0, "exact_match": 0.5}  # as `recall` stores it
        return {"validation": loss, "test": loss, "gradient_bytes": 1, "state_bytes": 2}

    cells = sweep(["grass"], 2, run, tmp_path, {"grass": 2}, minutes=0)
    assert not cells and not ran
    cells = sweep(["grass"], 2, run, tmp_path, {"grass": 2})
    assert [cell.power for cell in ran] == [2, 1, 0, 1] and ran[-1].seed == 1
    assert sweep(["grass"], 2, run, tmp_path, {"grass": 2}) == cells and len(ran) == 4
    row = figures_of(cells, ["adamw", "grass"], 2, {})["rows"][0]["cells"]
    assert row["test loss"]["value"] == 2 and row["exact match"]["value"] == 0.5


def test_the_table_compares_with_adamw() -> None:
    more = {"gradient_bytes": 2**20, "state_bytes": 2**21}
    cells: Cells = {}
    for method, losses in {
        "adamw": (5.0, 5.1, 5.2),
        "grass-top-keep-scale1": (5.05, 5.1, 5.2),
        "lora": (5.0, 5.1, 5.2),
    }.items():
        for power, loss in zip((2, 1, 3), losses, strict=True):
            cells[Cell(method, power, 0)] = {"validation": loss, "test": loss, "training": [], **more}
    cells[Cell("lora", 2, 0)]["test"] = None
    made = figures_of(cells, ["adamw", "grass-top-keep-scale1", "lora"], 1, {})
    assert "| Grass, `top`, `keep`, scale 1 | 5.0500 | +1.0 % | 0.004 | 1.0 MiB | 2.0 MiB |" in markdown(made)
    assert "| LoRA | diverged with 1 of 1 seeds |" in markdown(made)
    assert made["cells"][0] == {
        "method": "adamw",
        "power": 1,
        "seed": 0,
        "lr": 0.002,
        "validation": 5.1,
        "test": 5.1,
        **more,
    }


@pytest.mark.slow
def test_memory_training_is_compared_from_one_start(tmp_path: Path) -> None:
    made = recall.measure(recall.Settings(tmp_path, steps=2, seeds=1))
    assert [row["name"] for row in made["rows"]] == ["AdamW", "Grass"]
    assert 0 < made["start"]["loss"] < 3 and "in 2 steps" in made["note"]
    assert all(row["cells"]["exact match"]["value"] >= 0 for row in made["rows"])
