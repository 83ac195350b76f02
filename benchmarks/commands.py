"""The commands behind the committed figures, and what has them run again.

`again` keeps what has finished in `runs/report`, so a run that was cut goes on. Figures are put in their places when
all are there, so that the committed ones are of one checkpoint each.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
KEPT = ROOT / "runs/report"
CHECKPOINTS = ROOT / "src/remanence/checkpoints"

# Figures, in `benchmarks`, and the command that makes them. Those of `eval` take `--json` besides.
COMMANDS = {
    "retention/results.json": (
        "eval retention --people both --model tiny --samples 200 --distances 0,1,2,4,8,12,16,24,32,48,64"
    ),
    "retention/longterm.json": "eval retention --model tiny_longterm --samples 200 --distances 0,16,32,64,160,320",
    "retention/longterm_int8.json": (
        "eval retention --model tiny_longterm --samples 100 --distances 0,160,320 --memory longterm --int8"
    ),
    "retention/longterm_far.json": (
        "eval retention --model tiny_longterm --samples 100 --distances 0,800,1600 --memory longterm"
    ),
    "retention/squad.json": "eval retention --model MODEL --data dev-v1.1.json --distances 0,5,…,60",
    "retention/retrieval.json": "eval retrieval --model tiny_longterm --samples 100 --distances 5p,10p,20p",
    "editing/results.json": (
        "eval editing --model tiny_longterm --edits 1,10,100 --samples 10 --method none --method memory "
        "--method context --method ft --method ft_l"
    ),
    "editing/counterfact.json": "eval editing counterfact.json --model MODEL --edits 1,10,100,1000",
    "longcontext/hotpotqa.json": "eval longcontext --model MODEL --data hotpotqa.jsonl --lengths 4k,8k,16k",
    "longcontext/babi.json": (
        "eval longcontext --model MODEL --data qa1_single-supporting-fact_test.txt --lengths 1k,4k,16k"
    ),
    "integrity/results.json": "eval integrity --model tiny --writes 100000 --questions 200",
    "integrity/million.json": (
        "eval integrity --model tiny --writes 1000000 --windows 100 --questions 200 --state runs/million"
    ),
    "perplexity/tiny_prose.json": "eval perplexity --model tiny",
    "perplexity/tiny_longterm_prose.json": "eval perplexity --model tiny_longterm",
    "perplexity/tiny_wikitext2.json": "eval perplexity --model tiny --text wikitext2/test.txt",
    "perplexity/tiny_longterm_wikitext2.json": "eval perplexity --model tiny_longterm --text wikitext2/test.txt",
    "read_write/results.json": "make bench",
    "longterm/results.json": "make bench",
    "gpu/read_write.json": "benchmarks/read_write/run.py --device cuda --dtype bfloat16 --shape 8b --repeats 10",
    "gpu/longterm.json": "benchmarks/longterm/run.py --device cuda --dtype bfloat16",
    "gpu/longterm_ttft.json": "benchmarks/gpu/longterm_ttft.py",
    "gpu/attention.json": "benchmarks/gpu/attention.py",
    "research/results.json": "benchmarks/research/run.py",
    "grass/step.json": "make grass",
    "grass/quality.json": 'make quality TEXT="path/to/text"',
    "grass/recall.json": "benchmarks/grass/recall.py --output runs/recall",
    "grass/memory.json": "benchmarks/grass/memory.py",
    "gpu/grass_13b.json": "benchmarks/gpu/grass_13b.py",
    "gpu/grass_throughput.json": "benchmarks/gpu/grass_throughput.py",
    "gpu/grass_60m.json": "benchmarks/gpu/grass_60m.py --text path/to/text --output runs/60m",
    "small/cpu_200_steps.json": "benchmarks/gpu/small.py --output runs/small-cpu --cpu --steps 200 --scale 0.05",
    "gpu/small.json": "benchmarks/gpu/small.py --output runs/small",
}

# What a target of `make` measures. `report` takes some 50 minutes on two cores, going by earlier runs. What is in none
# takes a file that is not bundled, a GPU, or a night.
_POOL = (
    "retention/results.json",
    "retention/longterm.json",
    "retention/longterm_int8.json",
    "retention/retrieval.json",
)
_PROSE = ("perplexity/tiny_prose.json", "perplexity/tiny_longterm_prose.json")
TARGETS = {
    "report": (*_POOL, "editing/results.json", *_PROSE),
    "retention": (*_POOL, "retention/longterm_far.json"),
    "editing": ("editing/results.json",),
    "integrity": ("integrity/results.json",),
}


def shown(name: str) -> str:
    """The whole command, as it is typed."""
    command = COMMANDS[name]
    if command.startswith("make "):
        return command
    start = "remanence" if command.startswith("eval ") else "python"
    return f"{start} {command} --json benchmarks/{name}"


def again(names: Sequence[str]) -> None:
    """Run evaluations again that are not finished, then put their figures in their places.

    Raises:
        subprocess.CalledProcessError: one of them failed, or was interrupted.
    """
    for name in names:
        made = KEPT / name
        if finished(made):
            print(f"{name}: finished before")
            continue
        made.parent.mkdir(parents=True, exist_ok=True)
        words = shlex.split(COMMANDS[name])
        if words[1] in ("editing", "integrity", "longcontext"):
            words += ["--state", str(made.with_suffix(""))]
        print(f"{name}: remanence {shlex.join(words)}", flush=True)
        subprocess.run([sys.executable, "-m", "remanence", *words, "--json", str(made)], cwd=ROOT, check=True)
    for name in names:
        place = ROOT / "benchmarks" / name
        place.parent.mkdir(exist_ok=True)
        os.replace(KEPT / name, place)
        shutil.rmtree((KEPT / name).with_suffix(""), ignore_errors=True)


def finished(made: Path) -> bool:
    """Figures are there, and no checkpoint has changed since."""
    changed = max(file.stat().st_mtime for file in CHECKPOINTS.glob("*/*"))
    return made.is_file() and made.stat().st_mtime > changed
