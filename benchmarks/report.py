"""Write docs/results.md, its pictures and the tables in other pages from the committed figures.

    python benchmarks/report.py                                  # takes seconds
    python benchmarks/report.py --again editing/results.json     # measure these again first

The same figures give the same files. figures.json has the command behind each file of figures; what finished of those
that are measured again is kept in `runs/report`, so that a run that was cut goes on, and is put in its place when all
are there, so that what is committed is of one checkpoint each. A page says where figures go, between two lines:

    <!-- figures: grass/step.json -->      the table of a file in `benchmarks`, and what it was made by
    <!-- figures: grass/ gpu/grass -->     all files that begin so, each under its name, and what is not measured yet
    <!-- figures: others -->               files that are on this page nowhere else
    <!-- /figures -->

or where a single one goes, or what stands beside it: the difference to the base, of perplexities the ratio:

    <!-- figure: measured real/nq.json GROUP COLUMN METRIC --><!-- /figure -->
    <!-- figure: against real/nq.json GROUP COLUMN METRIC --><!-- /figure -->
"""

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from remanence.evaluation import plots
from remanence.evaluation.harness import Report
from tables import Figures, made_by, markdown

All = dict[str, Figures]  # by path in `benchmarks`
ROOT = Path(__file__).parent.parent
KEPT = ROOT / "runs/report"
CHECKPOINTS = ROOT / "src/remanence/checkpoints"
COMMANDS: dict[str, str] = json.loads((ROOT / "benchmarks/figures.json").read_text(encoding="utf-8"))
PAGES = ("README.md", "docs/results.md", "docs/research.md", "docs/store.md")
MARKED = re.compile(r"(<!-- figures: (.*?) -->\n).*?(<!-- /figures -->)", re.DOTALL)
SINGLE = {"measured": "metrics", "against": "versus"}  # parts of a row
MARKED_SINGLE = re.compile(r"(<!-- figure: (.*?) -->).*?(<!-- /figure -->)")

DRAWN = ("retention", "editing", "longcontext", "integrity", "harm")  # evaluations that have a picture


def losses_plot(figures: Figures, path: Path) -> None:
    losses = {row["name"].replace("`", ""): row["cells"]["test loss"] for row in figures["rows"]}
    marks = {
        name: {"value": loss["value"], "low": loss["value"] - loss["stderr"], "high": loss["value"] + loss["stderr"]}
        for name, loss in losses.items()
        if isinstance(loss, dict)
    }
    plots.marks_plot(marks, path, "test loss", figures)


def drawing(figures: Figures) -> Callable[[Figures, Path], None] | None:
    """What draws them, if anything does."""
    if figures.get("evaluation") in DRAWN:
        return lambda one, path: plots.draw(Report.from_json(one), path)
    return losses_plot if kind_of(figures) == "grass_quality" else None


def shown(name: str) -> str:
    """The whole command, as it is typed."""
    return f"{COMMANDS[name]} --json benchmarks/{name}"


def read(folder: Path) -> All:
    files = sorted(folder.glob("*/*.json"))
    return {str(file.relative_to(folder)): json.loads(file.read_text(encoding="utf-8")) for file in files}


def kind_of(figures: Figures) -> str:
    """The evaluation or benchmark that made them, or the script.

    Raises:
        KeyError: they do not say which.
    """
    words = figures["command"].split()
    return f"eval {words[2]}" if words[0] == "remanence" else figures.get("benchmark", words[1])


def table_of(figures: Figures) -> str | None:
    return markdown(figures) if "rows" in figures else None


def made(name: str, figures: Figures) -> str:
    """What they were made by; where that script is gone, what makes them today too."""
    program, script, *_ = figures["command"].split()
    gone = program == "python" and not script.startswith(("benchmarks/run.py", "benchmarks/gpu/"))
    gone = gone or figures.get("converted", False)  # of an option or a name that has changed since
    return made_by(figures, COMMANDS.get(name, "") if gone else "")


def renewed(page: str, figures: All) -> str:
    """The text of a page with these figures."""
    words = [word for found in MARKED.finditer(page) for word in found[2].split()]
    prefixes = tuple(word for word in words if "/" in word)

    def filled(found: re.Match[str]) -> str:
        start, what, end = found.groups()
        if what == "others":
            left = {n: one for n, one in figures.items() if not n.startswith(prefixes) or table_of(one) is None}
            body = others(left)
        elif what.endswith(".json"):
            one = figures.get(what)
            body = f"Not measured: `{shown(what)}`." if one is None else f"{table_of(one)} {made(what, one)}"
        else:
            body = section(tuple(what.split()), figures)
        return f"{start}{body}\n{end}" if body else f"{start}{end}"

    def one_of(found: re.Match[str]) -> str:
        part, name, *where = shlex.split(found[2])
        said = single(figures[name], part, *where) if name in figures else "not measured"
        return f"{found[1]}{said}{found[3]}"

    return MARKED_SINGLE.sub(one_of, MARKED.sub(filled, page))


def section(prefixes: tuple[str, ...], figures: All) -> str:
    order: list[str] = list(COMMANDS)
    parts: list[str] = []
    names = sorted((order.index(name) if name in COMMANDS else -1, name) for name in figures)
    for name in (name for _, name in names if name.startswith(prefixes)):
        one = figures[name]
        if (table := table_of(one)) is not None:
            drawn = f"![{subject(name, one)}]({picture(name).relative_to('docs')})" if drawing(one) else ""
            parts += filter(None, [f"### {subject(name, one)}", drawn, table, made(name, one)])
    missing = [name for name in COMMANDS if name.startswith(prefixes) and name not in figures]
    if missing:
        parts.append("Not measured:\n\n" + "\n".join(f"- `{name}`: `{shown(name)}`" for name in missing))
    return "\n\n".join(parts)


def others(figures: All) -> str:
    lines = [f"- `{name}`. {made_by(one)}" for name, one in figures.items()]
    return "\n".join(["## Other figures", "", *lines]) if lines else ""


def subject(name: str, figures: Figures) -> str:
    """The checkpoint if there is one, and the file."""
    words = figures["command"].split()
    model = f"{words[words.index('--model') + 1]}, " if "--model" in words else ""
    return f"{model}`{name}`"


def single(figures: Figures, part: str, group: str, column: str, metric: str) -> str:
    """A figure of an evaluation, and the interval that holds 95 %."""
    [row] = [row for row in figures["rows"] if (row["group"], row["column"]) == (group, column)]
    return "{value:.3f} ({low:.3f} to {high:.3f})".format(**row[SINGLE[part]][metric])


def picture(name: str) -> Path:
    return Path("docs/results") / (name.removesuffix(".json").replace("/", "-") + ".svg")


def write(root: Path) -> None:
    figures = read(root / "benchmarks")
    for page in (root / name for name in PAGES):
        page.write_text(renewed(page.read_text(encoding="utf-8"), figures), encoding="utf-8")
    pictures = {root / picture(name): one for name, one in figures.items() if drawing(one)}
    for old in (root / "docs/results").glob("*.svg"):
        if old not in pictures:
            old.unlink()
    for path, one in pictures.items():
        if (draw := drawing(one)) is not None:
            draw(one, path)


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
        if program == "remanence":
            words += ["--resume", str(made.with_suffix(""))]
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


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", nargs="+", choices=COMMANDS, metavar="FILE", default=[], help="figures to measure")
    again(parser.parse_args(arguments).again)
    write(ROOT)


if __name__ == "__main__":
    main()
