"""The recipe for large models trains a tiny one: three stages, cut off and resumed, each with a card of its run."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from remanence import MemoryModel
from remanence.checkpoints import bundled
from remanence.errors import InvalidInputError
from remanence.training.recipes import load_recipe, reporters
from tests.support import tiny

RECIPE = Path("llama_3_1_8b")
WORDS = "Alice Brown was born in Oslo, and works as a baker in Bergen. "
SMALL: dict[str, Any] = {"slots": 24, "slots_per_write": 4, "retrieved": 8, "chunk": 16, "tokens": 64, "rank": 4}


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Any]:
    hf = tiny.decoder("llama", vocab_size=300)
    assert isinstance(hf, LlamaForCausalLM)
    hf.save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "short.jsonl").write_text("".join(json.dumps({"text": f"{n} {WORDS}"}) + "\n" for n in range(9)))
    (tmp_path / "long").mkdir()
    for name in ("4-8k", "8-16k"):
        (tmp_path / "long" / f"{name}.txt").write_text(WORDS * 20)
    return {
        "base": str(tmp_path / "base"),
        "data": str(tmp_path / "short.jsonl"),
        "long": str(tmp_path / "long"),
    }


@pytest.mark.parametrize("optimizer", ["adamw", "grass"])
def test_three_stages_train_a_model_with_long_term_memory(
    tmp_path: Path, places: dict[str, Any], optimizer: str
) -> None:
    final = load_recipe(RECIPE)(tmp_path / "run", steps=[1, 1, 2], optimizer=optimizer, **places, **SMALL)
    assert final == tmp_path / "run/3-longterm/model"
    model = MemoryModel.from_pretrained(final)
    assert model.config.longterm is not None and model.config.longterm.retrieved == 8 and model.slots == 16
    assert (model.adapters is not None) == (optimizer == "adamw")
    memory = model.new_memory()
    for _ in range(6):
        model.write(memory, WORDS)
    assert memory.longterm is not None and min(memory.longterm.sizes()) > 0
    layer = "layers.0.mlp.up_proj"
    base, held = LlamaForCausalLM.from_pretrained(places["base"]), model.hf.model.get_submodule(layer)
    kept = torch.equal(getattr(held, "base_layer", held).weight, base.model.get_submodule(layer).weight)
    assert kept == (optimizer == "adamw")
    before = MemoryModel.from_pretrained(tmp_path / "run/2-long/model")
    assert before.config.longterm is None and before.slots == 24
    kinds = {
        name
        for entry in json.loads((final / "training_log.json").read_text())["log"]
        for name in entry
        if "_loss" in name
    }
    assert any(name.endswith("_longterm_loss") for name in kinds)
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@pytest.mark.slow
def test_a_run_that_was_cut_ends_where_an_uninterrupted_one_does_and_its_card_says_what_it_was(
    tmp_path: Path, places: dict[str, Any]
) -> None:
    recipe = load_recipe(RECIPE)
    whole = recipe(tmp_path / "whole", steps=[2, 1, 2], **places, **SMALL)
    cut, found, calls = tmp_path / "cut", None, 0
    while found is None and calls < 5:
        calls += 1
        if (cut / "2-long/model").exists():  # what a finished stage left on its way is not needed
            shutil.rmtree(cut / "1-short/checkpoint-2", ignore_errors=True)
            shutil.rmtree(cut / "1-short/checkpoint-1", ignore_errors=True)
        found = recipe(cut, resume=True, minutes=0.0, steps=[2, 1, 2], **places, **SMALL)
    assert calls == 3  # cut within the first stage, then within the third
    expected = MemoryModel.from_pretrained(whole).state_dict()
    for name, value in MemoryModel.from_pretrained(found).state_dict().items():
        assert torch.equal(value, expected[name]), name
    assert "base: " + places["base"] in (cut / "1-short/model/README.md").read_text()
    card = (whole / "README.md").read_text()
    for said in (
        "llama_3_1_8b, stage 3-longterm",
        f"base: {tmp_path / 'whole/2-long/model'}",
        f"data: {places['data']}, {places['long']}",
        "steps: 2 of 2",
        "optimizer: AdamW",
        "learning rate at the top: 0.0001, 4.6e-06",
        "long-term memory: 8 slots retrieved of 150,000",
        f"torch {torch.__version__}",
        f'MemoryModel.from_pretrained("{whole}")',
        "| loss | ",
    ):
        assert said in card, said


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"long": ""}, "name them: long=PATH"),
        ({"optimizer": "sgd"}, "take adamw or grass"),
        ({"log_to": "paper"}, "not to 'paper'"),
        ({"steps": [1, 2]}, "a number for each stage"),
        ({"steps": 5}, "a number for each stage"),
        ({"retrieved": 10}, "slots=24 do not fit stage 3-longterm with retrieved=10 of them for long-term memory"),
        ({"data": "/no/such/folder"}, "there are no documents"),
    ],
)
def test_settings_that_cannot_be_are_refused(
    tmp_path: Path, places: dict[str, Any], settings: dict[str, Any], says: str
) -> None:
    with pytest.raises((InvalidInputError, FileNotFoundError), match=says):
        load_recipe(RECIPE)(tmp_path / "run", **{**places, **SMALL, **settings})
    assert not (tmp_path / "run").exists()


def test_of_a_base_with_memory_other_slots_are_refused(tmp_path: Path, places: dict[str, Any]) -> None:
    places["base"] = str(bundled("tiny"))
    with pytest.raises(InvalidInputError, match=r"slots=24, but .*tiny has memory with slots=512; leave it out"):
        load_recipe(RECIPE)(tmp_path / "run", **{**places, **SMALL})


@pytest.mark.parametrize("name", ["tensorboard", "trackio"])
def test_a_logger_whose_package_is_missing_says_how_to_install_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InvalidInputError, match=f"pip install {name}"):
        reporters(name)
    assert reporters("none") == "none"
