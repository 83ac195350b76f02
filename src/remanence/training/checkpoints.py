"""The state of a run by torch.distributed.checkpoint (DCP): any number of processes resumes what others saved.

checkpoint-N/            what was trained, for use
    state/               the same in full precision; optimizer, scheduler, place in the data, random states
    carried.safetensors  what steps leave to later steps
    trainer_state.json   the Trainer's

A checkpoint is written aside and renamed when it is whole, so that a kill leaves none that is not. DCP unpickles what
is no tensor: resume runs of your own only.
"""

import json
import random
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import Optimizer
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import rotate_checkpoints

from remanence.errors import InvalidInputError

STATE, CARRIED, ASIDE = "state", "carried.safetensors", ".unfinished"


@contextmanager
def written_whole(args: TrainingArguments, wait_for_everyone: Callable[[], None]) -> Iterator[None]:
    """Let a Trainer write a checkpoint aside, and put it into its place afterwards."""
    output = Path(args.output_dir or ".")
    aside = output / ASIDE
    if args.should_save:
        shutil.rmtree(aside, ignore_errors=True)  # left by a run that was killed
    wait_for_everyone()
    args.output_dir = str(aside)
    try:
        yield
    finally:
        args.output_dir = str(output)
    wait_for_everyone()
    if args.should_save:
        (made,) = aside.iterdir()
        place = output / made.name
        if place.exists():  # an earlier run's
            place.rename(aside / "replaced")
        made.rename(place)
        shutil.rmtree(aside)
        rotate_checkpoints(str(output), args.save_total_limit, use_mtime=True)
    wait_for_everyone()


def save_state(checkpoint: Path, model: nn.Module, optimizer: Optimizer, scheduler: Any, rank: int, place: Any) -> None:
    """`place`: in the data, JSON; process 0 tells it for all."""
    state = {**_run_state(model, optimizer, scheduler), "random": {str(rank): _random_states()}}
    if rank == 0:
        state["place"] = json.dumps(place)
    with _quiet():
        save(state, checkpoint_id=checkpoint / STATE)


def require_state(checkpoint: Path) -> None:
    """
    Raises:
        InvalidInputError: an earlier version saved it.
    """
    if not (checkpoint / STATE).is_dir():
        raise InvalidInputError(
            f"{checkpoint} has no folder {STATE}: an earlier version saved it, whose runs cannot be resumed. A new run "
            "may begin from its model: MemoryModel.from_pretrained loads it if it is whole"
        )


def load_state(checkpoint: Path, model: nn.Module, optimizer: Optimizer, scheduler: Any) -> Any:
    """Take all of it over but random states; returns the place in the data."""
    state = {**_run_state(model, optimizer, scheduler), "place": ""}
    _leave_out_new(state["optimizer"]["state"], _names(checkpoint))
    with _quiet():
        load(state, checkpoint_id=checkpoint / STATE)  # weights in place
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=StateDictOptions(strict=False))
    scheduler.load_state_dict(state["scheduler"])
    return json.loads(state["place"])


def load_random_states(checkpoint: Path, rank: int, seed: int) -> None:
    """`seed`: for a process that was not there when they were saved."""
    names = _names(checkpoint)
    mine = {name: state for name, state in _random_states().items() if f"random.{rank}.{name}" in names}
    if not mine:
        set_seed(seed % 2**32)
        return
    with _quiet():
        load({"random": {str(rank): mine}}, checkpoint_id=checkpoint / STATE, no_dist=True)
    random.setstate(mine["python"])
    np.random.set_state(mine["numpy"])
    torch.set_rng_state(mine["cpu"])
    if "cuda" in mine:
        torch.cuda.set_rng_state(mine["cuda"])


def _run_state(model: nn.Module, optimizer: Any, scheduler: Any) -> dict[str, Any]:
    """Weights that are trained, whose tensors are the model's own; state of optimizer and scheduler."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # without Accelerate's wrapper
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for layer in model.modules():  # weights that Grass trains through others
        trained |= {id(projection.weight) for projection in getattr(layer, "grass", {}).values()}
    return {
        "weights": {n: p.detach() for n, p in model.state_dict(keep_vars=True).items() if id(p) in trained},
        "optimizer": get_optimizer_state_dict(model, optimizer),
        "scheduler": scheduler.state_dict(),
    }


def _names(checkpoint: Path) -> Collection[str]:
    """What a state holds."""
    return FileSystemReader(checkpoint / STATE).read_metadata().state_dict_metadata.keys()


def _leave_out_new(states: dict[str, Any], names: Collection[str]) -> None:
    """DCP makes a state for every parameter; one that had no gradient yet had none when it was saved."""
    prefix = "optimizer.state."
    there = {name.removeprefix(prefix).rpartition(".")[0] for name in names if name.startswith(prefix)}
    for parameter in states.keys() - there:
        del states[parameter]


def _random_states() -> dict[str, Any]:
    states = {"python": random.getstate(), "numpy": np.random.get_state(), "cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


@contextmanager
def _quiet() -> Iterator[None]:
    """DCP warns of a process alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield
