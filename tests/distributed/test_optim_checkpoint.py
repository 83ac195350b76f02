"""`torch.distributed.checkpoint` saves a model with its GrassAdamW, and the resumed run is bit for bit the same."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing, nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from remanence.optim import GrassAdamW, grass_param_groups
from tests.distributed.test_optim import free_port, leave

GAP, STEPS = 3, 8
pytestmark = [
    pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed"),
    pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning"),
]


def fresh(shape: str = "plain", **settings: Any) -> tuple[Any, GrassAdamW]:
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(96, 64), nn.Tanh(), nn.Linear(64, 96, bias=False))
    if shape == "sharded":
        mesh = init_device_mesh("cpu", (distributed.get_world_size(),))
        for part in (model[0], model[2], model):
            fully_shard(part, mesh=mesh)
    groups = grass_param_groups(model, 64, GAP, selection="multinomial_norm", replacement=True)
    if shape == "parallel":
        model = DistributedDataParallel(model)
    return model, GrassAdamW(groups, lr=0.01, **settings)


def run(model: nn.Module, optimizer: GrassAdamW, steps: range, rank: int = 0) -> list[float]:
    losses = []
    for step in steps:
        x = torch.randn(8, 96, generator=torch.Generator().manual_seed(100 * step + rank))
        loss = (model(x) - x).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


def save(model: nn.Module, optimizer: GrassAdamW, folder: Path) -> None:
    weights, state = get_state_dict(model, optimizer)
    checkpoint.save({"model": weights, "optimizer": state}, checkpoint_id=folder)


def load(model: nn.Module, optimizer: GrassAdamW, folder: Path) -> None:
    weights, state = get_state_dict(model, optimizer)
    into = {"model": weights, "optimizer": state}
    checkpoint.load(into, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=into["model"], optim_state_dict=into["optimizer"])


@pytest.mark.parametrize("settings", [{}, {"layerwise": True}, {"state_bits": 8}])
@pytest.mark.parametrize("stop", [0, 1, GAP, GAP + 1])
def test_a_resumed_run_is_bit_for_bit_the_same(stop: int, settings: dict[str, Any], tmp_path: Path) -> None:
    if "state_bits" in settings:
        pytest.importorskip("torchao")
    model, whole = fresh(**settings)
    unbroken = run(*fresh(**settings), range(STEPS))
    assert run(model, whole, range(stop)) == unbroken[:stop]
    save(model, whole, tmp_path)
    assert run(model, whole, range(stop, STEPS)) == unbroken[stop:]  # saving changes nothing
    resumed, optimizer = fresh(**settings)
    load(resumed, optimizer, tmp_path)
    assert run(resumed, optimizer, range(stop, STEPS)) == unbroken[stop:]
    for name, value in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def worker(rank: int, world: int, port: int, folder: Path, shape: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=world)
    model, whole = fresh(shape)
    run(model, whole, range(GAP), rank)
    save(model, whole, folder / "saved")
    rest = run(model, whole, range(GAP, STEPS), rank)
    resumed, optimizer = fresh(shape)
    # Told of the wrapper, torch looks for proxies among the saved weights.
    load(resumed.module if shape == "parallel" else resumed, optimizer, folder / "saved")
    torch.save([rest, run(resumed, optimizer, range(GAP, STEPS), rank)], folder / f"{rank}.pt")
    leave()


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["sharded", "parallel"])
def test_two_processes_resume_to_the_same_bits(shape: str, tmp_path: Path) -> None:
    multiprocessing.spawn(worker, (2, free_port(), tmp_path, shape), nprocs=2)
    for rank in range(2):
        rest, again = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert again == rest


def move(rank: int, world: int, port: int, folder: Path, act: str) -> None:
    """Train and save with so many processes, or load with so many; all see the same rows of data."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=world)
    model, optimizer = fresh("sharded")
    if act == "save":
        run(model, optimizer, range(GAP + 1))
        save(model, optimizer, folder / "saved")
    else:
        load(model, optimizer, folder / "saved")
    losses = run(model, optimizer, range(GAP + 1, STEPS))
    if rank == 0:
        torch.save(losses, folder / f"{act}.pt")
    leave()


@pytest.mark.slow
@pytest.mark.parametrize(("saved", "loaded"), [(1, 2), (2, 1)])
def test_a_state_moves_between_one_and_two_processes(saved: int, loaded: int, tmp_path: Path) -> None:
    """Rows and moments are the same numbers; sums over processes round otherwise."""
    for act, world in (("save", saved), ("load", loaded)):
        multiprocessing.spawn(move, (world, free_port(), tmp_path, act), nprocs=world)
    one, other = (torch.load(tmp_path / f"{act}.pt", weights_only=True) for act in ("save", "load"))
    assert one == pytest.approx(other, rel=1e-5)
    assert one[0] > one[-1]
