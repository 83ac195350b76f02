"""The card of a trained model says what the run was, in the hub's form."""

from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from remanence.training.curriculum import Curriculum
from remanence.training.model_card import write_card
from remanence.training.trainer import MemoryTrainer
from tests.support.training import arguments, tiny_model
from tests.unit.training.test_trainer import recitation


@pytest.mark.parametrize(
    ("base", "on_hub"), [("owner/decoder", "owner/decoder"), ("", None), ("runs/other/model", None)]
)
def test_write_card_tells_the_run_in_text_and_metadata(base: str, on_hub: str | None, tmp_path: Path) -> None:
    curriculum = Curriculum(recitation, levels=2, steps=1000)
    model = tiny_model(slots=8, slots_per_write=4)
    run = MemoryTrainer(model, args=arguments(tmp_path / "run", 2, every=1), curriculum=curriculum)
    run.train()
    (folder := tmp_path / "run/model").mkdir()
    write_card(run, folder, recipe="some recipe", base=base, data=["a", "b"], settings={"chunk": 16})
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "remanence" and card.data.base_model == on_hub
    for said in (
        "# run\n",
        "trained by `some recipe`",
        f"- base: {base or 'random weights'}\n- data: a, b\n- steps: 2 of 2\n",
        "- slots per write: 4\n",
        "## Settings\n\n- chunk: 16\n",
        f"| memory_loss | {run.state.log_history[0]['memory_loss']:.3f} (step 1) | ",
    ):
        assert said in card.text, said
    assert "train_loss" not in card.text
