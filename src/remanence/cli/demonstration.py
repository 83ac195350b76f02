"""`remanence demo`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from remanence.cli.memories import Text, write_all
from remanence.cli.places import require_writable
from remanence.cli.shared import ModelOption, examples, load_model, out

app = typer.Typer()


@app.command(epilog=examples("remanence demo", "remanence demo people.txt --questions people.tsv --unrelated 100"))
def demo(
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Paragraphs to write.")] = None,
    questions: Annotated[
        Path | None, typer.Option(help="Lines question<TAB>answer, or a JSON list with question and truth.")
    ] = None,
    model: ModelOption = None,
    output: Annotated[Path, typer.Option(help="Folder for the plot.")] = Path(),
    unrelated: Annotated[int, typer.Option(min=0, help="Unrelated paragraphs to write after the facts.")] = 300,
) -> None:
    """Write facts, then hundreds of unrelated paragraphs, and watch what is recalled.

    Without FILE, eight invented people whom the checkpoint has never met.
    """
    from remanence.data.demo import demo_files
    from remanence.evaluation.distances import writes_per_pool
    from remanence.texts import paragraphs_of, read_questions, read_text

    if file is None:
        file, bundled_questions = demo_files()
        questions = questions or bundled_questions
    texts = paragraphs_of(read_text(file))
    asked = None if questions is None else read_questions(questions)
    plot = output / "remanence-demo.png"
    require_writable(plot)
    engine = load_model(model)
    if asked is not None:
        writes_per_pool(engine)  # by which the distances are drawn
    from remanence.terminal import answer_questions, show_rounds

    memory = engine.new_memory()
    write_all(engine, memory, [Text(text) for text in texts])
    out.print(f"{file.name}: {memory.write_count} paragraphs written. From here on the model has only its memory.")
    if asked is not None:
        show_rounds(out, engine, memory, asked, texts, unrelated, plot)
    elif sys.stdin.isatty():
        answer_questions(out, engine, memory)
    else:
        out.print('To ask about it, give --questions with lines "question<TAB>answer", or run this in a terminal.')
