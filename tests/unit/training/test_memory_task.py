"""What a training step beyond the pool weighs and finds written, and that an evaluation leaves no trace in it."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remanence.config import LongTermConfig
from remanence.training.tasks import memory_task as step_module
from remanence.training.tasks.longterm_task import LongTermBatch, RetrieverLoss, SlotBank, question_mask
from remanence.training.tasks.pool_task import PoolBatch
from remanence.training.tasks.prompts import Example, left_pad, pack
from remanence.training.trainer import MemoryTrainer
from tests.support.training import arguments, tiny_model

CHUNKS = 4


def trainer(output: Path, *, weight: float = 1.0, bank: int = 0) -> MemoryTrainer:
    model = tiny_model(slots=8, slots_per_write=4, longterm=LongTermConfig(retrieved=6), retrieval_size=8)
    loss = RetrieverLoss(weight=weight)
    return MemoryTrainer(model.train(), args=arguments(output, 1, every=1), retriever_loss=loss, bank=bank)


def batch_of(kind: type[Any], step: int) -> Any:
    """Each row asks about a chunk of its own; beyond the pool, others were written since."""
    rng = random.Random(step)
    texts = [[rng.randrange(2, 64) for _ in range(5)] for _ in range(CHUNKS)]
    prompts = pack([[Example([1, text[0]], text[1:])] for text in texts], pad=0)
    ids, lengths = left_pad(texts, 0)
    own = torch.arange(CHUNKS)
    if kind is PoolBatch:
        return PoolBatch(ids, lengths, own[:, None], torch.eye(CHUNKS).bool(), prompts)
    others = torch.stack([(own + 1) % CHUNKS, (own + 2) % CHUNKS], dim=1)
    spared = torch.zeros(CHUNKS, CHUNKS, dtype=torch.bool)
    asking = question_mask(prompts, [[2]] * CHUNKS)
    targets = torch.eye(CHUNKS).bool()
    return LongTermBatch(ids, lengths, others, targets, prompts, 2, ignore_mask=spared, query_mask=asking)


def loss_of(run: MemoryTrainer, kind: type[Any], step: int = 0) -> Tensor:
    loss: Tensor = run.compute_loss(run.model, {"batch": batch_of(kind, step), "task": "longterm"})
    return loss.detach()


def test_the_retrievers_loss_counts_by_its_weight(tmp_path: Path) -> None:
    none, one, three = (loss_of(trainer(tmp_path, weight=weight), LongTermBatch) for weight in (0.0, 1.0, 3.0))
    assert one - none > 0.1
    torch.testing.assert_close(three - none, 3 * (one - none))


def test_a_bank_of_chunks_of_earlier_steps_fills_up_to_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes, build = [], step_module.build_retrieval_cache

    def watched(model: Any, made: Tensor, bank: SlotBank, *rest: Any) -> Any:
        sizes.append(len(bank))
        return build(model, made, bank, *rest)

    monkeypatch.setattr(step_module, "build_retrieval_cache", watched)
    run = trainer(tmp_path, bank=10)
    for step in range(5):
        loss_of(run, LongTermBatch, step)
    assert sizes == [0, 4, 8, 10, 10]


@pytest.mark.parametrize("kind", [PoolBatch, LongTermBatch])
def test_an_evaluation_changes_nothing_of_what_training_finds_written(tmp_path: Path, kind: type[Any]) -> None:
    losses = []
    for evaluates in (False, True):
        run = trainer(tmp_path, bank=10)
        assert run.model is not None
        loss_of(run, kind, 0)
        if evaluates:
            run.model.eval()
            loss_of(run, kind, 1)
            run.model.train()
        losses.append(loss_of(run, kind, 2))
    assert torch.equal(*losses)
    assert not torch.equal(loss_of(trainer(tmp_path), kind, 2), losses[0])  # it does find something
