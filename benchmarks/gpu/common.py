"""What the GPU's scripts share: where they run, steps that are timed, and how figures are written down."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import shapes
from remanence.environment import run_stamp
from tables import Figures, publish
from timing import now

# Of any size that a script asks for, when it is tried out on a CPU.
TINY = shapes.llama(64, 32, 48, 2, 4, 4, 2048)


def parser(about: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, help="where the figures go; printed otherwise")
    return smoking(made)


def smoking(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("--smoke", action="store_true", help="tiny shapes on the CPU, to see that the script runs")
    return parser


def device_of(options: Any) -> str:
    """
    Raises:
        RuntimeError: there is no GPU, and the script is not just tried out.
    """
    if options.smoke:
        return "cpu"
    if not torch.cuda.is_available():
        raise RuntimeError("this torch sees no CUDA device; install a CUDA build of torch, or try --smoke")
    return "cuda"


def llama(config: Any, device: str) -> Any:
    """With random weights in bfloat16."""
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def step_seconds(model: Any, optimizer: torch.optim.Optimizer, ids: Tensor, count: int) -> list[float]:
    """Of so many training steps on these tokens, `[batch, tokens]`."""
    seconds = []
    for _ in range(count):
        start = now()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(now() - start)
    return seconds


def peak(device: str) -> int | None:
    """The most bytes allocated since the last call; None on a CPU."""
    if device == "cpu":
        return None
    most = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return most


def write_down(figures: Figures, device: str, to: Path | None) -> None:
    """With what they were made by."""
    publish({**figures, **run_stamp(shlex.join(["python", *sys.argv]), torch.device(device))}, to)
