"""What a run trains: batches by their numbers, and the loss of one. The Trainer wraps a task as its module."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

Batch = dict[str, Any]  # "batch": what the task's forward pass takes; "task": the name under which it is logged


@dataclass(frozen=True, kw_only=True)
class Output:
    """What one batch leaves.

    Attributes:
        metrics: figures by name, for the log.
    """

    metrics: dict[str, float] = field(default_factory=dict)


class Task(nn.Module):
    """
    Attributes:
        trained: the model, whose parameters FSDP2 shards under their own names.
        batches: how many there are, where `max_steps` does not say.
    """

    batches = 0

    def __init__(self, trained: nn.Module) -> None:
        super().__init__()
        self.trained = trained

    def batch(self, number: int) -> Batch:
        """Batch `number` of the run, of all processes."""
        raise NotImplementedError

    def forward(self, batch: Any, name: str, seed: int) -> tuple[Tensor, Output]:
        """The loss of a batch, and what it leaves. `seed`: of what the loss draws."""
        raise NotImplementedError

    def after_step(self, outputs: Sequence[Any]) -> None:
        """Take in what this process's batches of a step left; every process comes here."""

    def figures(self) -> dict[str, Any]:
        """For the log, beside losses."""
        return {}

    def place(self) -> dict[str, Any]:
        """What batches depend on beside their numbers; JSON. A run that is resumed gives it to `go_to`."""
        return {}

    def go_to(self, place: dict[str, Any]) -> None:
        """Go on from there."""

    def carried_state(self) -> dict[str, Tensor]:
        """What steps leave to later steps, the same in every process; given to `load_carried_state`."""
        return {}

    def load_carried_state(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Go on with it."""

    def save(self, folder: Path, weights: dict[str, Tensor] | None) -> None:
        """Write what was trained for use. `weights`: whole ones, where the model holds parts."""

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """What the Trainer calls for `gradient_checkpointing=True`."""
        trained: Any = self.trained
        trained.activation_checkpointing_enable(**settings)

    gradient_checkpointing_enable = activation_checkpointing_enable  # by its older name
