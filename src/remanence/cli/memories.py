"""Commands on one memory: write, ask, chat, show; and the demonstration."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from remanence.cli.places import require_memory_place, require_writable
from remanence.cli.shared import (
    Int8Flag,
    JsonFlag,
    MemoryArgument,
    ModelOption,
    TierOption,
    checkpoint_of,
    err,
    examples,
    interruptible,
    load_memory,
    load_model,
    out,
    progress_bar,
    require_model,
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
    require_writable(plot)
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


def write_all(model: "MemoryModel", memory: "Memory", texts: list[str]) -> int:
    """How many of the texts were shorter than a chunk should be."""
    from remanence.model.inputs import MIN_CHUNK

    if not texts:
        raise InvalidInputError("there is no text to write")
    sizes = [len(text.encode()) for text in texts]
    total, done, short = sum(sizes), 0, 0
    with progress_bar("writing", in_bytes=True) as progress:
        for text, size in zip(texts, sizes, strict=True):

            def moved(chunk: int, chunks: int, done: int = done, size: int = size) -> None:
                progress(done + size * chunk // chunks, total)

            short += model.write(memory, text, progress=moved).tokens < MIN_CHUNK
            done += size
    return short


@app.command(
    epilog=examples(
        "remanence write notes.mem notes.txt more.txt",
        'echo "Alice Brown was born in Oslo. She works as a surveyor and lives in Rome." | remanence write notes.mem -',
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
    tier: TierOption = None,
    int8: Int8Flag = False,
    as_json: JsonFlag = False,
) -> None:
    """Write text files into a memory, which is made if it is not there.

    Each paragraph is one write. The memory file changes only when everything was written; Ctrl-C before that leaves it
    as it was. With --tier or --int8, the long-term slots of a memory that is there already move.
    """
    from remanence.memory import Memory
    from remanence.model.inputs import MIN_CHUNK
    from remanence.texts import paragraphs_of, read_text

    require_memory_place(memory)
    contents = [read_text(file) for file in files]
    texts = [content for content in contents if content.strip()]
    if not whole:
        texts = [paragraph for content in texts for paragraph in paragraphs_of(content)]
    held = load_memory(memory) if memory.exists() else None
    engine = load_model(model)
    if held is None:
        held, unsaved = engine.new_memory(storage=storage_of(engine, tier, int8)), "was not made"
    else:
        require_model(engine, held, memory)
        storage, unsaved = storage_of(held, tier, int8), "is as it was"
        held = held if storage is None else Memory.load(memory, storage=storage)
    before = held.write_count
    with interruptible(f"nothing was saved: {memory} {unsaved}"):
        short = write_all(engine, held, texts)
    with interruptible(f"{memory} has either everything or nothing of this; see: remanence show {memory}"):
        held.save(memory)
    if short:
        err.print(
            f"note: {short} of {len(texts)} texts had fewer than {MIN_CHUNK} tokens. So short a text is poorly "
            "remembered, and disturbs the memory more than it adds to it; join short notes into paragraphs.",
            highlight=False,
            soft_wrap=True,
        )
    done = {"memory": str(memory), "written": held.write_count - before, "writes": held.write_count}
    typer.echo(json.dumps(done) if as_json else "{memory}: {written} written, {writes} writes in all".format(**done))


@app.command(
    epilog=examples('remanence ask notes.mem "Where was Alice Brown born?"', 'remanence ask notes.mem "..." --json')
)
def ask(
    memory: MemoryArgument,
    question: Annotated[str, typer.Argument(help="In plain words.")],
    model: ModelOption = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, max=4096, help="The longest answer, in tokens.")] = 32,
    as_json: JsonFlag = False,
) -> None:
    """Ask a memory one question. It is not changed."""
    from remanence.terminal import answer_from
    from remanence.texts import prompt_of

    if not question.strip():
        raise InvalidInputError("there is no question; put it in quotes behind the memory")
    held = load_memory(memory)
    engine = load_model(model)
    require_model(engine, held, memory)
    answer = answer_from(engine, held, question, max_new_tokens)
    if as_json:
        typer.echo(json.dumps({"question": question, "prompt": prompt_of(question), "answer": answer}))
    else:
        typer.echo(answer)


@app.command(epilog=examples("remanence chat notes.mem"))
def chat(memory: MemoryArgument, model: ModelOption = None) -> None:
    """Ask and write, line by line. The memory is saved when you leave."""
    from remanence.terminal import chat_loop

    require_memory_place(memory)
    held = load_memory(memory) if memory.exists() else None
    engine = load_model(model)
    if held is not None:
        require_model(engine, held, memory)
    chat_loop(out, engine, engine.new_memory() if held is None else held, memory)


@app.command(epilog=examples("remanence show notes.mem", "remanence show notes.mem --json"))
def show(memory: MemoryArgument, model: ModelOption = None, as_json: JsonFlag = False) -> None:
    """Slots, writes and sizes of a memory, and whether the model can read it."""
    from remanence.terminal import describe, details_table

    held = load_memory(memory)
    details = describe(held, load_model(model, optimize=False), memory)
    if not details["readable"] and (name := checkpoint_of(held)):
        details["checkpoint"] = name
    if as_json:
        typer.echo(json.dumps(details))
    else:
        out.print(details_table(details))
