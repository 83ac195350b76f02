"""Several processes train one model: each on its own batches, all to the same weights, as one process would."""

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing

from remanence.training.curriculum import Batch, Curriculum
from remanence.training.tasks.pool_task import PoolBatch
from remanence.training.tasks.prompts import Example, left_pad, pack
from remanence.training.trainer import MemoryTrainer
from tests.distributed.test_optim import free_port, leave
from tests.support.training import arguments, tiny_model

WORLD, STEPS = 2, 6
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed"),
]


def build(built: list[tuple[int, int]]) -> Any:
    """Chunks of four tokens to recite, as many as a batch's number and level say; some batches write none."""

    def batch(number: int, level: int) -> Batch:
        built.append((number, level))
        rng = random.Random(number)
        texts = [[rng.randrange(2, 64) for _ in range(4)] for _ in range(3 + number % 3)]
        rows = [[Example([1], text)] for text in texts]
        if number % 5 == 4:
            return {"batch": pack(rows, pad=0, contexts=texts), "task": "context"}
        ids, lengths = left_pad(texts, 0)
        order = torch.cat([torch.arange(len(texts))[:, None] + shift for shift in (3, 0)], dim=1) % (len(texts) + 2)
        targets = order[:, 1:] == torch.arange(len(texts))
        return {
            "batch": PoolBatch(ids, lengths, order, targets, pack(rows, pad=0), num_bank_chunks=2),
            "task": "memory",
        }

    return batch


def train(folder: Path, accumulate: int) -> dict[str, Any]:
    built: list[tuple[int, int]] = []
    model = tiny_model(slots=8, slots_per_write=4)
    args = arguments(folder, STEPS, every=STEPS)
    args.gradient_accumulation_steps = accumulate
    curriculum = Curriculum(build(built), levels=4, steps=STEPS, threshold=-1.0)
    run = MemoryTrainer(
        model,
        args=args,
        curriculum=curriculum,
        bank=12,
        optimizers=(torch.optim.SGD(model.parameters(), lr=0.1), None),
    )
    run.train()
    log = [entry for entry in run.state.log_history if "memory_loss" in entry]
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    carried = run.model.carried.state_dict()
    return {"weights": weights, "built": built, "log": log, "level": curriculum.state_dict(), "carried": carried}


def worker(rank: int, port: int, folder: Path) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD)
    )
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=WORLD)
    torch.save(train(folder / "run", 1), folder / f"{rank}.pt")
    leave()


def test_processes_do_what_one_would_that_accumulates_their_batches(tmp_path: Path) -> None:
    multiprocessing.spawn(worker, (free_port(), tmp_path), nprocs=WORLD)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]
    alone = train(tmp_path / "alone", WORLD)
    for rank, one in enumerate(found):
        assert one["built"] == alone["built"][rank::WORLD]
        assert one["level"] == alone["level"]
        for name, value in alone["weights"].items():
            assert torch.equal(one["weights"][name], found[0]["weights"][name])
            torch.testing.assert_close(one["weights"][name], value, atol=1e-5, rtol=0)
        for name, value in alone["carried"].items():
            torch.testing.assert_close(one["carried"][name], value, atol=1e-4, rtol=0)
    assert [level for _, level in alone["built"]] == [0, 0, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3]
    for name in ("memory_loss", "context_exact_match"):
        assert found[0]["log"][0][name] == pytest.approx(alone["log"][0][name], abs=1e-4)
