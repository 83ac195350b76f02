"""What a training says while it runs: a bar where somebody watches, and lines that a person can read."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from transformers import ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import PrinterCallback

_OTHER = {"epoch", "total_flos", "loss", "learning_rate", "grad_norm", "level"}


def log_line(logs: Mapping[str, Any], step: int, steps: int, left: float | None) -> str:
    """One entry of a Trainer's log.

    Args:
        left: seconds that the rest will take, where they are known.

    Returns:
        Such as `step 650 of 4,500, 18 min left: loss 0.4202, learning rate 0.007, memory 0.3395 (83 % right)`: losses
        of tasks by their names, and how many of their answers were right.
    """
    parts = [f"loss {float(logs['loss']):.4g}"] if "loss" in logs else []
    if "learning_rate" in logs:
        parts.append(f"learning rate {float(logs['learning_rate']):.3g}")
    for name, value in logs.items():
        if name in _OTHER or name.endswith("_exact_match"):
            continue
        task, right = name.removesuffix("_loss"), logs.get(f"{name.removesuffix('_loss')}_exact_match")
        said = f"{task.replace('_', ' ')} {float(value):.4g}" if isinstance(value, (int, float)) else f"{task} {value}"
        parts.append(f"{said} ({float(right):.0%} right)" if right and name.endswith("_loss") else said)
    if "level" in logs:
        parts.append(f"level {logs['level']}")
    return f"step {step:,} of {steps:,}{_time(left)}: {', '.join(parts)}"


def _time(left: float | None) -> str:
    if left is None:
        return ""
    return f", {left / 3600:.1f} h left" if left >= 5400 else f", {left / 60:.0f} min left" if left >= 90 else ""


class ReadableProgress(ProgressCallback):
    """Takes the place of the Trainer's own: without a terminal no bar, and lines in place of dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self._begun = (0.0, 0)  # seconds, step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._begun = (time.monotonic(), state.global_step)
        if sys.stderr.isatty() and not args.disable_tqdm:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero or not logs or "loss" not in logs:
            return
        seconds, first = self._begun
        done = state.global_step - first
        left = (time.monotonic() - seconds) / done * (state.max_steps - state.global_step) if done > 0 else None
        line = log_line(logs, state.global_step, state.max_steps, left)
        if self.training_bar is None:
            print(line, flush=True)
        else:
            self.training_bar.write(line)


def readable(trainer: Trainer) -> None:
    """Let a Trainer say what it does in lines that a person can read."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(ReadableProgress())
