"""What the command line shows of learned models and of evaluations."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from remanence.chatting import read_line
from remanence.evaluation.demonstration import Round, distances_up_to, report, rounds
from remanence.evaluation.distances import writes_per_pool
from remanence.evaluation.intervals import share_text
from remanence.evaluation.plots import retention_plot
from remanence.evaluation.retention import Condition
from remanence.memory import Memory
from remanence.model.model import MemoryModel
from remanence.texts import Question

_CONDITIONS: dict[Condition, str] = {"pool": "pool alone", "context": "text in context", "none": "neither"}
_ROWS = 8  # of a round of questions that are shown; all of them count


def retention_table(report: dict[str, Any]) -> Table:
    curves, survival = report["curves"], {p["distance"]: p["line"] for p in report["survival"]}
    score = report.get("score", "exact_match")
    asked = f"questions of {report['data']}" if "data" in report else "held-out people"
    asked += ", names and values on no list" if report.get("people") == "unlisted" else ""
    name = score.replace("_", " ").capitalize()
    table = Table(title=f"{name}, {report['samples']} {asked} (N = {report['n']}, K = {report['k']})")
    table.add_column("distance", justify="right")
    for condition in curves:
        table.add_column(condition, justify="right")
    if survival:
        table.add_column("survival", justify="right")
    for points in zip(*curves.values(), strict=True):
        distance = points[0]["distance"]
        cells = [share_text(p[score], p["samples"]) for p in points]
        table.add_row(str(distance), *cells, *([f"{survival[distance]:.3f}"] if survival else []))
    return table


def longcontext_table(report: dict[str, Any]) -> Table:
    points = report["points"]
    table = Table(title=f"F1 / exact match, documents of {report['data']} (N = {report['n']}, K = {report['k']})")
    for name in ("tokens", "documents", *points):
        table.add_column(name, justify="right")
    longest = max(report["lengths"])
    for row in zip(*points.values(), strict=True):
        length = row[0]["length"]
        cells = [f"{p['f1']:.3f} / {p['exact_match']:.3f}" for p in row]
        table.add_row(f"{length:,}" if length is not None else f"> {longest:,}", str(row[0]["samples"]), *cells)
    return table


def retrieval_table(report: dict[str, Any]) -> Table:
    table = Table(title=f"Share of a fact's slots retrieved, {report['samples']} held-out people (K0 = {report['k0']})")
    for name in ("distance", "slots per layer", "retrieved", "by chance", "layer by layer"):
        table.add_column(name, justify="right")
    for point in report["points"]:
        table.add_row(
            str(point["distance"]),
            f"{point['longterm']:,}",
            f"{point['share']:.3f} ± {point['stderr']:.3f}",
            f"{point['random']:.3f}",
            " ".join(f"{share:.2f}" for share in point["layers"]),
        )
    return table


def integrity_table(report: dict[str, Any]) -> Table:
    table = Table(title=f"Exact match about the newest biography (N = {report['n']}, K = {report['k']})")
    for name in ("writes", "exact match", "resident memory", "per write and its questions"):
        table.add_column(name, justify="right")
    for window in report["windows"]:
        table.add_row(
            f"{window['writes']:,}",
            share_text(window["exact_match"], window["samples"]),
            f"{window['resident_bytes'] / 2**20:,.0f} MiB",
            f"{1e3 * window['seconds'] / report['window_writes']:.1f} ms",
        )
    return table


def editing_table(report: dict[str, Any]) -> Table:
    table = Table(title=f"Edits of {report['set']} made one after another (N = {report['n']}, K = {report['k']})")
    for name in ("edits", "method", "efficacy", "generalisation", "specificity", "score"):
        table.add_column(name, justify="left" if name == "method" else "right")
    for result in report["results"]:
        found = [result[name] for name in ("efficacy", "generalisation", "specificity")]
        table.add_row(
            f"{result['edits']:,}",
            result["method"],
            *(f"{metric['rate']:.3f} ± {metric['stderr']:.3f}" if metric else "not asked" for metric in found),
            f"{result['score']:.3f}",
        )
    return table


def perplexity_table(report: dict[str, Any]) -> Table:
    table = Table(title=f"Perplexity, {report['samples']} windows of {report['window']} tokens (N = {report['n']})")
    for name in ("memory", "perplexity", "ratio to empty"):
        table.add_column(name, justify="left" if name == "memory" else "right")
    for condition, figures in report["conditions"].items():
        ratio = f"{figures['ratio']:.4f} ± {figures['ratio_stderr']:.4f}" if condition != "empty" else ""
        table.add_row(condition, f"{figures['perplexity']:,.2f} ± {figures['stderr']:,.2f}", ratio)
    return table


def show_rounds(
    out: Console,
    model: MemoryModel,
    memory: Memory,
    questions: list[Question],
    texts: list[str],
    unrelated: int,
    plot: Path,
) -> None:
    """Ask, write on, ask again; a table per distance, and at the end the plot."""
    distances = distances_up_to(unrelated, writes_per_pool(model))
    asked: list[Round] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        task = progress.add_task("unrelated paragraphs", total=unrelated)
        for one in rounds(
            model,
            memory,
            questions,
            texts=texts,
            distances=distances,
            progress=lambda done, total: progress.update(task, completed=done),
        ):
            progress.console.print(_round_table(one, len(asked)))
            progress.console.print(_summary(one), highlight=False)
            asked.append(one)
    retention_plot(report(model, asked), plot, title=f"Demo: {len(questions)} questions about one text, one memory")
    out.print(f"Plot of retention: {plot.resolve()}", markup=False, highlight=False, soft_wrap=True)


def _round_table(one: Round, index: int) -> Table:
    every = -(-len(one.answered) // _ROWS)
    shown = one.answered[index % every :: every]
    title = f"after {one.distance} unrelated paragraphs"
    if every > 1:
        title += f" ({len(shown)} of {len(one.answered)} questions)"
    table = Table(title=title, title_justify="left")
    for name in ("question", "answer", "truth", "distance"):
        table.add_column(name, justify="right" if name == "distance" else "left")
    for answered in shown:
        mark, style = ("✓", "green") if answered.right else ("✗", "red")
        table.add_row(
            Text(answered.question.text),
            Text(f"{mark} {answered.answer}", style=style),
            Text(answered.question.truth),
            str(one.distance),
        )
    return table


def _summary(one: Round) -> str:
    count = len(one.answered)
    others = ", ".join(
        f"{name} {sum(answered.right for answered in one.curves[condition])}"
        for condition, name in _CONDITIONS.items()
        if condition in one.curves and one.curves[condition] is not one.answered
    )
    return f"distance {one.distance}: {one.right} of {count} right ({one.right / count:.0%}); {others}\n"


def answer_questions(out: Console, model: MemoryModel, memory: Memory) -> None:
    """Ask until an empty line."""
    try:
        while question := read_line(out, "Ask about the text (empty line to leave): ").strip():
            out.print(model.ask(memory, question).text, markup=False)
    except (EOFError, KeyboardInterrupt):
        out.print()
