"""Batches that get harder when the model is ready."""

from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset

from remanence.training.sources import DocumentStream

Batch = dict[str, Any]  # "batch": Episodes or Prompts, "task": the name under which it is logged


class Curriculum(Dataset[Batch]):
    """Levels of rising difficulty; the next begins when exact match on one task, averaged over steps, is high enough.

    Batch i depends on i, the seed, the level and the place in a stream of documents alone. Level and place are saved
    with every checkpoint, so that a resumed run sees what an uninterrupted one would.

    Args:
        build: makes batch number `step` of `level`.
        levels: how many there are.
        steps: batches in all.
        task: the task whose exact match decides.
        threshold: of the moving average, to go on; one for each level but the last, or one for all.
        documents: the stream that `build` reads.
    """

    def __init__(
        self,
        build: Callable[[int, int], Batch],
        *,
        levels: int,
        steps: int,
        task: str = "memory",
        threshold: float | Sequence[float] = 0.86,
        decay: float = 0.95,
        documents: DocumentStream | None = None,
    ) -> None:
        self.build, self.levels, self.steps, self.task, self.decay = build, levels, steps, task, decay
        self.thresholds = [threshold] * (levels - 1) if isinstance(threshold, float) else list(threshold)
        self.level, self.average, self.documents = 0, 0.0, documents

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> Batch:
        return self.build(step, self.level)

    def observe(self, task: str, exact_match: float) -> None:
        if task != self.task:
            return
        self.average = self.decay * self.average + (1 - self.decay) * exact_match
        if self.level < self.levels - 1 and self.average > self.thresholds[self.level]:
            self.level, self.average = self.level + 1, self.average / 2

    def state_dict(self) -> dict[str, Any]:
        documents = None if self.documents is None else self.documents.state_dict()
        return {"level": self.level, "average": self.average, "documents": documents}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.level, self.average = state["level"], state["average"]
        if self.documents is not None:
            self.documents.load_state_dict(state["documents"])
