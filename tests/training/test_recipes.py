"""The recipe of the bundled checkpoint runs with another optimizer than its own."""

from pathlib import Path

import pytest
import torch

from remanence import MemoryModel
from remanence.training.recipes import load_recipe


def test_the_tiny_recipe_trains_a_few_steps_with_grass_and_leaves_a_stock_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "a small red boat went over the river and came home with many birds"
    (tmp_path / "prose.txt").write_text(f"{words} {words[::-1]} {words}\n" * 100)
    monkeypatch.setenv("REMANENCE_PROSE", str(tmp_path))
    final = load_recipe(Path(__file__).parents[2] / "recipes/tiny.py")(tmp_path / "run", steps=3, optimizer="grass")
    state = torch.load(tmp_path / "run/checkpoint-3/optimizer.pt", weights_only=True)
    assert state["param_groups"][0]["rank"] == 32
    assert len(state["param_groups"][0]["names"]) == 4 * 7
    card = (final / "README.md").read_text()
    assert "optimizer: GrassAdamW" in card and "base: random weights" in card and "| memory_loss | " in card
    assert not any("grass" in name for name in MemoryModel.from_pretrained(final).state_dict())
