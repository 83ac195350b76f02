"""`transformers.Trainer` drives the optimizer unchanged: it accumulates, clips, schedules, saves and resumes."""

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from tests.support.counting import GAP, Counting, killed_after, killed_while_saving, trainer


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


def test_the_lines_of_the_readme_train(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    readme = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")
    code = next(block for block in readme.split("```python\n")[1:] if "grass_param_groups(model" in block)
    sizes = {"hidden_size": 128, "intermediate_size": 160, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=32))
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    arguments = TrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, report_to="none", save_strategy="no")
    exec(code.partition("```")[0], {"model": model, "arguments": arguments, "data": Counting(), "Trainer": Trainer})
    assert not torch.equal(model.model.layers[0].mlp.up_proj.weight, before)
    assert "mlp.up_proj.weight [160 x 128]: 128 of 128 directions" in capsys.readouterr().out


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


def killed(target: Callable[[int, Path], None], step: int, output: Path) -> None:
    """Runs to its end by SIGKILL in a process of its own, forked from one that has everything imported."""
    context: Any = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.counting"])
    process = context.Process(target=target, args=(step, output))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, GAP, GAP + 1, GAP + 2])
def test_a_run_that_was_killed_goes_on_to_the_same_bits(step: int, tmp_path: Path) -> None:
    # Rows are selected within steps 1 and GAP + 1: this is before such a step, within it, and after it.
    whole = trainer(tmp_path / "whole", 2 * GAP)
    whole.train()
    killed(killed_after, step, tmp_path / "cut")
    assert not (tmp_path / "cut" / f"checkpoint-{step}").exists()
    resumed = trainer(tmp_path / "cut", 2 * GAP)
    resumed.train(resume_from_checkpoint=True)
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.slow
def test_a_checkpoint_that_was_cut_while_saving_is_refused_and_the_one_before_it_goes_on(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", 2 * GAP)
    whole.train()
    killed(killed_while_saving, 3, tmp_path / "cut")
    assert (tmp_path / "cut" / "checkpoint-3" / "model.safetensors").is_file()
    with pytest.raises(FileNotFoundError, match=r"checkpoint-3.trainer_state\.json"):
        trainer(tmp_path / "cut", 2 * GAP).train(resume_from_checkpoint=True)
    resumed = trainer(tmp_path / "cut", 2 * GAP)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-2"))
    assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.slow
def test_two_processes_of_torchrun_do_what_one_does_with_the_joined_batch(tmp_path: Path) -> None:
    steps = GAP + 2
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*launcher, "-m", "tests.support.counting", str(tmp_path), str(steps)],
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    alone = trainer(tmp_path / "alone", steps)
    alone.train()
    assert isinstance(alone.model, torch.nn.Module)
    for name, value in alone.model.state_dict().items():
        assert torch.equal(found[0]["model"][name], found[1]["model"][name])
        torch.testing.assert_close(found[0]["model"][name], value, atol=1e-5, rtol=1e-5)
    assert [one["world"] for one in found] == [2, 2]
