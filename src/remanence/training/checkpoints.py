"""The state of a run by torch.distributed.checkpoint (DCP): any number of processes resumes what others saved.

checkpoint-N/            the model, as `save_pretrained` writes it
    state/               what is trained, in full precision; optimizer, scheduler, place in the data, random states
    trainer_state.json   the Trainer's

A checkpoint is written aside and renamed when it is whole, so that a kill leaves none that is not. DCP unpickles what
is no tensor: resume runs of your own only.
"""

import json
import random
import shutil
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from transformers import Trainer, set_seed
from transformers.trainer_utils import get_last_checkpoint, rotate_checkpoints

from remanence.errors import InvalidInputError
from remanence.model.model import MemoryModel

STATE, ASIDE = "state", ".unfinished"


class ResumableTrainer(Trainer):
    """A Trainer whose whole state DCP saves and loads.

    Attributes:
        memory_model: what is trained; the Trainer's own `model` is a module around it.
    """

    memory_model: MemoryModel
    _shift = 0  # of batches' numbers, in a run that others began with more or fewer of them in a step

    def run(self, *, resume: bool) -> None:
        """Train; `resume` from the last checkpoint in the output folder, if it has one."""
        self.train(resume_from_checkpoint=get_last_checkpoint(self.args.output_dir) if resume else None)

    def place_in_data(self) -> dict[str, Any]:
        """What batches depend on beside their numbers, as JSON."""
        return {}

    def go_to(self, place: dict[str, Any]) -> None:
        """Take over what `place_in_data` returned."""

    @property
    def _each(self) -> int:
        """Batches in a step, of all processes."""
        return self.args.gradient_accumulation_steps * self.args.world_size

    @property
    def _bare_optimizer(self) -> Any:
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        output = Path(self.args.output_dir)
        aside = output / ASIDE
        if self.args.should_save:
            shutil.rmtree(aside, ignore_errors=True)  # left by a run that was killed
        self.accelerator.wait_for_everyone()
        self.args.output_dir = str(aside)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir = str(output)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (made,) = aside.iterdir()
            place = output / made.name
            if place.exists():  # an earlier run's
                place.rename(aside / "replaced")
            made.rename(place)
            shutil.rmtree(aside)
            rotate_checkpoints(str(output), self.args.save_total_limit, use_mtime=True)
        self.accelerator.wait_for_everyone()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        state = {**self._run_state(), "random": {str(self.args.process_index): _random_states()}}
        if self.args.should_save:
            batches = self.state.global_step * self._each + self._shift
            state["place"] = json.dumps({"batches": batches, **self.place_in_data()})
        with _quiet():
            save(state, checkpoint_id=Path(output_dir) / STATE)

    def _save_rng_state(self, output_dir: str) -> None:
        """Random states are saved with all else."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Refuse what has no state. Weights are loaded with that of their optimizer.

        Raises:
            InvalidInputError: an earlier version saved it, or was killed while it did.
        """
        if not (Path(resume_from_checkpoint) / STATE).is_dir():
            raise InvalidInputError(
                f"{resume_from_checkpoint} has no folder {STATE}: an earlier version saved it, whose runs cannot be "
                "resumed. A new run may begin from its model: MemoryModel.from_pretrained loads it if it is whole"
            )

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint) / STATE
        state = {**self._run_state(), "place": ""}
        _leave_out_new(state["optimizer"]["state"], _names(folder))
        with _quiet():
            load(state, checkpoint_id=folder)  # weights in place
        options = StateDictOptions(strict=False)
        set_optimizer_state_dict(self.memory_model, self._bare_optimizer, state["optimizer"], options=options)
        self.lr_scheduler.load_state_dict(state["scheduler"])
        place = json.loads(state["place"])
        self._shift = place.pop("batches") - self.state.global_step * self._each
        self.go_to(place)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        rank, folder = str(self.args.process_index), Path(checkpoint) / STATE
        names = _names(folder)
        mine = {name: state for name, state in _random_states().items() if f"random.{rank}.{name}" in names}
        if not mine:  # the run had fewer processes
            set_seed((self.args.seed + 1_000_003 * self.state.global_step + self.args.process_index) % 2**32)
            return
        with _quiet():
            load({"random": {rank: mine}}, checkpoint_id=folder, no_dist=True)
        random.setstate(mine["python"])
        np.random.set_state(mine["numpy"])
        torch.set_rng_state(mine["cpu"])
        if "cuda" in mine:
            torch.cuda.set_rng_state(mine["cuda"])

    def _run_state(self) -> dict[str, Any]:
        """Weights that are trained, whose tensors are the model's own; state of optimizer and scheduler."""
        model, optimizer = self.memory_model, self._bare_optimizer
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for layer in model.modules():  # weights that Grass trains through others
            trained |= {id(projection.weight) for projection in getattr(layer, "grass", {}).values()}
        return {
            "weights": {n: p.detach() for n, p in model.state_dict(keep_vars=True).items() if id(p) in trained},
            "optimizer": get_optimizer_state_dict(model, optimizer),
            "scheduler": self.lr_scheduler.state_dict(),
        }


def _names(folder: Path) -> Collection[str]:
    """What a state holds."""
    return FileSystemReader(folder).read_metadata().state_dict_metadata.keys()


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
