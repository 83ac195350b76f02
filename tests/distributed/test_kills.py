"""Runs of one process and of two are killed at random points; resumed, they end bit for bit as one that was not."""

import functools
import json
import multiprocessing
import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.multiprocessing import ProcessExitedException, start_processes

from remanence.config import LoraSettings
from remanence.optim import GrassAdamW, grass_param_groups
from remanence.training.curriculum import Curriculum
from remanence.training.distributed import shard_model
from remanence.training.optimizer import MuonAdamW, split_parameters
from remanence.training.trainer import MemoryTrainer
from tests.distributed.test_optim import free_port, leave
from tests.distributed.test_training import build
from tests.support.training import arguments, tiny_model

STEPS, EVERY, POINTS = 7, 2, 20
WAYS = ("muon", "lora", "grass")
pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed")
multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])  # processes start within moments


def trainer(folder: Path, way: str, *, shard: bool) -> MemoryTrainer:
    lora = LoraSettings(r=2, lora_dropout=0.2) if way == "lora" else None
    model = tiny_model(slots=8, slots_per_write=4, lora=lora)
    args = arguments(folder, STEPS, every=EVERY)
    args.save_total_limit = 2
    args.max_grad_norm = 0.0 if way == "grass" else 1.0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(way != "lora" or ".lora_" in name)
    if shard:
        shard_model(model)
    optimizer: torch.optim.Optimizer
    if way == "muon":
        matrices, others = split_parameters(model, model.backbone.layers)
        optimizer = MuonAdamW(matrices, others, muon_lr=0.02, adamw_lr=0.01)
    elif way == "lora":
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    else:
        groups = grass_param_groups(model, rank=4, update_proj_gap=3, target_modules=["layers."])
        optimizer = GrassAdamW(groups, lr=0.01, max_grad_norm=1.0)
    curriculum = Curriculum(build([]), levels=4, steps=STEPS, threshold=-1.0)
    return MemoryTrainer(model, args=args, curriculum=curriculum, bank=12, optimizers=(optimizer, None))


class Counting:
    """Counts calls of functions, those of saves by themselves, and may die at one of them."""

    def __init__(self, run: MemoryTrainer, killed: tuple[str, int] | None) -> None:
        self.calls, self.phase, self.killed, self.save = {"steps": 0, "saves": 0}, "steps", killed, run._save_checkpoint
        run._save_checkpoint = self.saving  # type: ignore[method-assign]
        sys.setprofile(self.count)

    def count(self, frame: Any, event: str, argument: Any) -> None:
        self.calls[self.phase] += 1
        if self.killed == (self.phase, self.calls[self.phase]):
            os.kill(os.getpid(), signal.SIGKILL)

    def saving(self, *arguments: Any) -> None:
        self.phase = "saves"
        self.save(*arguments)
        self.phase = "steps"


def worker(rank: int, world: int, port: int, folder: Path, way: str, killed: tuple[int, str, int] | None) -> None:
    """Train, or go on. `killed`: the rank that dies, and at which of its calls of functions, in steps or in saves."""
    torch.set_num_threads(1)
    if world > 1:
        os.environ.update(
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world)
        )
        distributed.init_process_group("gloo", rank=rank, world_size=world)
    run = trainer(folder, way, shard=world > 1 and way != "muon")
    counting = Counting(run, killed[1:] if killed and killed[0] == rank else None)
    run.run(resume=True)
    sys.setprofile(None)
    (folder / f"calls-{rank}.json").write_text(json.dumps(counting.calls))
    if world > 1:
        leave()


def start(world: int, folder: Path, way: str, killed: tuple[int, str, int] | None = None) -> None:
    start_processes(worker, (world, free_port(), folder, way, killed), nprocs=world, start_method="forkserver")


def state_of(folder: Path) -> dict[str, Any]:
    """All that the last checkpoint holds, and what was logged."""
    last = folder / f"checkpoint-{STEPS}"
    dcp_to_torch_save(last / "state", folder / "state.pt")
    held = torch.load(folder / "state.pt", weights_only=False)
    log = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return {**held, "carried": load_file(last / "carried.safetensors"), "log": log}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Of each kind, the folder of a run that nobody killed."""

    @functools.cache
    def made(world: int, way: str) -> Path:
        folder = tmp_path_factory.mktemp(f"{way}-{world}")
        start(world, folder, way)
        return folder

    return made


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return torch.equal(torch.as_tensor(one), torch.as_tensor(other)) if hasattr(one, "shape") else bool(one == other)


def check(world: int, point: int, whole: Any, folder: Path, since: float = 0.0) -> None:
    """`since`: which part of the run is certainly over at the point."""
    rng = random.Random(f"{world}/{point}")
    way = WAYS[point % len(WAYS)]
    phase = ("steps", "saves")[point % 2]
    reference, rank = whole(world, way), rng.randrange(world)
    calls = json.loads((reference / f"calls-{rank}.json").read_text())[phase]
    killed = rank, phase, rng.randrange(int(since * calls), calls)
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        start(world, folder, way, killed)
    start(world, folder, way)
    assert same(state_of(folder), state_of(reference)), killed
    assert not (folder / ".unfinished").exists()


@pytest.mark.parametrize("point", range(3))
def test_a_run_of_one_process_is_killed_and_ends_as_it_would_have(point: int, whole: Any, tmp_path: Path) -> None:
    check(1, point, whole, tmp_path, since=0.4)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("point", range(POINTS))
def test_a_run_that_is_killed_ends_as_it_would_have(world: int, point: int, whole: Any, tmp_path: Path) -> None:
    check(world, point, whole, tmp_path)
