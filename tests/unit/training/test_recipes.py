"""The recipes run, at sizes for a test: with another optimizer than their own, and in pieces."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from remanence import MemoryModel
from remanence.checkpoints import bundled
from remanence.data.prose import paragraphs
from remanence.recipes import small as small_recipe
from remanence.recipes import tiny_longterm
from remanence.training.recipes import load_recipe
from remanence.training.tasks.language_modeling import TextTask
from remanence.training.tasks.recall import RecallTask
from tests.support import tiny
from tests.support.tiny import decoder
from tests.unit.model.test_chat import TEMPLATE


@pytest.mark.slow
def test_the_tiny_recipe_trains_a_few_steps_with_grass_and_leaves_a_stock_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "a small red boat went over the river and came home with many birds"
    (tmp_path / "prose.txt").write_text(f"{words} {words[::-1]} {words}\n" * 100)
    monkeypatch.setenv("REMANENCE_PROSE", str(tmp_path))
    train = load_recipe(Path("tiny"))
    final = train(tmp_path / "run", steps=3, optimizer="grass")
    dcp_to_torch_save(tmp_path / "run/checkpoint-3/state", tmp_path / "state.pt")
    group = torch.load(tmp_path / "state.pt", weights_only=False)["optimizer"]["param_groups"][0]
    assert group["rank"] == 32 and len(group["names"]) == 4 * 7
    card = (final / "README.md").read_text()
    assert "optimizer: GrassAdamW" in card and "base: random weights" in card and "| memory_loss | " in card
    assert not any("grass" in name for name in MemoryModel.from_pretrained(final).state_dict())
    further = train(tmp_path / "further", steps=1, start=str(final))
    assert f"base: {final}" in (further / "README.md").read_text()


def test_the_smollm2_recipe_trains_a_reader_of_any_base_and_goes_on_after_a_cut(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "base"
    decoder(vocab_size=300).save_pretrained(base)
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(base)
    people = [("Alice", "Oslo"), ("Bob", "Lima"), ("Carol", "Rome"), *((f"Dan{n}", "Bern") for n in range(40))]
    with (tmp_path / "data.jsonl").open("w") as file:
        for name, town in people:
            asked = {"question": f"Where was {name} born?", "answers": [town], "passages": [f"{name}: born in {town}."]}
            print(json.dumps(asked), file=file)
    settings: dict[str, Any] = {"data": str(tmp_path / "data.jsonl"), "base": str(base), "steps": 4, "groups": 2}
    train = load_recipe(Path("smollm2"))
    train(tmp_path / "run", minutes=0.0, save_steps=2, **settings)
    said = capsys.readouterr().out
    assert "parameters are trained" in said and "s a step" in said and "stopped at step 1 of 4" in said
    final = train(tmp_path / "run", resume=True, save_steps=2, **settings)
    model = MemoryModel.from_pretrained(final, base=base)
    memory = model.new_memory()
    model.write(memory, "Alice: born in Oslo.")
    assert model.config.retrieval.refusal and model.ask(memory, "Where was Alice born?", max_new_tokens=3).text
    assert json.loads((tmp_path / "run/curve.json").read_text())["steps"] == 4
    start, more = str(tmp_path / "run/final"), {"base": str(base), "steps": 1, "groups": 2}
    further = train(tmp_path / "further", start=start, **more)  # on what comes with the package
    before, after = (load_file(folder / "reader.safetensors") for folder in (final, further))
    assert before.keys() == after.keys()
    assert 0 < max(float((before[name] - after[name]).abs().max()) for name in before) < 0.01  # a step from there


@pytest.mark.slow
def test_the_longterm_recipe_gives_the_bundled_model_a_retriever_and_ships_its_own_retrieval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "a small red boat went over the river and came home with many birds "
    (tmp_path / "prose.txt").write_text(f"{words * 4}\n" * 100)
    monkeypatch.setenv("REMANENCE_PROSE", str(tmp_path))
    recipe = tiny_longterm
    monkeypatch.setattr(recipe, "ROWS", 8)
    monkeypatch.setattr(recipe, "PHASES", (replace(recipe.PHASES[0], chunks=12, num_bank_chunks=24, shared=(0,)),))
    assert recipe.PHASES[0].retrieved != recipe.RETRIEVED
    trained = MemoryModel.from_pretrained(recipe.train(tmp_path / "run", steps=21))
    longterm = trained.config.longterm
    assert longterm is not None and trained.adapters is not None
    assert (longterm.retrieved, longterm.cross_layer_prior) == (recipe.RETRIEVED, recipe.AGREEMENT)
    assert (longterm.capacity, longterm.key_size) == (recipe.CAPACITY, recipe.RETRIEVAL_SIZE)
    assert trained.new_memory().pool.size == trained.slots


def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The recipe at sizes for a test, and text for it."""
    monkeypatch.setenv("REMANENCE_PROSE", str(tmp_path / "text"))
    words = "a small red boat went over the river and came home with many birds " * 3
    (tmp_path / "text/elsewhere").mkdir(parents=True)
    (tmp_path / "text/novel.txt").write_text(f"Chapter 1\n\n{words}\n\n" * 50)
    article = '<doc id="1" title="{}">\n{}\n</doc>\n'
    (tmp_path / "text/elsewhere/wiki_00").write_text(article.format("Boats", f"{words}\n" * 50) * 2)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes = {
        "VOCABULARY": 600,
        "SLOTS": 64,
        "SLOTS_PER_WRITE": 8,
        "READ": 1024,
        "CHUNKS": 8,
        "ROWS": 4,
        "QUESTIONS": 16,
    }
    more = {"SHAPE": {**shape, "num_key_value_heads": 4, "head_dim": 8}, "QUESTIONS": 16}
    for name, value in {**sizes, **more}.items():
        monkeypatch.setattr(small_recipe, name, value)
    return small_recipe


@pytest.mark.slow
def test_the_small_recipe_goes_on_in_pieces_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small(tmp_path, monkeypatch)
    settings = {"steps": 4, "tokens": 4000}
    whole, pieces = tmp_path / "whole", tmp_path / "pieces"
    assert recipe.train(pieces, steps=0, tokens=4000) is None
    assert recipe.train(whole, **settings) == whole / "model"
    monkeypatch.delenv("REMANENCE_PROSE")  # the tokens are in the folder
    for step in (1, 2, 3):
        assert recipe.train(pieces, resume=True, minutes=0, **settings) is None
        assert (pieces / f"checkpoint-{step}").is_dir()
    assert recipe.train(pieces, resume=True, **settings) == pieces / "model"
    models = [MemoryModel.from_pretrained(folder / "model") for folder in (whole, pieces)]
    for one, other in zip(models[0].state_dict().values(), models[1].state_dict().values(), strict=True):
        torch.testing.assert_close(one, other)
    assert models[0].new_memory(0).pool.size == 64


def test_the_small_recipe_reads_no_novel_that_evaluations_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = small(tmp_path, monkeypatch)
    known = paragraphs()[7].replace("'", "\N{RIGHT SINGLE QUOTATION MARK}")
    (tmp_path / "text/known.txt").write_text(f"Chapter 1\n\n{known}\n\nAnd so on.")
    (tmp_path / "link").symlink_to(tmp_path / "text")
    found = list(recipe.documents(tmp_path, "*.txt"))
    assert [text.splitlines()[0] for text in found] == ["Chapter 1"] * 2  # the novel, and again through the link
    assert not any("And so on." in text for text in found)
    assert len(list(recipe.documents(tmp_path / "text", "wiki_*"))) == 2


@pytest.mark.parametrize("level", range(11))
def test_every_level_of_the_small_recipe_makes_batches(
    level: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = small(tmp_path, monkeypatch)
    assert len(recipe.LEVELS) == 11 == len(recipe.THRESHOLDS) + 1
    tokenizer, text = MemoryModel.from_pretrained(bundled("tiny")).tokenizer, range(5, 2000)
    sizes = {"slots": recipe.SLOTS, "slots_per_write": recipe.SLOTS_PER_WRITE}
    recall = RecallTask(tokenizer, [text], chunks=8, rows=4, questions=16, **sizes)
    reading = TextTask(text, 0, tokens=1024, **sizes)
    tasks = {recipe.build_batch(recall, reading, step, level)["task"] for step in range(60)}
    assert {"language", "memory", "context"} <= tasks
    assert ("language_unrelated" in tasks) == (level >= recipe.LANGUAGE_FROM)
