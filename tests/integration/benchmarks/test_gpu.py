"""What waits for a GPU runs through on a CPU, at tiny shapes, and writes down what it promises."""

import json
from pathlib import Path
from typing import Any

import pytest

from gpu import attention, grass_13b, grass_60m, grass_throughput, longterm_ttft, small
from tables import markdown


def figures(script: Any, file: Path, *arguments: str) -> dict[str, Any]:
    script.main([*arguments, "--json", str(file)])
    made: dict[str, Any] = json.loads(file.read_text())
    assert made["date"] and made["device"] and made["versions"]["torch"] and made["versions"]["python"]
    return made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "figures.json"


@pytest.mark.parametrize("layerwise", [False, True])
def test_grass_at_13b_trains_and_names_what_was_planned(file: Path, layerwise: bool) -> None:
    made = figures(grass_13b, file, "--smoke", *(["--layerwise"] if layerwise else []))
    assert made["finite"] and made["layerwise"] is layerwise
    assert made["planned"]["total"] > made["planned"]["weights"] == 2 * made["parameters"]
    assert made["measured"]["usual_step"] is None  # no GPU here
    assert "| peak of a usual step | 1.1 MiB |  |" in markdown(made)


def test_throughput_is_told_for_every_method(file: Path) -> None:
    whole = figures(grass_throughput, file, "--smoke", "--steps", "2", "--batch", "2")
    made = whole["shapes"]["tiny"]
    assert "| tiny, Grass, rows (as published) |" in markdown(whole)
    assert {"adamw", "grass"} <= made.keys()
    assert made["grass"]["tokens_per_second"] <= made["grass"]["tokens_per_second_without_refreshes"]
    assert "Grass is faster by" in markdown(whole)


def test_losses_at_60m_go_on_where_they_stopped(file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["--smoke", "--output", str(tmp_path / "cells"), "--methods", "adamw", "--seeds", "2"]
    assert not figures(grass_60m, file, *command, "--minutes", "0")["cells"]
    made = figures(grass_60m, file, *command)
    assert made["rows"][0]["cells"]["test loss"]["value"] > 0 and len(made["cells"]) >= 4
    assert made["setup"]["size"] == 32
    capfd.readouterr()
    assert figures(grass_60m, file, *command)["cells"] == made["cells"]
    assert "adamw lr" not in capfd.readouterr().err  # nothing was run again


@pytest.mark.slow
def test_the_small_recipe_adds_a_piece_at_each_command(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "novel.txt").write_text(f"{'a small red boat went over the river ' * 10}\n" * 100)
    monkeypatch.setenv("REMANENCE_PROSE", str(tmp_path))
    command = ["--smoke", "--output", str(tmp_path / "run"), "--steps", "11"]
    first = figures(small, file, *command, "--minutes", "0")
    assert (first["steps"], first["steps_left"]) == (1, 10)
    made = figures(small, file, *command)
    assert [piece["steps"] for piece in made["pieces"]] == [1, 10]
    assert made["steps_left"] == 0 and made["parameters"] > 32_000
    assert [point["step"] for point in made["curve"]] == [10] and made["curve"][0]["loss"] > 0


def test_the_first_token_is_the_plain_paths_with_longterm_memory(file: Path) -> None:
    made = figures(longterm_ttft, file, "--smoke", "--repeats", "2")
    assert "| first token, on the memory read last, 2 layers of d 32, N = 48, M = 64, K0 = 8 |" in markdown(made)
    assert made["rows"][0]["cells"]["Remanence"]["samples"] == 2
    assert made["checks"]["first token"]["largest_difference"] < 0.1


def test_implementations_of_attention_are_compared_with_float32(file: Path) -> None:
    made = figures(attention, file, "--smoke")
    assert "| sdpa |" in markdown(made)
    rows = {row["name"]: row["cells"] for row in made["rows"]}
    assert {"eager", "sdpa"} <= rows.keys()
    assert 0 < float(rows["sdpa"]["largest"]) < 0.05 * made["largest_logit"]


def test_without_a_gpu_it_says_so(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(RuntimeError, match="--smoke"):
        attention.main([])
