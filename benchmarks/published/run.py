"""Remanence beside the published MemoryLLM code: the same random weights and texts, one thread each, in one run.

    python benchmarks/run.py published --published CHECKOUT --published-python PYTHON

CHECKOUT is one of github.com/wangyu-ustc/MemoryLLM, whose code runs as it is in an environment with torch==2.13.0 and
transformers==4.48.2; PYTHON is its interpreter. First all sides have to give the same tokens and logits, in float32.
Then they are timed by turns, a process at a time. `--largest 24` takes the largest size that fits into 24 GB by the
arithmetic of `sizes.needed`, and leaves out packed weights, which are a second copy.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file

from published import sizes
from tables import Figures, Rows, cell, listed
from timing import timed

GOALS = {"write": 1.0, "first": 3.5, "token": 1.2}  # how many times as fast as the published code
TOLERANCE = 5e-6  # of the largest logit; rounding is 1e-6, and a wrong epsilon in the norms 9e-6
SIDES = {"published": "published code", "remanence": "Remanence", "optimized": "Remanence, `optimize_for_cpu`"}
TIMES = {
    "write": "a write of 512 tokens",
    "first_after_write": "first token, of the first answer after a write",
    "first": "first token, of later answers",
    "token": "each token after it",
}
BYTES = {"memory_bytes": "the memory", "prefix_bytes": "kept between answers", "peak_bytes": "resident at most"}
Rounds = dict[str, list[Figures]]  # by side, what its processes say


@dataclass(frozen=True)
class Settings:
    published: Path = field(metadata={"help": "the checkout"})
    published_python: Path = field(metadata={"help": "its interpreter"})
    size: str = field(default="512", metadata={"help": f"one of {', '.join(sizes.SIZES)}"})
    largest: float = field(default=0, metadata={"help": "GB, in the place of --size"})
    rounds: int = field(default=5, metadata={"help": "processes of each side"})
    samples: int = field(default=5, metadata={"help": "turns of each process, after one to warm up"})
    threads: ClassVar[int] = 1


def measure(on: Settings) -> Figures:
    if not (on.published / "modeling_memoryllm.py").is_file():
        raise SystemExit(f"no modeling_memoryllm.py in {on.published}: name a checkout of wangyu-ustc/MemoryLLM")
    name = sizes.largest(1e9 * on.largest) if on.largest else on.size
    model = {"name": name, "needed_bytes": sizes.needed(sizes.SIZES[name]), **sizes.SIZES[name]}
    print(f"by arithmetic a side needs {model['needed_bytes'] / 1e9:.1f} GB: {model}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        sizes.make(sizes.SIZES[name], Path(folder) / "model")
        gate, rounds = measured(Path(folder) / "model", on)
    git = subprocess.run(["git", "-C", on.published, "rev-parse", "HEAD"], capture_output=True, text=True)
    commit, versions = git.stdout.strip() or "unknown", {side: done[-1]["versions"] for side, done in rounds.items()}
    note = (
        f"{model['num_hidden_layers']} layers, d {model['hidden_size']:,}, {model['num_memory_tokens']:,} slots; "
        f"float32. All gave the same {gate['tokens']} tokens, logits {gate['logits_apart']:.0e} of the largest apart. "
        f"Published: {commit[:7]}, transformers {versions['published']['transformers']}."
    )
    about = {"published_commit": commit, "model": model, "goals": GOALS, "gate": gate, "sides": versions}
    return {**about, "rows": listed(rows_of(rounds)), "note": note}


def worker(side: str, model: Path, on: Settings, turns: int = 0, **job: str) -> dict[str, Any]:
    """What a side says in a process of its own. Raises SystemExit: it failed."""
    job |= json.loads((model / "config.json").read_text()) | {"side": side, "turns": turns, "model": str(model)}
    job["checkout"], script = str(on.published), str(Path(__file__).with_name("worker.py"))
    command = [str(on.published_python) if side == "published" else sys.executable, script, json.dumps(job)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=one_thread)
    if done.returncode:
        raise SystemExit(f"the {side} side failed; above stands why")
    return json.loads(done.stdout)


def agreement(answers: list[Path]) -> dict[str, Any]:
    """How far the other answers are from the first. Raises SystemExit: too far, or not the same tokens."""
    first, *others = map(load_file, answers)
    apart = max(float((one["logits"] - first["logits"]).abs().max() / first["logits"].abs().max()) for one in others)
    same = all(torch.equal(one["tokens"], first["tokens"]) for one in others)
    if not same or not apart <= TOLERANCE:
        raise SystemExit(f"the sides do not agree: same tokens: {same}; logits {apart:.1e} of the largest apart")
    return {"tokens": len(first["tokens"]), "logits_apart": apart, "tolerance": TOLERANCE}


def measured(model: Path, on: Settings) -> tuple[Figures, Rounds]:
    """Let the sides agree, then time them."""
    rounds: Rounds = {side: [] for side in SIDES if side != "optimized" or not on.largest}
    for side in rounds:
        worker(side, model, on, gate=str(model.with_name(side)))
    gate = agreement([model.with_name(side) for side in rounds])
    for number in range(on.rounds):
        for side, done in rounds.items():
            print(f"round {number + 1} of {on.rounds}: {side}", file=sys.stderr)
            done.append(worker(side, model, on, 1 + on.samples))
    return gate, rounds


def rows_of(rounds: Rounds) -> Rows:
    """Times and bytes, and how many times as long the published code took in the same round; goals are such ratios."""
    rows: Rows = {title: {} for title in (*TIMES.values(), *BYTES.values())}
    for side, done in rounds.items():
        for name, title in BYTES.items():
            rows[title][SIDES[side]] = cell(done[-1][name], "bytes")
        for name, title in TIMES.items():
            ours, theirs = (seconds_of(name, those) for those in (done, rounds["published"]))
            rows[title][SIDES[side]] = timed([time for times in ours for time in times])
            if side != "published":
                ratios = [statistics.median(b) / statistics.median(a) for a, b in zip(ours, theirs, strict=True)]
                spread = {"ratios": [min(ratios), max(ratios)]}
                rows[title][f"published / {SIDES[side]}"] = {"value": statistics.median(ratios), "unit": "x", **spread}
    for name, goal in GOALS.items():
        rows[TIMES[name]]["goal"] = cell(goal, "x")
    return rows


def seconds_of(name: str, rounds: list[Figures]) -> list[list[float]]:
    """A measure by round; the first turn does not count."""
    return [[turn[name] / 1e3 for turn in done["turns"][1:]] for done in rounds]
