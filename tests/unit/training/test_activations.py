"""Activation checkpointing computes the same gradients behind a memory, and keeps less."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remanence.config import LongTermConfig, LoraSettings
from remanence.errors import InvalidInputError
from remanence.training.tasks.longterm_task import LongTermBatch
from remanence.training.tasks.pool_task import PoolBatch
from remanence.training.trainer import MemoryTrainer
from tests.support.training import arguments, tiny_model
from tests.unit.training.test_memory_task import batch_of
from tests.unit.training.test_trainer import parameters
from tests.unit.training.test_trainer import trainer as recitation_trainer


def run_of(folder: Path, lora: bool) -> MemoryTrainer:
    settings: dict[str, Any] = {"lora": LoraSettings(r=2, lora_dropout=0.2)} if lora else {}
    model = tiny_model(slots=8, slots_per_write=4, longterm=LongTermConfig(retrieved=6), retrieval_size=8, **settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return MemoryTrainer(model.train(), args=arguments(folder, 1, every=1), bank=10, through="all")


def gradients(run: MemoryTrainer, kind: type[Any]) -> tuple[dict[str, Tensor], int]:
    """Of the second of two steps, and the bytes that its graph kept."""
    assert run.model is not None
    run.compute_loss(run.model, {"batch": batch_of(kind, 0), "task": "longterm"})
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = run.compute_loss(run.model, {"batch": batch_of(kind, 1), "task": "longterm"})
    loss.backward()
    found = {name: p.grad for name, p in run.model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), **found}, sum(kept.values())


@pytest.mark.parametrize("kind", [PoolBatch, LongTermBatch])
@pytest.mark.parametrize("lora", [False, True])
def test_gradients_are_the_same_and_less_is_kept(tmp_path: Path, kind: type[Any], lora: bool) -> None:
    plain, held = gradients(run_of(tmp_path, lora), kind)
    run = run_of(tmp_path, lora)
    run.memory_model.activation_checkpointing_enable()
    again, held_less = gradients(run, kind)
    assert plain.keys() == again.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(again[name], gradient, atol=1e-6, rtol=1e-5, msg=name)
    assert held_less < 0.8 * held


def test_the_trainer_turns_it_on(tmp_path: Path) -> None:
    runs = []
    for folder, on in (("plain", False), ("again", True)):
        run = recitation_trainer(tmp_path / folder, 3)
        run.args.gradient_checkpointing = on
        if hasattr(run.args, "activation_checkpointing"):
            run.args.activation_checkpointing = on
        run.train()
        runs.append(run.memory_model)
    assert "forward" in vars(runs[1].backbone.layers[0])
    torch.testing.assert_close(parameters(runs[0]), parameters(runs[1]), atol=1e-6, rtol=0)


@pytest.mark.parametrize("asked", [{"activation_checkpointing_kwargs": {"use_reentrant": True}}, {"offload": True}])
def test_other_kinds_are_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(InvalidInputError, match="leave out"):
        tiny_model(slots=8, slots_per_write=4).activation_checkpointing_enable(**asked)
