"""What the command line shows, and the two loops in which it listens."""

import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from remanence.details import details_table, file_sizes, writes_of, writes_table
from remanence.errors import RemanenceError
from remanence.evaluation.demonstration import Round, distances_up_to, report, rounds
from remanence.evaluation.distances import writes_per_pool
from remanence.evaluation.plots import retention_plot
from remanence.evaluation.retention import Condition
from remanence.memory import Memory
from remanence.memory.envelope import read_envelope
from remanence.model.model import MemoryModel
from remanence.texts import Question

_CONDITIONS: dict[Condition, str] = {"pool": "pool alone", "context": "text in context", "none": "neither"}
_ROWS = 8  # of a round of questions that are shown; all of them count
_CHAT_HELP = "Type a question, or: /write TEXT, /ask QUESTION, /show, /save, /quit (leaving saves, too)"


def retention_table(report: dict[str, Any]) -> Table:
    curves, survival = report["curves"], {p["distance"]: p["line"] for p in report["survival"]}
    score = report.get("score", "exact_match")
    asked = f"questions of {report['data']}" if "data" in report else "held-out people"
    name = score.replace("_", " ").capitalize()
    table = Table(title=f"{name}, {report['samples']} {asked} (N = {report['n']}, K = {report['k']})")
    table.add_column("distance", justify="right")
    for condition in curves:
        table.add_column(condition, justify="right")
    if survival:
        table.add_column("survival", justify="right")
    for points in zip(*curves.values(), strict=True):
        distance = points[0]["distance"]
        cells = [f"{p[score]:.3f} ± {p['stderr']:.3f}" for p in points]
        table.add_row(str(distance), *cells, *([f"{survival[distance]:.3f}"] if survival else []))
    return table


def longcontext_table(report: dict[str, Any]) -> Table:
    points = report["points"]
    table = Table(title=f"F1 / exact match, documents of {report['data']} (N = {report['n']}, K = {report['k']})")
    for name in ("tokens", "documents", *points):
        table.add_column(name, justify="right")
    longest = max((p["length"] for p in next(iter(points.values())) if p["length"] is not None), default=0)
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
            f"{window['exact_match']:.3f} ± {window['stderr']:.3f}",
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
            *(f"{metric['rate']:.3f} ± {metric['stderr']:.3f}" for metric in found),
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
        while question := _line(out, "Ask about the text (empty line to leave): ").strip():
            out.print(model.ask(memory, question).text, markup=False)
    except (EOFError, KeyboardInterrupt):
        out.print()


def chat_loop(out: Console, model: MemoryModel, memory: Memory, path: Path) -> None:
    """Read lines until /quit, Ctrl-D or Ctrl-C; whatever was written is then saved, and where is said."""
    out.print(_CHAT_HELP, markup=False)
    saved = memory.write_count
    try:
        while True:
            command, _, rest = _command(_line(out, "> "))
            if command == "/quit":
                break
            if command == "/save":
                try:
                    memory.save(path)
                except RemanenceError as error:
                    out.print(f"error: {error}", markup=False)
                    continue
                saved = memory.write_count
                out.print(f"saved to {path}", markup=False)
            else:
                _respond(out, model, memory, path, command, rest)
    except (EOFError, KeyboardInterrupt):
        out.print()
    if memory.write_count == saved:
        out.print("nothing new to save")
        return
    try:
        memory.save(path)
    except RemanenceError as error:
        out.print(f"error: {error}", markup=False)
        path = Path(tempfile.mkdtemp(prefix="remanence-")) / path.name
        memory.save(path)
    out.print(f"saved to {path}", markup=False)


def _line(out: Console, prompt: str) -> str:
    try:
        return out.input(prompt)
    except UnicodeDecodeError as error:
        out.print(f"error: standard input is not text in {error.encoding}, so it is not read on", markup=False)
        raise EOFError from error


def _command(line: str) -> tuple[str, str, str]:
    line = line.strip()
    return line.partition(" ") if line.startswith("/") else ("/ask", " ", line)


def _respond(out: Console, model: MemoryModel, memory: Memory, path: Path, command: str, rest: str) -> None:
    try:
        if command == "/ask" and rest:
            out.print(model.ask(memory, rest).text, markup=False)
        elif command == "/write" and rest:
            receipt = model.write(memory, rest)
            out.print(f"written: {receipt.tokens} tokens", markup=False)
        elif command == "/show":
            _show(out, model, memory, path)
        elif rest or command != "/ask":
            out.print(_CHAT_HELP, markup=False)
    except RemanenceError as error:
        out.print(f"error: {error}", style="red", markup=False)


def _show(out: Console, model: MemoryModel, memory: Memory, path: Path) -> None:
    about = model.inspect(memory)
    saved = file_sizes(path, read_envelope(path)) if path.is_file() else {"file": f"{path}, not saved yet"}
    out.print(details_table({**saved, "model_name": memory.model_name, **about, "write_count": about["writes"]}))
    if memory.writes:
        out.print(writes_table(writes_of(memory.writes), newest=_ROWS))
