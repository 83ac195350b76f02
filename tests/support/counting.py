"""A tiny Llama that learns to count, on `transformers.Trainer`; run as a module, as what a launcher starts."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import set_seed

from remanence.optim import GrassAdamW, grass_param_groups

GAP = 4


class Counting(Dataset[dict[str, Tensor]]):
    """Sequences that count up: a decoder learns them in a few steps."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = (torch.arange(12) + index) % 32
        return {"input_ids": ids, "labels": ids}


def trainer(
    output: Path,
    steps: int,
    batch: int = 8,
    accumulate: int = 1,
    save_steps: int = 6,
    callbacks: Any = None,
    **settings: Any,
) -> Trainer:
    set_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config)
    optimizer = GrassAdamW(grass_param_groups(model, rank=8, update_proj_gap=GAP, scale=1.0), lr=5e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        use_cpu=True,
        logging_steps=1,
        save_steps=save_steps,
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    return Trainer(
        model=model,
        args=arguments,
        train_dataset=Counting(),
        optimizers=(optimizer, scheduler),
        callbacks=callbacks,
    )


class Kill(TrainerCallback):
    """Ends the process after a step, before this step's checkpoint, as `kill -9` would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def killed_after(step: int, output: Path) -> None:
    torch.set_num_threads(1)
    trainer(output, step + 1, save_steps=1, callbacks=[Kill(step)]).train()


def killed_while_saving(step: int, output: Path) -> None:
    """With the weights of this step's checkpoint written, and nothing else of it."""
    torch.set_num_threads(1)
    run: Any = trainer(output, step, save_steps=1)
    save = run._save_optimizer_and_scheduler

    def cut(folder: str) -> None:
        if folder.endswith(f"-{step}"):
            os.kill(os.getpid(), signal.SIGKILL)
        save(folder)

    run._save_optimizer_and_scheduler = cut
    run.train()


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    run: Any = trainer(folder, int(sys.argv[2]), batch=4, ddp_backend="gloo", save_strategy="no")
    run.train()
    made = {"model": run.model.state_dict(), "world": run.args.world_size}
    torch.save(made, folder / f"{run.args.process_index}.pt")
    # Threads of gloo and of Python may wait for each other at the end of a process.
    torch.distributed.barrier()
    os._exit(0)
