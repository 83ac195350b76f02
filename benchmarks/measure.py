"""What the benchmarks share: a random Llama, a clock, and how figures are taken and written down."""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from remanence import Memory, MemoryModel
from remanence.environment import cpu_names, versions

THREADS = 2
PROMPT = 32
GREEDY: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}

Figures = dict[str, Any]


@dataclass(frozen=True)
class Setting:
    """A random Llama, and the pool to measure it with: N slots, K per write."""

    layers: int
    size: int
    intermediate: int
    heads: int
    kv_heads: int
    slots: int
    slots_per_write: int
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    vocabulary: int = 32000

    @property
    def head(self) -> int:
        return self.size // self.heads

    def decoder(self) -> Any:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.size,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            max_position_embeddings=4 * self.slots,
            dtype=self.dtype,
        )
        with torch.device(self.device):
            return AutoModelForCausalLM.from_config(config, dtype=self.dtype).eval()

    def model(self, slots: int | None = None, **settings: Any) -> MemoryModel:
        slots = self.slots if slots is None else slots
        return MemoryModel.attach(self.decoder(), slots=slots, slots_per_write=self.slots_per_write, **settings)

    def random(self, *shape: int, seed: int = 0) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype)

    def prompt(self, seed: int = 0, tokens: int = PROMPT) -> Tensor:
        ids = torch.randint(3, self.vocabulary, (tokens,), generator=torch.Generator().manual_seed(seed))
        return ids.to(self.device)

    def filled(self, model: MemoryModel, seed: int = 0) -> tuple[Memory, Tensor]:  # and its hidden slots [L, N, d]
        slots = self.random(self.layers, model.slots, self.size, seed=seed)
        return model.memory_from_slots(slots, seed), slots


SETTINGS = {
    "tiny": Setting(2, 32, 48, 4, 2, slots=48, slots_per_write=12, vocabulary=64),
    "small": Setting(8, 512, 1376, 8, 2, slots=1920, slots_per_write=60),
    "8b": Setting(32, 4096, 14336, 32, 8, slots=12800, slots_per_write=256, vocabulary=128256),
}


def now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def in_turns(repeats: int, **measures: Callable[[], float | None]) -> dict[str, list[float]]:
    """Seconds of each measure, `repeats` times, in turns. A measure that returns seconds has timed itself."""
    seconds: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(repeats + 2):
        for name, measure in measures.items():
            start = now()
            own = measure()
            taken = now() - start if own is None else own
            if turn >= 2:
                seconds[name].append(taken)
    return seconds


def summary(seconds: Sequence[float]) -> Figures:
    low, middle, high = (1e3 * cut for cut in statistics.quantiles(seconds, n=4, method="inclusive"))
    return {"median_ms": round(middle, 4), "quartiles_ms": [round(low, 4), round(high, 4)], "samples": len(seconds)}


def compared(seconds: dict[str, list[float]]) -> Figures:
    """Summaries of two measures, and how many times the second takes what the first takes."""
    first, second = seconds.values()
    ratio = statistics.median(second) / statistics.median(first)
    return {name: summary(taken) for name, taken in seconds.items()} | {"ratio": round(ratio, 3)}


def machine(device: str) -> Figures:
    return {
        "cpu": cpu_names()[0],
        "cores": os.cpu_count(),
        "threads": THREADS,
        "gpu": torch.cuda.get_device_name() if device.startswith("cuda") else None,
        "system": platform.system(),
        **versions(),
    }


def parser(about: str | None) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--json", type=Path, help="where the figures go; printed otherwise")
    made.add_argument("--repeats", type=int, default=25, help="samples of each short measure")
    made.add_argument("--shape", choices=SETTINGS, default="small")
    made.add_argument("--device", default="cpu")
    made.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    return made


def setting(options: argparse.Namespace) -> Setting:
    """The setting that the options name; sets the number of threads."""
    torch.set_num_threads(THREADS)
    return replace(SETTINGS[options.shape], device=options.device, dtype=getattr(torch, options.dtype))


def report(on: Setting, parts: dict[str, Callable[[], Figures]], to: Path | None) -> None:
    """Take the figures of all parts, and write them down."""
    figures: Figures = {
        **circumstances(on.device),
        "model": {"family": "llama", **asdict(on), "dtype": str(on.dtype).removeprefix("torch.")},
    }
    for name, part in parts.items():
        print(f"{name} ...", file=sys.stderr, flush=True)
        figures[name] = part()
    write_down(figures, to)


def circumstances(device: str = "cpu") -> Figures:
    """When, by which command and on what figures were taken."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python {' '.join(sys.argv)}",
        "machine": machine(device),
    }


def write_down(figures: Figures, to: Path | None) -> None:
    text = json.dumps(figures, indent=1)
    if to is None:
        print(text)
    else:
        to.write_text(text + "\n")
