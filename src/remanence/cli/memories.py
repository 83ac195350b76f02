"""Commands on one memory: write, ask, chat, show; and the demonstration."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from remanence.cli.shared import (
    Int8Flag,
    JsonFlag,
    MemoryArgument,
    ModelOption,
    TierOption,
    Where,
    examples,
    load_memory,
    load_model,
    out,
    progress_bar,
    require_folder,
    storage_of,
)
from remanence.errors import InvalidInputError

if TYPE_CHECKING:
    from remanence.memory import Memory
    from remanence.model.memory_model import MemoryModel

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
    from remanence.terminal import answer_questions, show_rounds
    from remanence.texts import paragraphs_of, read_questions, read_text

    if file is None:
        file, bundled_questions = demo_files()
        questions = questions or bundled_questions
    texts = paragraphs_of(read_text(file))
    asked = None if questions is None else read_questions(questions)
    plot = output / "remanence-demo.png"
    require_folder(plot)
    engine = load_model(model)
    memory = engine.new_memory()
    write_all(engine, memory, texts)
    out.print(f"{file.name}: {memory.write_count} paragraphs written. From here on the model has only its memory.")
    if asked is not None:
        show_rounds(out, engine, memory, asked, texts, unrelated, plot)
    elif sys.stdin.isatty():
        answer_questions(out, engine, memory)
    else:
        out.print('To ask about it, give --questions with lines "question<TAB>answer", or run this in a terminal.')


def write_all(model: "MemoryModel", memory: "Memory", texts: list[str]) -> None:
    if not texts:
        raise InvalidInputError("there is no text to write")
    with progress_bar("writing") as progress:
        for done, text in enumerate(texts, start=1):
            model.write(memory, text)
            progress(done, len(texts))


@app.command(
    epilog=examples(
        "remanence write notes.mem notes.txt more.txt",
        'echo "Alice Brown was born in Oslo." | remanence write notes.mem -',
        "remanence write book.mem book.txt --whole",
    )
)
def write(
    memory: MemoryArgument,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Text files; - for standard input.")],
    model: ModelOption = None,
    whole: Annotated[
        bool, typer.Option("--whole", help="Cut each file into chunks of 512 tokens, not into its paragraphs.")
    ] = False,
    tier: TierOption = Where.HOST,
    int8: Int8Flag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write text files into a memory, which is made if it is not there.

    Each paragraph is one write. The memory file changes only when everything was written.
    """
    from remanence.texts import paragraphs_of, read_text

    require_folder(memory)
    contents = [read_text(file) for file in files]
    texts = contents if whole else [paragraph for content in contents for paragraph in paragraphs_of(content)]
    held = load_memory(memory) if memory.exists() else None
    engine = load_model(model)
    held = engine.new_memory(storage=storage_of(tier, int8)) if held is None else held
    before = held.write_count
    write_all(engine, held, texts)
    held.save(memory)
    done = {"memory": str(memory), "written": held.write_count - before, "writes": held.write_count}
    typer.echo(json.dumps(done) if as_json else "{memory}: {written} written, {writes} writes in all".format(**done))


@app.command(
    epilog=examples('remanence ask notes.mem "Where was Alice Brown born?"', 'remanence ask notes.mem "..." --json')
)
def ask(
    memory: MemoryArgument,
    question: Annotated[str, typer.Argument(help="In plain words.")],
    model: ModelOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, in tokens.")] = 32,
    as_json: JsonFlag = False,
) -> None:
    """Ask a memory one question. It is not changed."""
    from remanence.terminal import answer_from
    from remanence.texts import prompt_of

    held = load_memory(memory)
    answer = answer_from(load_model(model), held, question, max_new_tokens)
    if as_json:
        typer.echo(json.dumps({"question": question, "prompt": prompt_of(question), "answer": answer}))
    else:
        typer.echo(answer)


@app.command(epilog=examples("remanence chat notes.mem"))
def chat(memory: MemoryArgument, model: ModelOption = None) -> None:
    """Ask and write, line by line. The memory is saved when you leave."""
    from remanence.terminal import chat_loop

    require_folder(memory)
    held = load_memory(memory) if memory.exists() else None
    engine = load_model(model)
    chat_loop(out, engine, engine.new_memory() if held is None else held, memory)


@app.command(epilog=examples("remanence show notes.mem", "remanence show notes.mem --json"))
def show(memory: MemoryArgument, model: ModelOption = None, as_json: JsonFlag = False) -> None:
    """Slots, writes and sizes of a memory, and whether the model can read it."""
    from remanence.terminal import describe, details_table

    held = load_memory(memory)
    details = {"file": str(memory), "file_bytes": memory.stat().st_size} | describe(held, load_model(model))
    if as_json:
        typer.echo(json.dumps(details))
    else:
        out.print(details_table(details))
