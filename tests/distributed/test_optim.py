"""Data parallel training: processes exchange selected rows only, agree on them, and do what one process would."""

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from remanence.optim import GrassAdamW, grass_param_groups

RANK, GAP, STEPS, ROWS = 4, 3, 7, 8
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed"),
]


def model_of() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 32, bias=False))


def batch(step: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(step)
    return torch.randn(ROWS, 32, generator=random), torch.randn(ROWS, 32, generator=random)


def train(model: nn.Module, groups: Any, part: slice, micro: int = 1) -> list[list[int]]:
    """Rows that were selected after each step."""
    optimizer = GrassAdamW(groups, lr=0.05, max_grad_norm=0.5)
    chosen = []
    for step in range(STEPS):
        x, y = (half[part] for half in batch(step))
        for a, b in zip(x.chunk(micro), y.chunk(micro), strict=True):
            ((model(a) - b).square().mean() / micro).backward()
        optimizer.step()
        optimizer.zero_grad()
        chosen.append([row for p in groups[0]["projections"] for row in p.rows.tolist()])
    return chosen


def free_port() -> int:
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        return int(made.getsockname()[1])


def leave() -> None:
    """End this process without tearing anything down: threads of gloo and of Python may wait for each other there."""
    distributed.barrier()
    os._exit(0)


def worker(rank: int, world: int, port: int, folder: Path, selection: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=world)
    model = model_of()
    groups = grass_param_groups(model, rank=RANK, update_proj_gap=GAP, selection=selection, sketch_size=8)
    parallel = DistributedDataParallel(model)
    sent: list[int] = []

    def counted(state: Any, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
        # Waits: a callback that gloo's threads run may lock up with Python when the process ends.
        buffer = bucket.buffer().div_(world)
        sent.append(buffer.nbytes)
        distributed.all_reduce(buffer)
        done: torch.futures.Future[Tensor] = torch.futures.Future()
        done.set_result(buffer)
        return done

    parallel.register_comm_hook(None, counted)
    size = ROWS // world
    chosen = train(parallel, groups, slice(rank * size, (rank + 1) * size))
    torch.save({"model": model.state_dict(), "sent": sent, "chosen": chosen}, folder / f"{rank}.pt")
    leave()


def sharded_worker(rank: int, world: int, port: int, folder: Path, selection: Any) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=world)
    model: Any = model_of()
    mesh = init_device_mesh("cpu", (world,))
    for layer in (model[0], model[2]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    groups = grass_param_groups(model, rank=RANK, update_proj_gap=GAP, selection=selection, sketch_size=8)
    size = ROWS // world
    chosen = train(model, groups, slice(rank * size, (rank + 1) * size))
    whole = {name: value.full_tensor() for name, value in model.state_dict().items()}
    torch.save({"model": whole, "chosen": chosen, "held": model[0].weight.to_local().shape[0]}, folder / f"{rank}.pt")
    leave()


@pytest.mark.parametrize(("world", "selection"), [(2, "top"), (3, "multinomial_norm"), (2, "subspace")])
def test_sharded_weights_are_trained_as_one_process_would(world: int, selection: Any, tmp_path: Path) -> None:
    multiprocessing.spawn(sharded_worker, (world, free_port(), tmp_path, selection), nprocs=world)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    alone = model_of()
    groups = grass_param_groups(alone, rank=RANK, update_proj_gap=GAP, selection=selection, sketch_size=8)
    chosen = train(alone, groups, slice(0, ROWS // world * world), micro=world)
    assert sum(one["held"] for one in found) == 16
    for one in found:
        assert one["chosen"] == chosen
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(one["model"][name], value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("world", "selection"), [(2, "top"), (2, "multinomial_norm"), (4, "top"), (2, "subspace")])
def test_processes_do_what_one_would_and_exchange_rows_only(world: int, selection: Any, tmp_path: Path) -> None:
    multiprocessing.spawn(worker, (world, free_port(), tmp_path, selection), nprocs=world)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    alone = model_of()
    groups = grass_param_groups(alone, rank=RANK, update_proj_gap=GAP, selection=selection, sketch_size=8)
    chosen = train(alone, groups, slice(0, ROWS), micro=world)
    for one in found:
        assert one["chosen"] == found[0]["chosen"] == chosen
        for name, value in alone.state_dict().items():
            assert torch.equal(one["model"][name], found[0]["model"][name])
            torch.testing.assert_close(one["model"][name], value, atol=1e-5, rtol=1e-5)
    rows = 4 * sum(p.proxy.numel() for p in groups[0]["projections"])
    plain = 4 * sum(p.numel() for p in groups[1]["params"])
    assert sum(found[0]["sent"]) <= 1.1 * STEPS * (rows + plain)
    full = 4 * sum(p.numel() for p in model_of().parameters())
    assert rows + plain < full / 2
