"""What the demonstration on a learned model shows."""

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from remanence.chatting import read_line
from remanence.demo.learned import Round, distances_up_to, report, rounds
from remanence.evaluation.distances import writes_per_pool
from remanence.evaluation.plots import draw
from remanence.memory import Memory
from remanence.model.model import MemoryModel
from remanence.texts import Question

_COLUMNS = {"pool": "pool alone", "fits": "text in context", "nothing": "neither"}
_ROWS = 8  # of a round of questions that are shown; all of them count


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
    draw(report(model, asked), plot)
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
        f"{name} {sum(answered.right for answered in one.curves[column])}"
        for column, name in _COLUMNS.items()
        if column in one.curves and one.curves[column] is not one.answered
    )
    return f"distance {one.distance}: {one.right} of {count} right ({one.right / count:.0%}); {others}\n"


def answer_questions(out: Console, model: MemoryModel, memory: Memory) -> None:
    """Ask until an empty line."""
    try:
        while question := read_line(out, "Ask about the text (empty line to leave): ").strip():
            out.print(model.ask(memory, question).text, markup=False)
    except (EOFError, KeyboardInterrupt):
        out.print()
