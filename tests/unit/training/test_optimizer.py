"""Any recipe's model trains by AdamW or Grass; with Grass, writes and reads through one layer add up exactly."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remanence.errors import InvalidInputError
from remanence.model.model import MemoryModel
from remanence.optim import GrassAdamW
from remanence.training.curriculum import Curriculum
from remanence.training.optimizer import make_optimizer
from remanence.training.trainer import MemoryTrainer
from tests.support.training import arguments, tiny_model
from tests.unit.training.test_trainer import parameters, recitation


def trainer(output: Path, steps: int, name: str, model: MemoryModel | None = None) -> MemoryTrainer:
    model = model or tiny_model(slots=8, slots_per_write=4)

    def default() -> Any:
        return torch.optim.SGD(model.parameters(), lr=0.1)

    return MemoryTrainer(
        model,
        through="all",
        args=arguments(output, steps, every=5),
        curriculum=Curriculum(recitation, levels=2, steps=1000),
        optimizers=(make_optimizer(name, model, lr=0.01, rank=8, default=default), None),
    )


@pytest.mark.parametrize(("name", "kind"), [("default", "SGD"), ("adamw", "AdamW"), ("grass", "GrassAdamW")])
def test_a_name_chooses_the_optimizer_which_trains_matrices_and_vectors(name: str, kind: str, tmp_path: Path) -> None:
    run = trainer(tmp_path, 2, name)
    assert type(run.optimizer).__name__ == kind
    before = tiny_model(slots=8, slots_per_write=4).state_dict()
    run.train()
    after = run.memory_model.state_dict()
    for part in (
        "layers.0.self_attn.q_proj.weight",
        "layers.1.mlp.down_proj.weight",
        "norm.weight",
        "embed_tokens.weight",
    ):
        matching = [key for key in before if key.endswith(part)]
        assert matching
        assert not any(torch.equal(after[key], before[key]) for key in matching)


def test_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no optimizer 'sgd' here; take default, adamw, grass"):
        trainer(tmp_path, 1, "sgd")


def test_gradients_through_writes_and_reads_are_the_selected_part_of_the_full_ones(tmp_path: Path) -> None:
    stock = tiny_model(slots=8, slots_per_write=4)
    twin = copy.deepcopy(stock)
    batch = recitation(0, 0)
    for model, name in ((stock, "adamw"), (twin, "grass")):
        run = trainer(tmp_path, 1, name, model)
        run.compute_loss(run.model, batch).backward()
    optimizer = run.optimizer
    assert isinstance(optimizer, GrassAdamW)
    layers: dict[str, Any] = {name: module for name, module in twin.named_modules() if hasattr(module, "grass")}
    assert len(layers) == 2 * 7
    for name, module in layers.items():
        full = stock.get_submodule(name).weight.grad
        assert isinstance(full, Tensor)
        projection = module.grass["weight"]
        part = full.index_select(0 if projection.by_row else 1, projection.rows)
        assert bool(part.any())
        torch.testing.assert_close(projection.proxy.grad, part, atol=1e-6, rtol=1e-4)


def test_a_run_with_grass_resumes_to_the_same_bits_from_checkpoints_that_load(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", 10, "grass")
    whole.train()
    trainer(tmp_path / "cut", 5, "grass").train()
    resumed = trainer(tmp_path / "cut", 10, "grass")
    resumed.train(resume_from_checkpoint=True)
    saved = [MemoryModel.from_pretrained(tmp_path / part / "checkpoint-10") for part in ("whole", "cut")]
    assert torch.equal(parameters(saved[0]), parameters(saved[1]))
