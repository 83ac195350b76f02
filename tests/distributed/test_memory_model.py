"""A model with memory is a module like any other: DDP wraps it, and trains it through `model(ids, memory, labels)`."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from remanence import Memory, MemoryModel
from tests.distributed.test_optim import free_port, leave
from tests.support.tiny import decoder, ids, with_memory

WORLD = 2
WRITERS = ("text", "learned")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed"),
]


def build(writer: str) -> tuple[MemoryModel, Memory]:
    model = MemoryModel.attach(decoder(), min_score=None) if writer == "text" else with_memory()
    memory = model.new_memory(seed=0)
    model.write(memory, ids(20))
    return model.train(), memory


def loss_of(model: nn.Module, memory: Memory | None, rank: int) -> torch.Tensor:
    row = ids(8 + rank, seed=rank + 1)[None]  # [1, T]
    loss: torch.Tensor = model(row, memory, labels=row).loss
    return loss


def step(model: MemoryModel) -> dict[str, Any]:
    torch.optim.SGD(model.parameters(), lr=0.5).step()
    return {name: value.clone() for name, value in model.state_dict().items()}


def worker(rank: int, port: int, folder: Path) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=WORLD)
    found = {}
    for writer in WRITERS:
        model, memory = build(writer)
        # What only writing uses has no gradient here.
        parallel = DistributedDataParallel(model, find_unused_parameters=writer == "learned")
        loss_of(parallel, memory, rank).backward()
        found[writer] = step(model)
    torch.save(found, folder / f"{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The weights behind one step in two processes, by rank."""
    folder = tmp_path_factory.mktemp("parallel")
    multiprocessing.spawn(worker, (free_port(), folder), nprocs=WORLD)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


@pytest.mark.parametrize("writer", WRITERS)
def test_forward_in_two_processes_trains_as_one_process_would(writer: str, found: list[dict[str, Any]]) -> None:
    after = {}
    for read in (True, False):
        model, memory = build(writer)
        sum(loss_of(model, memory if read else None, rank) / WORLD for rank in range(WORLD)).backward()
        after[read] = step(model)
    for one in found:
        for name, value in after[True].items():
            torch.testing.assert_close(one[writer][name], value, atol=1e-5, rtol=0)
    # The memory was read: without it the weights would be others.
    assert any((found[0][writer][name] - value).abs().max() > 1e-3 for name, value in after[False].items())
