"""Write docs/results.md, its pictures and the tables in the README from the committed figures.

    python benchmarks/report.py                    # takes seconds
    python benchmarks/report.py --again report     # first measure again what fits in an hour on two cores
    python benchmarks/report.py --again editing    # first measure the edits again

The same figures give the same files. A file of figures that another command adds to `benchmarks` is shown with its
kind, which is the command that made it.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import papers
from commands import COMMANDS, ROOT, TARGETS, again, shown
from editing.table import table as editing
from gpu import table as gpu
from grass import table as grass
from integrity.table import rows as integrity_rows
from integrity.table import table as integrity
from longcontext.table import table as longcontext
from longterm.table import table as longterm
from perplexity.table import table as perplexity
from read_write.table import table as read_write
from remanence.evaluation import plots
from remanence.evaluation.harness import Report
from remanence.evaluation.intervals import share_text
from research.table import table as research
from retention.table import retrieval
from retention.table import table as retention
from small.table import table as small
from tables import Figures, grid, interval, made_by
from writes.table import table as writes

All = dict[str, Figures]  # by path in `benchmarks`
Draw = Callable[[Figures, Path], None]
Tables = dict[str, tuple[str, Callable[[Figures], str]]]  # by marker, of which figures they are and how they are made


@dataclass(frozen=True)
class Section:
    title: str
    about: str
    folders: tuple[str, ...]  # of commands, so that what is missing is said in its place
    kinds: dict[str, Callable[[Figures], str]]
    theirs: str | None = None


REAL = ("squad", "locomo", "longmemeval", "multihop", "babi", "edits", "harm")  # evaluations on the harness


def real(figures: Figures) -> str:
    return f"{Report.from_json(figures).table('markdown')}\n\nBetween brackets: the interval that holds 95 %."


def own_text(figures: Figures) -> str:
    names = {"source": "the right paragraph is among the sources", "hit": "answered", "found": "found"}
    rows = [
        [title, f"{figures[name]['count']} of {figures['n']}", "{:.2f} to {:.2f}".format(*figures[name]["interval"])]
        for name, title in names.items()
    ]
    return grid(["", "questions", "95 %"], rows)


def compressed(figures: Figures) -> str:
    rows = [
        [name, f"{one['hit']:.3f}", "{:.2f} to {:.2f}".format(*one["interval"])]
        for name, one in figures["ratios"].items()
    ]
    return grid([f"one passage, {figures['n']} questions", "hit", "95 %"], rows)


def together(figures: Figures) -> str:
    rows = [
        [name, f"{one['hit']:.3f}", "{:.2f} to {:.2f}".format(*one["interval"])]
        for name, one in figures["ways"].items()
    ]
    return grid([f"four passages read together, {figures['n']} questions", "hit", "95 %"], rows)


def heads(figures: Figures) -> str:
    rows = [
        [name, f"{one['value']:.3f}", f"{one['low']:.2f} to {one['high']:.2f}"]
        for name, one in figures["heads"].items()
    ]
    return grid([f"four passages, asked in text, {figures['n']} questions", "loss of the answer", "95 %"], rows)


SECTIONS = (
    Section(
        "Real questions",
        "What a text memory of a real model answers, beside the same model with nothing, with the passage as text, and "
        "with the passages that BM25 finds. *slots*: text slots that the memory itself retrieves; *fits*: the newest "
        "text; *oracle*: the passages that hold the answer.",
        ("real/",),
        {
            **{f"eval {name}": real for name in REAL},
            "benchmarks/real/own_text.py": own_text,
            "benchmarks/real/compressed.py": compressed,
            "benchmarks/real/together.py": together,
            "benchmarks/real/heads.py": heads,
        },
    ),
    Section(
        "What is recalled, and for how long",
        "A text is written, then others, then a question about the first is asked. The curves: through the pool, with "
        "long-term memory, with the newest text in the context, and with nothing. The survival line is the share of a "
        "text's slots that random eviction leaves in the pool.",
        ("retention/results", "retention/longterm", "retention/squad"),
        {"eval retention": retention},
        papers.RETENTION,
    ),
    Section(
        "What is retrieved",
        "How many of the slots that a text left in long-term memory a question about it brings back.",
        ("retention/retrieval",),
        {"eval retrieval": retrieval},
        papers.RETRIEVAL,
    ),
    Section(
        "Changed facts",
        "Facts that were written before are changed, one after another; then the changed fact is asked for in one "
        "wording (efficacy) and in others (generalisation), and a neighbour's, which is to stay (specificity). The "
        "score is their harmonic mean.",
        ("editing/",),
        {"eval editing": editing},
        papers.EDITING,
    ),
    Section(
        "Long documents",
        "A document is written whole, then a question about it is asked.",
        ("longcontext/",),
        {"eval longcontext": longcontext},
        papers.LONGCONTEXT,
    ),
    Section(
        "After very many writes",
        "One memory is written to again and again, and asked about what was written last.",
        ("integrity/",),
        {"eval integrity": integrity},
        papers.INTEGRITY,
    ),
    Section(
        "Harm",
        "A text is read behind an empty memory and behind memories of other text. Without harm, the ratio would be 1.",
        ("perplexity/",),
        {"eval perplexity": perplexity},
        papers.PERPLEXITY,
    ),
    Section(
        "Speed and memory",
        "Against the plain path, which does what the published code does, with random weights.",
        ("read_write/", "writes/", "longterm/", "gpu/read_write", "gpu/longterm", "gpu/attention"),
        {
            "benchmarks/read_write/run.py": read_write,
            "benchmarks/writes/run.py": writes,
            "benchmarks/longterm/run.py": longterm,
            "benchmarks/gpu/longterm_ttft.py": longterm,
            "benchmarks/gpu/attention.py": gpu.attention,
        },
        papers.SPEED,
    ),
    Section(
        "Training at low memory",
        "Grass against full-rank training and other methods of low memory.",
        ("grass/", "gpu/grass"),
        {
            "benchmarks/grass/step.py": grass.table,
            "benchmarks/grass/quality.py": grass.quality,
            "benchmarks/grass/recall.py": grass.recall,
            "benchmarks/grass/memory.py": grass.memory,
            "benchmarks/gpu/grass_13b.py": gpu.fits,
            "benchmarks/gpu/grass_throughput.py": gpu.throughput,
            "benchmarks/gpu/grass_60m.py": grass.quality,
        },
        papers.GRASS,
    ),
    Section(
        "Who leaves the pool",
        "Rules of eviction against each other; what came of it is told in [research.md](research.md).",
        ("research/",),
        {"benchmarks/research/run.py": research},
    ),
    Section(
        "Training a larger model from scratch",
        "recipe `small`: how its losses fall.",
        ("small/", "gpu/small"),
        {"benchmarks/gpu/small.py": small},
    ),
)


def read(folder: Path) -> All:
    files = sorted(folder.glob("*/*.json"))
    return {str(file.relative_to(folder)): json.loads(file.read_text(encoding="utf-8")) for file in files}


def kind_of(figures: Figures) -> str:
    """The command that made them, without its options.

    Raises:
        KeyError: they do not say which.
    """
    words = figures["command"].split()
    return f"eval {words[2]}" if words[0] == "remanence" else words[1]


def page(figures: All) -> str:
    parts = [
        "# Results",
        "Made by `python benchmarks/report.py` from the figures in [`benchmarks`](../benchmarks), each with its "
        "command, date, device and versions; `make report` measures first what fits in an hour on two cores. ± is one "
        "standard error. What other papers report stands in boxes and is marked as **theirs**: it was found with other "
        "models, of billions of parameters, and other data, and was not measured here. `tiny` and `tiny_longterm`, the "
        "bundled checkpoints, have 1.5 million, and read short English biographies.",
        in_short(figures),
    ]
    names = sorted(figures, key=lambda name: (list(COMMANDS).index(name) if name in COMMANDS else len(COMMANDS), name))
    for section in SECTIONS:
        made = [name for name in names if kind_of(figures[name]) in section.kinds]
        missing = [name for name in COMMANDS if name.startswith(section.folders) and name not in figures]
        if not made and not missing and section.theirs is None:
            continue
        parts += [f"## {section.title}", section.about]
        for name in made:
            one = figures[name]
            parts.append(f"### {subject(name, one)}")
            if kind_of(one) in PICTURES:
                parts.append(f"![{section.title}: {subject(name, one)}]({picture(name).relative_to('docs')})")
            parts += [section.kinds[kind_of(one)](one), made_by(one)]
        if missing:
            parts.append("Not measured:\n\n" + "\n".join(f"- `{name}`: `{shown(name)}`" for name in missing))
        if section.theirs is not None:
            parts.append("\n".join(f"> {line}".rstrip() for line in ["**Theirs**", "", *section.theirs.split("\n")]))
    shown_kinds = {kind for section in SECTIONS for kind in section.kinds}
    others = [f"- `{name}`. {made_by(figures[name])}" for name in names if kind_of(figures[name]) not in shown_kinds]
    if others:
        parts.append("## Other figures\n\nThey have no table yet.\n\n" + "\n".join(others))
    return "\n\n".join(parts) + "\n"


def subject(name: str, figures: Figures) -> str:
    """The checkpoint if there is one, and the file."""
    words = figures["command"].split()
    model = f"{words[words.index('--model') + 1]}, " if "--model" in words else ""
    return f"{model}`{name}`"


def in_short(figures: All) -> str:
    """The lines that this project holds itself to, and what the papers have in their place."""
    rows = []
    for what, name, ours, theirs in LINES:
        said = ours(figures[name]) if name in figures else "not measured"
        rows.append((what, said, theirs))
    return grid(("", "ours", "theirs"), rows)


def at(distance: int, curve: str) -> Callable[[Figures], str]:
    def found(figures: Figures) -> str:
        points = [point for point in figures["curves"][curve] if point["distance"] == distance]
        return share_text(points[0]["exact_match"], points[0]["samples"]) if points else "not measured"

    return found


def edited(figures: Figures) -> str:
    most = max(result["edits"] for result in figures["results"])
    scores = ", ".join(f"{r['method']} {r['score']:.3f}" for r in figures["results"] if r["edits"] == most)
    return f"{scores} ({most} edits)"


def harm(figures: Figures) -> str:
    ratio = figures["conditions"]["unrelated"]
    return interval(ratio["ratio"], ratio["ratio_stderr"])


def newest(figures: Figures) -> str:
    rows = integrity_rows(figures)
    share = [share_text(row.exact_match, row.samples) for row in (rows[0], rows[-1])]
    return f"{share[0]}, then {share[1]} ({rows[-1].writes:,} writes)"


def retrieved(figures: Figures) -> str:
    point = figures["points"][-1]
    return f"{interval(point['share'], point['stderr'])}, by chance {point['random']:.3f}"


LINES: tuple[tuple[str, str, Callable[[Figures], str], str], ...] = (
    (
        "recalled at once, pool",
        "retention/results.json",
        at(0, "pool"),
        "0.66 (SQuAD), 0.57 (NaturalQuestions), MemoryLLM-8B",
    ),
    ("recalled 20 pools later, long-term", "retention/longterm.json", at(320, "longterm"), ""),
    ("recalled 100 pools later, long-term", "retention/longterm_far.json", at(1600, "longterm"), ""),
    ("of a text's slots retrieved", "retention/retrieval.json", retrieved, "about 0.30, by chance 0.03 (M+)"),
    (
        "score of changed facts",
        "editing/results.json",
        edited,
        "memory 0.75, FT 0.10, FT-L 0.34 (CounterFact, MemoryLLM-7B)",
    ),
    (
        "newest fact, first and last tenth of the writes",
        "integrity/million.json",
        newest,
        "no decline in 650,000 writes (MemoryLLM-7B)",
    ),
    (
        "perplexity of WikiText-2 behind unrelated text, times empty memory",
        "perplexity/tiny_wikitext2.json",
        harm,
        "1.9828 against 1.9734 (M+, Llama-3.1-8B, of other text)",
    ),
    ("the same, `tiny_longterm`", "perplexity/tiny_longterm_wikitext2.json", harm, ""),
)


def picture(name: str) -> Path:
    return Path("docs/results") / (name.removesuffix(".json").replace("/", "-") + ".svg")


def losses_plot(figures: Figures, path: Path) -> None:
    plots.marks_plot(grass.losses(figures), path, "test loss", figures)


PICTURES: dict[str, Draw] = {
    "eval retention": plots.retention_plot,
    "eval editing": plots.editing_plot,
    "eval longcontext": plots.longcontext_plot,
    "eval integrity": plots.integrity_plot,
    "eval perplexity": plots.perplexity_plot,
    "benchmarks/grass/quality.py": losses_plot,
    "benchmarks/gpu/grass_60m.py": losses_plot,
}

README: Tables = {
    "bench:grass": ("grass/step.json", grass.table),
    "bench:quality": ("grass/quality.json", grass.quality),
    "retention": ("retention/results.json", retention),
    "retention:longterm": ("retention/longterm.json", retention),
    "retention:int8": ("retention/longterm_int8.json", retention),
    "retention:far": ("retention/longterm_far.json", retention),
    "retrieval": ("retention/retrieval.json", retrieval),
    "editing": ("editing/results.json", editing),
    "integrity": ("integrity/million.json", integrity),
    "bench:read_write": ("read_write/results.json", read_write),
    "bench:longterm": ("longterm/results.json", longterm),
}


PAGES: dict[str, Tables] = {
    "README.md": README,
    "docs/research.md": {"research:eviction": ("research/results.json", research)},
}


def renewed(text: str, figures: All, tables: Tables) -> str:
    for marker, (name, table) in tables.items():
        start, end = f"<!-- {marker} -->", f"<!-- /{marker} -->"
        before, rest = text.split(start)
        _, after = rest.split(end)
        one = figures.get(name)
        made = f"Not measured: `{shown(name)}`." if one is None else f"{table(one)} {made_by(one)}"
        text = f"{before}{start}\n{made}\n{end}{after}"
    return text


def write(root: Path) -> None:
    figures = read(root / "benchmarks")
    (root / "docs/results").mkdir(parents=True, exist_ok=True)
    (root / "docs/results.md").write_text(page(figures), encoding="utf-8")
    for name, tables in PAGES.items():
        text = (root / name).read_text(encoding="utf-8")
        (root / name).write_text(renewed(text, figures, tables), encoding="utf-8")
    pictures = {root / picture(name): one for name, one in figures.items() if kind_of(one) in PICTURES}
    for old in (root / "docs/results").glob("*.svg"):
        if old not in pictures:
            old.unlink()
    for path, one in pictures.items():
        PICTURES[kind_of(one)](one, path)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--again", choices=TARGETS, help="what to measure first")
    options = parser.parse_args(arguments)
    if options.again is not None:
        again(TARGETS[options.again])
    write(ROOT)


if __name__ == "__main__":
    main()
