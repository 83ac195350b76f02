"""Training runs on transformers.Trainer, and a run that was cut off ends where an uninterrupted one does."""

import random
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from remanence import MemoryModel
from remanence.errors import InvalidInputError
from remanence.training.curriculum import Batch, Curriculum
from remanence.training.optimizer import MuonAdamW, split_parameters
from remanence.training.tasks.pool_task import PoolBatch
from remanence.training.tasks.prompts import Example, left_pad, pack
from remanence.training.trainer import MemoryTrainer, StopAfter, write_log
from tests.support.training import arguments, tiny_model


def recitation(step: int, level: int) -> Batch:
    """Recite a chunk of four tokens, through memory and in context by turns."""
    rng = random.Random(step)
    texts = [[rng.randrange(2, 64) for _ in range(4)] for _ in range(8)]
    rows = [[Example([1], text)] for text in texts]
    if step % 4 == 3:
        return {"batch": pack(rows, pad=0, contexts=texts), "task": "context"}
    ids, lengths = left_pad(texts, 0)
    order = torch.arange(8)[:, None]
    episodes = PoolBatch(ids, lengths, order, torch.eye(8).bool(), pack(rows, pad=0))
    return {"batch": episodes, "task": "memory"}


def trainer(output: Path, steps: int, **settings: Any) -> MemoryTrainer:
    model = tiny_model(slots=8, slots_per_write=4)
    matrices, others = split_parameters(model, model.backbone.layers)
    return MemoryTrainer(
        model,
        args=arguments(output, steps, every=5),
        curriculum=Curriculum(recitation, levels=2, steps=1000),
        optimizers=(MuonAdamW(matrices, others, muon_lr=0.02, adamw_lr=0.01), None),
        **settings,
    )


def parameters(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_loss_falls_and_curves_are_logged_for_memory_and_context(tmp_path: Path) -> None:
    run = trainer(tmp_path, 60)
    run.train()
    losses = [entry["memory_loss"] for entry in run.state.log_history if "memory_loss" in entry]
    assert losses[-2] < losses[0] - 0.3
    assert any("context_exact_match" in entry for entry in run.state.log_history)
    write_log(run, tmp_path / "log.json", recipe="test")
    assert "memory_loss" in (tmp_path / "log.json").read_text()


def test_trainer_refuses_text_slots(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="text slots need no training"):
        MemoryTrainer(tiny_model(), args=arguments(tmp_path, 1, every=1))


def test_predicting_text_counts_as_much_as_it_is_told(tmp_path: Path) -> None:
    prompts = recitation(3, 0)["batch"]
    tasks = {"language": replace(prompts, text=True), "context": prompts}
    losses = {}
    for weight in (0.0, 0.25, 1.0):
        run = trainer(tmp_path, 1, text_weight=weight)
        losses[weight] = {
            task: float(run.compute_loss(run.model, {"batch": batch, "task": task}).detach())
            for task, batch in tasks.items()
        }
    for task, answering in (("language", 0.0), ("context", losses[0.0]["context"])):
        quarter = answering + 0.25 * (losses[1.0][task] - answering)
        assert losses[0.25][task] < losses[1.0][task]
        assert abs(losses[0.25][task] - quarter) < 1e-4


def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", 10)
    whole.train()
    trainer(tmp_path / "cut", 5).train()
    resumed = trainer(tmp_path / "cut", 10)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 10
    assert torch.equal(parameters(resumed.model), parameters(whole.model))


def test_resuming_refuses_a_checkpoint_of_an_earlier_version_by_its_name(tmp_path: Path) -> None:
    trainer(tmp_path, 5).train()
    shutil.rmtree(tmp_path / "checkpoint-5/state")
    with pytest.raises(InvalidInputError, match="checkpoint-5 has no folder state: an earlier version saved it"):
        trainer(tmp_path, 10).run(resume=True)


def test_a_save_that_fails_leaves_the_checkpoint_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trainer(tmp_path, 10)
    save = MemoryModel.save_pretrained

    def failing(model: MemoryModel, path: Any, **options: Any) -> None:
        save(model, path, **options)
        if run.state.global_step == 10:
            raise OSError("no space left on device")

    monkeypatch.setattr(MemoryModel, "save_pretrained", failing)
    with pytest.raises(OSError, match="no space left"):
        run.train()
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-5"]
    monkeypatch.setattr(MemoryModel, "save_pretrained", save)
    resumed = trainer(tmp_path, 10)
    resumed.run(resume=True)
    assert (tmp_path / "checkpoint-10/state/.metadata").is_file() and not (tmp_path / ".unfinished").exists()


def test_train_leaves_the_models_own_forward_and_names_as_they_were(tmp_path: Path) -> None:
    model = tiny_model(slots=8, slots_per_write=4)
    names, ids = list(model.state_dict()), torch.arange(6)[None]
    args = arguments(tmp_path, 1, every=1)
    args.bf16 = True
    run = MemoryTrainer(model, args=args, curriculum=Curriculum(recitation, levels=2, steps=1000))
    run.train()
    assert run.memory_model is model
    assert list(model.state_dict()) == names
    assert torch.equal(model(ids).logits, model.hf(ids).logits)
    assert model(ids).logits.dtype == torch.float32 and "forward" not in vars(model)


def test_every_checkpoint_is_a_model_that_loads(tmp_path: Path) -> None:
    run = trainer(tmp_path, 5)
    run.train()
    loaded = MemoryModel.from_pretrained(tmp_path / "checkpoint-5")
    torch.testing.assert_close(parameters(loaded), parameters(run.model))


def test_a_run_stops_with_a_checkpoint_when_its_minutes_are_over(tmp_path: Path) -> None:
    run = trainer(tmp_path, 50, callbacks=[StopAfter(0.0)])
    run.train()
    assert run.state.global_step == 1
    assert (tmp_path / "checkpoint-1" / "remanence.json").is_file()


def test_muon_takes_matrices_of_layers_and_adamw_the_rest() -> None:
    model = tiny_model(slots=8, slots_per_write=4)
    matrices, others = split_parameters(model, model.backbone.layers)
    assert all(p.dim() == 2 for p in matrices)
    assert len(matrices) == 2 * 7
    assert {id(p) for p in matrices}.isdisjoint({id(p) for p in others})
    assert len(matrices) + len(others) == len(list(model.parameters()))


def test_a_level_ends_when_its_average_is_high_enough_and_is_kept_for_resuming() -> None:
    curriculum = Curriculum(lambda step, level: {"level": level}, levels=3, steps=10, threshold=(0.5, 0.9))
    assert curriculum[0] == {"level": 0}
    for _ in range(200):
        curriculum.observe("another task", 1.0)
    assert curriculum.level == 0
    for _ in range(200):
        curriculum.observe("memory", 0.7)
    assert curriculum[5] == {"level": 1}
    copy = Curriculum(lambda step, level: {}, levels=3, steps=10, threshold=(0.5, 0.9))
    copy.load_state_dict(curriculum.state_dict())
    assert (copy.level, copy.average) == (curriculum.level, curriculum.average)
