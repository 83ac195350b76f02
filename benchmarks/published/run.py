"""Remanence beside the published MemoryLLM code: the same random weights and texts, one thread each, in one run.

    python benchmarks/published/run.py --published CHECKOUT --published-python PYTHON --json FIGURES

CHECKOUT is one of github.com/wangyu-ustc/MemoryLLM, whose code runs as it is in an environment with torch==2.13.0 and
transformers==4.48.2; PYTHON is its interpreter. First all sides have to give the same tokens and logits, in float32.
Then they are timed by turns, a process at a time. `--largest` takes the largest size that fits into 24 GB by the
arithmetic of `sizes.needed`, and leaves out packed weights, which are a second copy.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent.parent))

from published import sizes
from remanence.environment import run_stamp

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
CELL = "{median_ms:,.1f} ms ({quartiles_ms[0]:,.1f} to {quartiles_ms[1]:,.1f}), **{ratio:.2f}x**"


def worker(side: str, model: Path, options: argparse.Namespace, turns: int = 0, **job: str) -> dict[str, Any]:
    """What a side says in a process of its own. Raises SystemExit: it failed."""
    job |= json.loads((model / "config.json").read_text()) | {"side": side, "turns": turns, "model": str(model)}
    job["checkout"], script = str(options.published), str(Path(__file__).with_name("worker.py"))
    command = [options.published_python if side == "published" else sys.executable, script, json.dumps(job)]
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


def measured(model: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Let the sides agree, then time them."""
    rounds: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES if side != "optimized" or not options.largest}
    for side in rounds:
        worker(side, model, options, gate=str(model.with_name(side)))
    gate = agreement([model.with_name(side) for side in rounds])
    for number in range(options.rounds):
        for side, done in rounds.items():
            print(f"round {number + 1} of {options.rounds}: {side}", file=sys.stderr)
            done.append(worker(side, model, options, 1 + options.samples))
    figures = {}
    for side, done in rounds.items():
        figures[side] = {name: done[-1][name] for name in (*BYTES, "versions")}
        figures[side] |= {name: compared(name, done, rounds["published"]) for name in TIMES}
    return {"gate": gate, "sides": figures}


def compared(name: str, rounds: list[dict[str, Any]], published: list[dict[str, Any]]) -> dict[str, Any]:
    """A measure of all rounds, and how many times as long the published code took in the same round."""
    ours, theirs = ([[turn[name] for turn in done["turns"][1:]] for done in side] for side in (rounds, published))
    low, median, high = statistics.quantiles([time for times in ours for time in times], n=4, method="inclusive")
    ratios = [statistics.median(one) / statistics.median(other) for one, other in zip(theirs, ours, strict=True)]
    figures = {"median_ms": median, "quartiles_ms": [low, high], "samples": sum(map(len, ours))}
    return {**figures, "ratio": statistics.median(ratios), "ratios": [min(ratios), max(ratios)]}


def table(figures: dict[str, Any]) -> str:
    """In Markdown: medians and quartiles, and how many times as long the published code took; goals are such ratios."""
    sides, goals, model, gate = (figures[name] for name in ("sides", "goals", "model", "gate"))
    rows = [["", *(SIDES[side] for side in sides), "goal"], ["---", *("---:" for _ in sides), "---:"]]
    for name, title in TIMES.items():
        rows.append([title, *(CELL.format(**one[name]) for one in sides.values()), str(goals.get(name, ""))])
    rows += [[title, *(f"{one[name] / 2**20:,.1f} MiB" for one in sides.values()), ""] for name, title in BYTES.items()]
    about = (
        f"{model['num_hidden_layers']} layers, d {model['hidden_size']:,}, {model['num_memory_tokens']:,} slots; "
        f"float32. All gave the same {gate['tokens']} tokens, logits {gate['logits_apart']:.0e} of the largest apart. "
        f"Published: {figures['published_commit'][:7]}, transformers {sides['published']['versions']['transformers']}."
    )
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", about])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--published", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--published-python", required=True, metavar="PYTHON")
    parser.add_argument("--size", choices=sizes.SIZES, default="512")
    parser.add_argument("--largest", type=float, nargs="?", const=24, metavar="GB", help="in the place of --size")
    parser.add_argument("--rounds", type=int, default=5, help="processes of each side")
    parser.add_argument("--samples", type=int, default=5, help="turns of each process, after one to warm up")
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    options = parser.parse_args(arguments)
    if not (options.published / "modeling_memoryllm.py").is_file():
        parser.error(f"no modeling_memoryllm.py in {options.published}: name a checkout of wangyu-ustc/MemoryLLM")
    name = sizes.largest(1e9 * options.largest) if options.largest else options.size
    model = {"name": name, "needed_bytes": sizes.needed(sizes.SIZES[name]), **sizes.SIZES[name]}
    print(f"by arithmetic a side needs {model['needed_bytes'] / 1e9:.1f} GB: {model}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        sizes.make(sizes.SIZES[name], Path(folder) / "model")
        taken = measured(Path(folder) / "model", options)
    size = f"--largest {options.largest:g}" if options.largest else f"--size {name}"
    command = f"python benchmarks/published/run.py --published CHECKOUT --published-python PYTHON {size}"
    torch.set_num_threads(1)  # as the sides do, and the stamp says
    stamp = run_stamp(f"{command} --rounds {options.rounds} --samples {options.samples}", torch.device("cpu"))
    git = subprocess.run(["git", "-C", options.published, "rev-parse", "HEAD"], capture_output=True, text=True)
    figures = {**stamp, "published_commit": git.stdout.strip() or "unknown", "model": model, "goals": GOALS, **taken}
    options.json.write_text(json.dumps(figures, indent=1) + "\n")
    print(table(figures))


if __name__ == "__main__":
    main()
