"""The commands behind the committed figures (figures.json), and what has them run again.

`again` keeps what has finished in `runs/report`, so a run that was cut goes on. Figures are put in their places when
all are there, so that the committed ones are of one checkpoint each.
"""

import json
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
# By file in `benchmarks`. They take `--json` besides.
COMMANDS: dict[str, str] = json.loads((ROOT / "benchmarks/figures.json").read_text(encoding="utf-8"))


def shown(name: str) -> str:
    """The whole command, as it is typed."""
    return f"{COMMANDS[name]} --json benchmarks/{name}"


def again(names: Sequence[str]) -> None:
    """Run commands again that are not finished, then put their figures in their places.

    Raises:
        subprocess.CalledProcessError: one of them failed, or was interrupted.
    """
    for name in names:
        made = KEPT / name
        if finished(made):
            print(f"{name}: finished before")
            continue
        made.parent.mkdir(parents=True, exist_ok=True)
        program, *words = shlex.split(COMMANDS[name])
        if program == "remanence" and words[1] in ("editing", "integrity", "longcontext"):
            words += ["--state", str(made.with_suffix(""))]
        words += ["--json", str(made)]
        print(f"{name}: {program} {shlex.join(words)}", flush=True)
        start = ["-m", "remanence"] if program == "remanence" else []
        subprocess.run([sys.executable, *start, *words], cwd=ROOT, check=True)
    for name in names:
        place = ROOT / "benchmarks" / name
        place.parent.mkdir(exist_ok=True)
        os.replace(KEPT / name, place)
        shutil.rmtree((KEPT / name).with_suffix(""), ignore_errors=True)


def finished(made: Path) -> bool:
    """Figures are there, and no checkpoint has changed since."""
    changed = max(file.stat().st_mtime for file in CHECKPOINTS.glob("*/*"))
    return made.is_file() and made.stat().st_mtime > changed
