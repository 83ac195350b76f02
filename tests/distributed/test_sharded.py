"""FSDP2 shares a model's weights out among processes that train it, and they do what one process would."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import distributed, multiprocessing
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.optim import AdamW, Optimizer

from remanence import MemoryModel
from remanence.config import LoraSettings
from remanence.errors import InvalidInputError
from remanence.optim import GrassAdamW, grass_param_groups
from remanence.optim.sharding import local
from remanence.training.curriculum import Curriculum
from remanence.training.distributed import shard_model
from remanence.training.trainer import MemoryTrainer
from tests.distributed.test_optim import free_port, leave
from tests.distributed.test_training import build
from tests.support.training import arguments, tiny_model

WORLD, STEPS, CUT = 2, 6, 3
WAYS = ("lora", "full", "grass")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not distributed.is_available(), reason="torch was built without distributed"),
]


def new_model(way: str) -> MemoryModel:
    """One whose adapters are trained, or all of whose weights are."""
    if way != "lora":
        return tiny_model(slots=8, slots_per_write=4)
    model = tiny_model(slots=8, slots_per_write=4, lora=LoraSettings(r=2))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)
    return model


def new_optimizer(model: MemoryModel, way: str) -> Optimizer:
    # With the usual eps, Adam makes whole steps of gradients that are nothing but rounding.
    settings: dict[str, Any] = {"lr": 0.01, "eps": 1e-4, "weight_decay": 0.0}
    if way == "grass":
        groups = grass_param_groups(model, rank=4, update_proj_gap=2, target_modules=["layers."])
        return GrassAdamW(groups, max_grad_norm=1.0, **settings)
    return AdamW([p for p in model.parameters() if p.requires_grad], **settings)


def trainer(folder: Path, way: str, steps: int = STEPS, *, accumulate: int = 1, shard: bool = False) -> MemoryTrainer:
    model = new_model(way)
    args = arguments(folder, steps, every=CUT)
    args.gradient_accumulation_steps = accumulate
    args.gradient_checkpointing = way == "lora"
    args.max_grad_norm = 0.0 if way == "grass" else 1.0
    if shard:
        shard_model(model)
    curriculum = Curriculum(build([]), levels=4, steps=STEPS, threshold=-1.0)
    return MemoryTrainer(model, args=args, curriculum=curriculum, bank=12, optimizers=(new_optimizer(model, way), None))


def held(run: MemoryTrainer) -> dict[str, int]:
    """Numbers that lie in this process behind the last step, and all that there are."""
    parameters = list(run.memory_model.parameters())
    states = [value for state in run.optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    return {
        "weights": sum(local(p).numel() for p in parameters),
        "all weights": sum(p.numel() for p in parameters),
        "state": sum(local(value).numel() for value in states if value.dim()),
        "all state": sum(value.numel() for value in states if value.dim()),
    }


def weights(run: MemoryTrainer) -> dict[str, Any]:
    return get_model_state_dict(run.memory_model, options=StateDictOptions(full_state_dict=True))


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(InvalidInputError) as error:
        call()
    return str(error.value)


def worker(rank: int, port: int, folder: Path) -> None:
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD)
    )
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=WORLD)
    found: dict[str, Any] = {}
    for way in WAYS:
        whole = trainer(folder / way / "whole", way, shard=True)
        whole.train()
        found[way] = {"whole": weights(whole), "held": held(whole), "log": whole.state.log_history}
        trainer(folder / way / "cut", way, CUT, shard=True).train()
        for begun in ("cut", "by one"):
            resumed = trainer(folder / way / begun, way, shard=True)
            resumed.run(resume=True)
            found[way][begun] = weights(resumed)
    parts = new_model("full")
    fully_shard(parts.backbone.layers[1])
    fully_shard(parts)
    found["parts"] = refused(lambda: MemoryTrainer(parts, args=arguments(folder / "none", 1, every=1)))
    args = arguments(folder / "none", 1, every=1)
    found["clipped"] = refused(
        lambda: MemoryTrainer(whole.memory_model, args=args, optimizers=(whole.optimizer.optimizer, None))
    )
    torch.save(found, folder / f"{rank}.pt")
    leave()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """All of it in two processes, whose start takes longer than the rest; what each of them found."""
    folder = tmp_path_factory.mktemp("sharded")
    for way in WAYS:
        trainer(folder / way / "by one", way, CUT, accumulate=WORLD).train()
    multiprocessing.spawn(worker, (free_port(), folder), nprocs=WORLD)
    return folder, [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


Run = tuple[Path, list[dict[str, Any]]]


@pytest.mark.parametrize("way", WAYS)
def test_a_sharded_model_is_trained_as_one_process_would(way: str, run: Run, tmp_path: Path) -> None:
    alone = trainer(tmp_path, way, accumulate=WORLD)
    alone.train()
    for one in run[1]:
        for name, value in alone.memory_model.state_dict().items():
            torch.testing.assert_close(one[way]["whole"][name], value, atol=1e-5, rtol=0)
        for name in ("memory_loss",) if way == "grass" else ("memory_loss", "grad_norm"):
            assert one[way]["log"][0][name] == pytest.approx(alone.state.log_history[0][name], rel=1e-3)


@pytest.mark.parametrize("way", WAYS)
def test_its_checkpoint_is_whole_and_a_resumed_run_ends_where_an_uninterrupted_one_does(way: str, run: Run) -> None:
    folder, found = run
    loaded = MemoryModel.from_pretrained(folder / way / f"whole/checkpoint-{STEPS}").state_dict()
    for one in found:
        for name, value in one[way]["whole"].items():
            assert torch.equal(loaded[name], value)
            assert torch.equal(one[way]["cut"][name], value)


@pytest.mark.parametrize("way", WAYS)
def test_a_run_moves_between_one_process_and_two(way: str, run: Run, tmp_path: Path) -> None:
    folder, found = run
    shutil.copytree(folder / way / f"cut/checkpoint-{CUT}", tmp_path / f"checkpoint-{CUT}")
    alone = trainer(tmp_path, way, accumulate=WORLD)
    alone.run(resume=True)
    for name, value in found[0][way]["whole"].items():
        torch.testing.assert_close(found[0][way]["by one"][name], value, atol=1e-5, rtol=0)
        torch.testing.assert_close(alone.memory_model.state_dict()[name], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("way", WAYS)
def test_between_steps_each_process_holds_its_part(way: str, run: Run) -> None:
    for one in run[1]:
        numbers = one[way]["held"]
        assert numbers["weights"] < 0.6 * numbers["all weights"]
        if way != "grass":  # whose state is that of the selected rows, and stands whole in every process
            assert numbers["state"] < 0.6 * numbers["all state"]


def test_parts_of_a_model_that_are_sharded_alone_are_refused(run: Run) -> None:
    assert "fully_shard(model) for the whole model only" in run[1][0]["parts"]


def test_grass_has_to_clip_by_itself_where_weights_are_sharded(run: Run) -> None:
    assert "GrassAdamW(..., max_grad_norm=...)" in run[1][0]["clipped"]


def test_with_more_processes_batches_go_on_where_they_were(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run[0] / f"lora/cut/checkpoint-{CUT}", tmp_path / f"checkpoint-{CUT}")
    built: list[tuple[int, int]] = []
    alone = trainer(tmp_path, "lora")  # half as many in a step
    alone.curriculum.build = build(built)
    alone.run(resume=True)
    assert [number for number, _ in built] == list(range(WORLD * CUT, WORLD * CUT + STEPS - CUT))


def test_a_process_alone_has_nobody_to_share_with() -> None:
    with pytest.raises(InvalidInputError, match="torchrun --nproc-per-node"):
        shard_model(new_model("full"))
