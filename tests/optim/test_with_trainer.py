"""`transformers.Trainer` drives the optimizer unchanged: it accumulates, clips, schedules, saves and resumes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments
from transformers.trainer_utils import set_seed

from remanence.optim import GrassAdamW, grass_param_groups


class Counting(Dataset[dict[str, Tensor]]):
    """Sequences that count up: a decoder learns them in a few steps."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = (torch.arange(12) + index) % 32
        return {"input_ids": ids, "labels": ids}


def trainer(output: Path, steps: int, batch: int = 8, accumulate: int = 1, **settings: Any) -> Trainer:
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
    optimizer = GrassAdamW(grass_param_groups(model, rank=8, update_proj_gap=4, scale=1.0), lr=5e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))
    arguments = TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        use_cpu=True,
        logging_steps=1,
        save_steps=6,
        report_to="none",
        disable_tqdm=True,
        **settings,
    )
    return Trainer(model=model, args=arguments, train_dataset=Counting(), optimizers=(optimizer, scheduler))


def losses(run: Trainer) -> list[float]:
    return [entry["loss"] for entry in run.state.log_history if "loss" in entry]


def weights(run: Trainer) -> Tensor:
    assert isinstance(run.model, torch.nn.Module)
    return torch.cat([value.flatten() for value in run.model.state_dict().values()])


def test_the_loss_falls_and_the_norm_of_projected_gradients_is_logged(tmp_path: Path) -> None:
    run = trainer(tmp_path, 40)
    run.train()
    assert losses(run)[-1] < losses(run)[0] - 0.5
    assert all(entry["grad_norm"] > 0 for entry in run.state.log_history if "loss" in entry)


def test_accumulating_four_batches_is_one_batch(tmp_path: Path) -> None:
    whole, parts = trainer(tmp_path / "whole", 6), trainer(tmp_path / "parts", 6, batch=2, accumulate=4)
    whole.train()
    parts.train()
    torch.testing.assert_close(weights(parts), weights(whole), atol=1e-5, rtol=1e-4)


def test_a_run_that_was_cut_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", 11)
    whole.train()
    trainer(tmp_path / "cut", 6).train()
    resumed = trainer(tmp_path / "cut", 11)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_nothing(tmp_path: Path, reentrant: bool) -> None:
    plain = trainer(tmp_path / "plain", 5)
    saving = trainer(
        tmp_path / "saving",
        5,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": reentrant},
    )
    plain.train()
    saving.train()
    torch.testing.assert_close(weights(saving), weights(plain), atol=1e-6, rtol=1e-5)


def test_a_saved_model_is_a_stock_one(tmp_path: Path) -> None:
    run = trainer(tmp_path, 6)
    run.train()
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "checkpoint-6")
    for name, value in loaded.state_dict().items():
        assert isinstance(run.model, torch.nn.Module)
        assert torch.equal(value, run.model.state_dict()[name]), name
