"""`remanence demo`."""

import json
import shutil
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from remanence.cli.memories import Text, write_all
from remanence.cli.places import require_writable
from remanence.cli.shared import JsonFlag, ModelOption, examples, load_model, out, progress_bar

if TYPE_CHECKING:
    from remanence import MemoryModel
    from remanence.texts import Question

app = typer.Typer()

_PLOT = "remanence-demo.png"
_HOW_TO_ASK = 'To ask about it, give --questions with lines "question<TAB>answer", or run this in a terminal.'


@app.command(
    epilog=examples("remanence demo", "remanence demo notes.md --questions notes.tsv", "remanence demo --json")
)
def demo(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Paragraphs to tell.")] = None,
    questions: Annotated[
        Path | None, typer.Option(help="Lines question<TAB>answer, or a JSON list with question and truth.")
    ] = None,
    model: ModelOption = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder for the plot of a learned model. Default: this folder.")
    ] = None,
    unrelated: Annotated[
        int | None,
        typer.Option(min=0, help="Unrelated paragraphs to tell. Default: 200; for a learned model 300, afterwards."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Tell a handbook among unrelated paragraphs, and ask about it: with memory, and without.

    A learned model (tiny, tiny_longterm) is told about eight invented people, and asked again and again while hundreds
    of unrelated paragraphs follow.
    """
    started = time.perf_counter()
    from remanence.texts import read_questions, read_text

    content = None if file is None else read_text(file)
    asked = None if questions is None else read_questions(questions)
    if output is not None:
        require_writable(output / _PLOT)
    engine = load_model(model)
    given = None if file is None or content is None else (file.name, content)
    if engine.config.writer == "text":
        made = _on_text_slots(engine, given, asked, 200 if unrelated is None else unrelated, model, as_json, started)
    else:
        made = _learned(engine, given, asked, output or Path(), 300 if unrelated is None else unrelated, as_json)
    if as_json:
        typer.echo(json.dumps(made))


def _on_text_slots(
    engine: "MemoryModel",
    given: tuple[str, str] | None,
    asked: "list[Question] | None",
    unrelated: int,
    model: str | None,
    as_json: bool,
    started: float,
) -> dict[str, Any]:
    """What was told and what came of it. `given`: name and content of a file; None: the bundled handbook."""
    from remanence.data.handbook import book_of, handbook
    from remanence.demo.showing import show_book, show_commands, show_told
    from remanence.demo.terminal import answer_questions

    book = handbook() if given is None else book_of(*given)
    if asked is not None:
        book = book.asked(asked)
    console = Console(quiet=True) if as_json else out
    memory = engine.new_memory()
    if book.questions:
        made = show_book(console, engine, memory, book, unrelated, progress_bar, started)
    else:
        show_told(console, engine, memory, book, unrelated, progress_bar)
        made = {"source": book.source, "paragraphs": len(book.paragraphs), "unrelated": unrelated}
        if sys.stdin.isatty() and not as_json:
            answer_questions(out, engine, memory)
        else:
            console.print(_HOW_TO_ASK)
    own = Path(sys.argv[0]).name == "remanence" and shutil.which("remanence") is None
    show_commands(console, sys.argv[0] if own else "remanence", model)
    return made


def _learned(
    engine: "MemoryModel",
    given: tuple[str, str] | None,
    asked: "list[Question] | None",
    output: Path,
    unrelated: int,
    as_json: bool,
) -> dict[str, Any]:
    """The same of a learned model; `given`: None for the bundled text about people."""
    from remanence.data.demo import demo_files
    from remanence.demo.learned import distances_up_to, report, rounds
    from remanence.demo.terminal import answer_questions, show_rounds
    from remanence.evaluation.distances import writes_per_pool
    from remanence.texts import paragraphs_of, read_questions, read_text

    plot = output / _PLOT
    if not as_json:
        require_writable(plot)
    if given is None:
        file, bundled_questions = demo_files()
        given = file.name, read_text(file)
        asked = asked or read_questions(bundled_questions)
    name, content = given
    texts = paragraphs_of(content)
    memory = engine.new_memory()
    if asked is not None:
        writes_per_pool(engine)  # by which the distances are drawn
    write_all(engine, memory, [Text(text) for text in texts])
    made: dict[str, Any] = {"source": name, "paragraphs": memory.write_count}
    if as_json:
        distances = distances_up_to(unrelated, writes_per_pool(engine)) if asked else []
        done = list(rounds(engine, memory, asked or [], texts=texts, distances=distances))
        return made | {"unrelated": unrelated} | (report(engine, done).to_json() if done else {})
    out.print(f"{name}: {memory.write_count} paragraphs written. From here on the model has only its memory.")
    if asked is not None:
        show_rounds(out, engine, memory, asked, texts, unrelated, plot)
    elif sys.stdin.isatty():
        answer_questions(out, engine, memory)
    else:
        out.print(_HOW_TO_ASK)
    return made
